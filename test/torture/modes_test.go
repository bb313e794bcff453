package torture

import (
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/test/vm"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// TestModes does each thing that goes wrong in practice to one guest under each hypervisor. After
// each, the guest writes on, nothing of ours is left, and the next point is right.
func TestModes(t *testing.T) {
	onlyWhole(t)
	program.Hypervisors(t, func(t *testing.T, libvirt bool) {
		l := newLab(t, libvirt, vm.Options{})
		l.writesGoOn(10)
		l.checked(l.backup())
		for _, tt := range []struct {
			name string
			test func(l *lab)
			on   string // the hypervisor; "" means each
		}{
			{"holdfast stopped while the guest is held", stoppedWhileHeld, ""},
			{"holdfast stopped while it stores", stoppedWhileStoring, ""},
			{"scratch too small for a push", smallScratch, "qemu"},
			{"scratch too small for anything", noScratch, ""},
			{"scratch filled by others", filledScratch, "qemu"},
			{"vault's disk full", fullVault, ""},
			{"agent died", deadAgent, ""},
			{"agent silent", silentAgent, ""},
			{"hook fails", failingHook, ""},
			{"monitor in use", monitorInUse, "qemu"},
			{"two backups at once", twoAtOnce, ""},
			{"bitmap removed by hand", bitmapRemoved, ""},
			{"disk added and removed", diskAddedAndRemoved, ""},
			{"disks resized", disksResized, ""},
			{"QEMU ended cleanly", qemuEnds, ""},
			{"QEMU killed in mid-backup", qemuKilled, ""},
		} {
			if tt.on == "" || tt.on == "libvirt" == libvirt {
				// The tests share the guest, and each leaves it as it found it.
				t.Run(tt.name, func(t *testing.T) {
					sub := l.in(t)
					defer func() { sub.t = l.t; *l = *sub }() // a rebooted guest is the next test's
					tt.test(sub)
					sub.clean()
				})
			}
		}
	})
}

// checked verifies a point that was just taken.
func (l *lab) checked(p point.RecoveryPoint) point.RecoveryPoint {
	l.t.Helper()
	l.verify(p.ID, floor{})
	return p
}

// takes takes a point that must succeed and hold all that was acknowledged before.
func (l *lab) takes(flags ...string) point.RecoveryPoint {
	l.t.Helper()
	least := l.floor()
	p := l.backup(flags...)
	l.verify(p.ID, least)
	return p
}

// disk returns what a point says of a disk.
func disk(t testing.TB, p point.RecoveryPoint, name string) point.Disk {
	t.Helper()
	for _, d := range p.Disks {
		if d.Name == name {
			return d
		}
	}
	t.Fatalf("point %s has no disk %s", p.ID, name)
	return point.Disk{}
}

// tracked fails the test unless only changes were read of a disk.
func (l *lab) tracked(p point.RecoveryPoint, names ...string) {
	l.t.Helper()
	for _, name := range names {
		if d := disk(l.t, p, name); !d.Tracked {
			l.t.Errorf("disk %s was read whole: %s", name, d.Reason)
		}
	}
}

// untracked fails the test unless a disk was read whole, for a reason that has the words.
func (l *lab) untracked(p point.RecoveryPoint, name, words string) {
	l.t.Helper()
	if d := disk(l.t, p, name); d.Tracked || !strings.Contains(d.Reason, words) {
		l.t.Errorf("disk %s: tracked %v, reason %q; want it read whole for %q", name, d.Tracked, d.Reason, words)
	}
}

// unchanged runs what must make no point.
func (l *lab) unchanged(do func()) {
	l.t.Helper()
	before := len(l.points())
	do()
	if after := len(l.points()); after != before {
		l.t.Errorf("%d points became %d", before, after)
	}
}

// Held longer than a guest may be, it is released, and the point says what it is worth.
func stoppedWhileHeld(l *lab) {
	cmd := l.start(l.backupArgs()...)
	program.Until(l.t, "the guest is held", func() bool { return l.has(l.state, "*.held") || cmd.Ended() })
	cmd.Signal(syscall.SIGSTOP)
	l.writesGoOn(20)
	cmd.Signal(syscall.SIGCONT)
	cmd.Wait(l.t)
	if cmd.Status() != 0 {
		l.t.Fatal(cmd)
	}
	p := l.checked(decode[point.RecoveryPoint](l.t, cmd.Out.String()))
	if p.Consistency == point.Application && p.FrozenSeconds > 8 || p.ConsistencyReason == "" {
		l.t.Errorf("%s for %q, held for %v s", p.Consistency, p.ConsistencyReason, p.FrozenSeconds)
	}
}

func stoppedWhileStoring(l *lab) {
	least := l.floor()
	grows := l.grows(l.vault + "/*/*")
	cmd := l.start(l.backupArgs("--full-read")...)
	program.Until(l.t, "the vault grows", func() bool { return grows() || cmd.Ended() })
	cmd.Signal(syscall.SIGSTOP)
	l.writesGoOn(100)
	cmd.Signal(syscall.SIGCONT)
	cmd.Wait(l.t)
	if cmd.Status() != 0 {
		l.t.Fatal(cmd)
	}
	l.verify(decode[point.RecoveryPoint](l.t, cmd.Out.String()).ID, least)
}

func deadAgent(l *lab) {
	l.vm.MustExec(l.t, "kill -KILL $(cat /run/qga/pid)")
	noAgent(l)
	l.vm.MustExec(l.t, startAgent)
	reachesApplication(l)
}

func silentAgent(l *lab) {
	l.vm.MustExec(l.t, "kill -STOP $(cat /run/qga/pid)")
	noAgent(l)
	l.vm.MustExec(l.t, "kill -CONT $(cat /run/qga/pid)")
	reachesApplication(l)
}

const startAgent = "qemu-ga -d -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run/qga -f " +
	"/run/qga/pid -l /run/qga/log -F/etc/qemu/fsfreeze-hook"

// noAgent expects a point that is honest about the guest that does not answer, and none if more is
// required.
func noAgent(l *lab) {
	l.t.Helper()
	p := l.takes()
	if p.Consistency != point.Crash || !strings.Contains(p.ConsistencyReason, "agent") {
		l.t.Errorf("%s, for %q", p.Consistency, p.ConsistencyReason)
	}
	l.unchanged(func() {
		l.fails(4, []string{"required consistency was not reached", "agent"},
			l.backupArgs("--consistency=filesystem", "--require")...)
	})
}

func reachesApplication(l *lab) {
	l.t.Helper()
	least := l.floor()
	if p := l.takes("--consistency=application"); p.Consistency != point.Application {
		l.t.Errorf("%s, for %q", p.Consistency, p.ConsistencyReason)
	} else if rows := l.verifyRows(p.ID); rows < least.committed {
		l.t.Errorf("%d rows, %d were committed", rows, least.committed)
	}
}

func failingHook(l *lab) {
	l.vm.MustExec(l.t, "touch /run/fail-freeze")
	l.unchanged(func() { l.fails(4, []string{"required consistency was not reached"}, l.backupArgs("--require")...) })
	if p := l.takes(); p.Consistency == point.Application {
		l.t.Errorf("application-consistent with a hook that fails, for %q", p.ConsistencyReason)
	}
	l.vm.MustExec(l.t, "rm /run/fail-freeze")
	reachesApplication(l)
}

func twoAtOnce(l *lab) {
	least := l.floor()
	first := l.start(l.backupArgs("--consistency=crash")...)
	program.Until(l.t, "the first has begun", func() bool { return l.noted() || first.Ended() })
	first.Signal(syscall.SIGSTOP)
	words := "another backup of this machine is running"
	if l.daemon == nil {
		// a client that does not get in does not learn which machine it is
		words = "monitor is in use by another client"
	}
	l.unchanged(func() { l.fails(1, []string{words, `"busy"`}, l.backupArgs()...) })
	first.Signal(syscall.SIGCONT)
	first.Wait(l.t)
	if first.Status() != 0 {
		l.t.Fatal(first)
	}
	l.verify(decode[point.RecoveryPoint](l.t, first.Out.String()).ID, least)
}

func bitmapRemoved(l *lab) {
	l.takes("--consistency=crash")
	for _, n := range l.nodes() {
		for _, b := range n.Bitmaps {
			if l.diskOf(n) == "vdb" && strings.HasPrefix(b.Name, "hf") {
				l.mustMonitor("block-dirty-bitmap-remove", map[string]any{"node": n.Name, "name": b.Name}, nil)
			}
		}
	}
	l.writesGoOn(10)
	p := l.takes("--consistency=crash")
	l.untracked(p, "vdb", "")
	l.writesGoOn(10)
	l.tracked(l.takes("--consistency=crash"), "vda", "vdb")
}

// A clean end of QEMU stores the records of changes of qcow2 disks; a kill leaves them doubtful.
func qemuEnds(l *lab) {
	l.takes()
	l.writesGoOn(10)
	if err := l.vm.Stop(); err != nil {
		l.t.Fatal(err)
	}
	l.reboot()
	l.writesGoOn(10)
	p := l.takes("--consistency=crash")
	l.tracked(p, "vda", "vdb")
	if err := l.vm.Stop(); err != nil {
		l.t.Fatal(err)
	}
	l.reboot()
	l.writesGoOn(10)
	if err := l.vm.Kill(); err != nil {
		l.t.Fatal(err)
	}
	l.reboot()
	l.writesGoOn(10)
	p = l.takes("--consistency=crash")
	words := "inconsistent"
	if l.daemon != nil {
		words = "cannot be read"
	}
	l.untracked(p, "vdb", words)
	l.writesGoOn(10)
	l.tracked(l.takes("--consistency=crash"), "vda", "vdb")
}

func qemuKilled(l *lab) {
	l.floor()
	cmd := l.start(l.backupArgs("--full-read")...)
	program.Until(l.t, "the backup has begun", func() bool { return l.noted() || cmd.Ended() })
	if err := l.vm.Kill(); err != nil {
		l.t.Fatal(err)
	}
	cmd.Wait(l.t)
	l.failed(cmd, 1, "shop")
	if left := l.leftOnHost(); len(left) > 0 {
		l.t.Errorf("left on the host: %q by %v", left, cmd)
	}
	l.reboot()
	l.writesGoOn(10)
	l.takes("--consistency=crash")
	l.writesGoOn(10)
	l.tracked(l.takes("--consistency=crash"), "vda", "vdb")
}

// A guest that has no channel for an agent.
func TestNoChannel(t *testing.T) {
	onlyWhole(t)
	program.Hypervisors(t, func(t *testing.T, libvirt bool) {
		l := newLab(t, libvirt, vm.Options{NoChannel: true})
		l.writesGoOn(10)
		noAgent(l)
		l.clean()
	})
}
