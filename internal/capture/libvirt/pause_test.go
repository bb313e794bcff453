package libvirt_test

import (
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	capturer "github.com/holdfast-vm/holdfast/internal/capture/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
)

// work has the machine run for a while: its firmware has something to do.
func (l *lab) work() { l.workFor(1200 * time.Millisecond) }

func (l *lab) workFor(d time.Duration) {
	l.Helper()
	before := libvirt.Mark(l.dom)
	l.await(func() bool {
		l.hmp("system_reset")
		return libvirt.Mark(l.dom).Ran-before.Ran > int64(d)
	})
}

func (l *lab) administrator(command string) {
	l.Helper()
	out, err := exec.Command("virsh", "--quiet", "--connect", l.daemon.URI, command, "one").CombinedOutput()
	if err != nil {
		l.Fatalf("virsh %s: %v\n%s", command, err, out)
	}
}

func (l *lab) lookUp() {
	l.Helper()
	var err error
	l.client = l.daemon.Client()
	l.dom, err = l.client.DomainByName(l.ctx, "one")
	l.ok(err)
}

// Only the process that paused a machine may let it go on: what a killed capture noted is resumed
// if it is that very pause, and nothing that an administrator has paused, whenever that was.
func testWhosePause(l *lab) {
	about := func() pause.Mark { return libvirt.Mark(l.dom) }
	stopped := func(m pause.Mark) pause.Mark {
		l.ok(l.client.DomainSuspend(l.ctx, l.dom))
		return m.Standing()
	}
	for _, tt := range []struct {
		name string
		come func() *pause.Mark // to what is noted of a machine that stands still then
		ours bool
	}{
		{"nothing is noted", func() *pause.Mark { l.administrator("suspend"); return nil }, false},
		{"suspended by us", func() *pause.Mark { m := stopped(about()); return &m }, true},
		{"suspended by us, which was not noted any more", func() *pause.Mark {
			m := about()
			stopped(m)
			return &m
		}, true},
		{"suspended by us, then libvirtd was restarted", func() *pause.Mark {
			m := stopped(about())
			l.daemon.Restart()
			l.lookUp()
			return &m
		}, true},
		{"never suspended by us, later by an administrator", func() *pause.Mark {
			m := about()
			l.work()
			l.administrator("suspend")
			return &m
		}, false},
		{"resumed and suspended by an administrator", func() *pause.Mark {
			m := stopped(about())
			l.administrator("resume")
			l.workFor(10 * time.Millisecond)
			l.administrator("suspend")
			return &m
		}, false},
		{"started anew, and suspended by an administrator", func() *pause.Mark {
			m := stopped(about())
			l.stop()
			l.start()
			l.administrator("suspend")
			return &m
		}, false},
		{"started anew under another libvirtd, which counts from 1 again", func() *pause.Mark {
			m := stopped(about())
			l.stop()
			l.daemon.Restart()
			l.lookUp()
			l.start()
			m.Domain = l.dom.ID
			l.administrator("suspend")
			return &m
		}, false},
		{"on another boot of the host", func() *pause.Mark {
			m := stopped(about())
			m.Boot = "another"
			return &m
		}, false},
	} {
		m := tt.come()
		if m != nil {
			l.ok(capturer.NotePause(l.state, l.dom, *m))
		}
		done, err := l.capturer.Reconcile(l.ctx, "one", vault, nil)
		if err != nil || slices.Contains(done, "resumed the machine") != tt.ours {
			l.Errorf("%s: reconcile did %q, %v", tt.name, done, err)
		}
		if said := strings.Join(done, "\n"); !tt.ours && m != nil && !strings.Contains(said, "left it paused") {
			l.Errorf("%s: it says %q", tt.name, said)
		}
		st, err := l.client.DomainState(l.ctx, l.dom)
		l.ok(err)
		if paused := st.State == rpc.StatePaused; paused == tt.ours {
			l.Errorf("%s: the machine is in state %+v", tt.name, st)
		}
		if st.State == rpc.StatePaused {
			l.ok(l.client.DomainResume(l.ctx, l.dom))
		}
		l.clean()
	}
}

// A capture that is killed together with its watch while the machine stands still has noted that,
// and the next one lets the machine go on.
func testKilledWhileSuspended(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	first := l.current()
	l.write("vda", 1<<20, 4096, 6)
	script := `echo ready; read a; virsh -q -c "$0" suspend one >&2; echo suspended; kill -9 $PPID`
	l.killedWith(l.plan(), "", "sh", "-c", script, l.daemon.URI)
	l.requireState(rpc.StatePaused)
	done, err := l.capturer.Reconcile(l.ctx, "one", vault, []string{first})
	if err != nil || !slices.Contains(done, "resumed the machine") {
		l.Errorf("reconcile did %q, %v", done, err)
	}
	l.clean(first)
	r := l.capture(l.plan(), capture.Hooks{})
	l.tracked(r, "vda", "vdb")
	l.same(l.model)
	l.commit(r)
}
