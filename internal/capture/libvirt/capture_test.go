package libvirt_test

import (
	"context"
	"errors"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// The first capture reads all, the next ones what changed; what is written after the instant
// belongs to the next.
func testCaptureFollowsChanges(l *lab) {
	l.write("vda", 0, 128<<10, 1)
	l.write("vdb", 1<<20, 4096, 2)
	l.write("vdc", 5<<20, 4096, 3)
	want := l.snapshot()
	r := l.capture(l.plan(), capture.Hooks{Frozen: func(context.Context) error {
		l.write("vda", 64<<10, 4096, 4) // after the instant
		l.write("vdc", 5<<20, 4096, 5)
		return nil
	}})
	if r.Rung != point.Push || r.Reason != "" || r.Instant.IsZero() {
		l.Errorf("result %+v", r)
	}
	l.tracked(r)
	l.same(want)
	l.commit(r)
	l.clean(l.current())
	for i := range 3 {
		l.write("vdb", i<<20, 100, byte(10+i))
		r = l.capture(l.plan(), capture.Hooks{})
		l.tracked(r, "vda", "vdb")
		l.same(l.model)
		l.commit(r)
	}
	if n := l.last["vdb"].Read; n != granule {
		l.Errorf("read %d bytes of vdb for one changed block", n)
	}
	if n := l.last["vda"].Read; n != 0 {
		l.Errorf("read %d bytes of vda, which did not change", n)
	}
	l.clean(l.current())
}

// A capture that is not committed, for whatever reason, loses no change.
func testFailedCaptureLosesNothing(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	first := l.current()

	l.write("vda", 0, 4096, 1)
	r := l.capture(l.plan(), capture.Hooks{})
	l.ok(r.DropNew(l.ctx))
	l.clean(first)

	broken := errors.New("broken")
	fail := func(context.Context) error { return broken }
	for name, hooks := range map[string]capture.Hooks{"quiesce": {Quiesce: fail}, "frozen": {Frozen: fail},
		"thaw": {Thaw: fail}} {
		if _, err := l.capturer.Capture(l.ctx, "one", l.plan(), hooks, l.sink); !errors.Is(err, broken) {
			l.Errorf("%s fails: %v", name, err)
		}
		l.clean(first)
	}
	l.write("vdb", 0, 4096, 2)
	sink := func(context.Context, capture.Read) error { return broken }
	if _, err := l.capturer.Capture(l.ctx, "one", l.plan(), capture.Hooks{}, sink); !errors.Is(err, broken) {
		l.Errorf("sink fails: %v", err)
	}
	l.clean(first)

	r = l.capture(l.plan(), capture.Hooks{})
	l.tracked(r, "vda", "vdb")
	l.commit(r)
	l.same(l.model)
}
