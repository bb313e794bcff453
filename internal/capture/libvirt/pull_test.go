package libvirt_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// Where scratch cannot hold the read, disks without an iothread are pulled: first whole, then by
// their changes, as of the instant although the guest writes on.
func testPull(l *lab) {
	plan := func() capture.Plan {
		p := l.plan()
		p.Disks = slices.DeleteFunc(p.Disks, func(d capture.DiskPlan) bool { return d.Name == "vda" })
		p.AllowPull, p.Scratch.Limit = true, 4<<20
		return p
	}
	l.write("vdb", 1<<20, 200<<10, 1)
	l.write("vdc", 2<<20, 4096, 2)
	for round := range 3 {
		want := l.snapshot()
		var once sync.Once
		r, err := l.capturer.Capture(l.ctx, "one", plan(), capture.Hooks{},
			func(ctx context.Context, r capture.Read) error {
				once.Do(func() {
					l.write("vdb", 1<<20, 64<<10, byte(10+round))
					l.write("vdc", 2<<20, 64<<10, byte(20+round))
				})
				return l.sink(ctx, r)
			})
		l.ok(err)
		if r.Rung != point.Pull || !strings.Contains(r.Reason, "scratch") {
			l.Errorf("rung %s, reason %q", r.Rung, r.Reason)
		}
		if round == 0 {
			l.tracked(r)
		} else {
			l.tracked(r, "vdb")
			if r.Disks[0].Read != 64<<10 {
				l.Errorf("read %d bytes of vdb for one changed block", r.Disks[0].Read)
			}
		}
		want["vda"] = l.replica["vda"] // left out
		l.same(want)
		l.commit(r)
		l.clean(r.Disks[0].Bitmap)
	}
	l.killedPull(plan())
}

// killedPull kills a process that pulls: the machine goes on, and nothing of the capture is left.
func (l *lab) killedPull(p capture.Plan) {
	l.Helper()
	l.killed(p, "sink")
	if _, err := l.capturer.Reconcile(l.ctx, "one", "", nil); err != nil {
		l.Error(err)
	}
	l.clean(l.last["vdb"].Bitmap)
	l.write("vdb", 0, 4096, 77) // QEMU is alive
}

// A disk on an iothread is pulled only from a QEMU that was found to survive it.
func testPullFromIOThread(l *lab) {
	p := l.plan()
	p.AllowPull, p.Scratch.Limit = true, 4<<20
	r, err := l.capturer.Capture(l.ctx, "one", p, capture.Hooks{}, l.sink)
	var need *capture.NeedScratch
	switch {
	case err == nil:
		l.same(l.model)
		l.commit(r)
	case !errors.As(err, &need) || !strings.Contains(err.Error(), "iothread"):
		l.Errorf("pull: %v", err)
	}
	l.write("vda", 0, 4096, 1) // QEMU is alive
}
