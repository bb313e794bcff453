package drill

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/drill"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// What a drill does, to one original under each hypervisor. Each test takes a point of its own, of
// a guest that runs and writes all the time.
func TestDrills(t *testing.T) {
	program.Hypervisors(t, func(t *testing.T, libvirt bool) {
		l := newLab(t, libvirt)
		for _, tt := range []struct {
			name string
			test func(l *lab)
			on   string // the hypervisor; "" means each
		}{
			{"verdicts", verdicts, ""},
			{"reconcile", reconcile, ""},
			{"leak", leak, ""},
			{"ends early", endsEarly, "qemu"}, // the last: it damages a file system
		} {
			if tt.on == "" || tt.on == "libvirt" == libvirt {
				t.Run(tt.name, func(t *testing.T) { tt.test(l.in(t)) })
			}
		}
	})
}

// A point that works is verified, one that does not is not; a kill leaves nothing for long; and the
// original goes on.
func verdicts(l *lab) {
	script := filepath.Join(l.dir, "look.sh")
	if err := os.WriteFile(script,
		[]byte("#!/bin/sh\n# is run inside\necho script in $(hostname)\nls /sys/class/net\n"), 0o600); err != nil {
		l.t.Fatal(err)
	}
	// A restart of libvirtd does not mean that the machine has ended.
	r := l.start("point", "drill", name+"@latest", "--json", "--role", "sqlite=/var/lib/app/app.db", "--check",
		"lab check | grep -qx ok", "--script", script)
	if l.daemon != nil {
		program.Until(l.t, "the machine of the drill runs", func() bool { return l.running() || r.Ended() })
		l.daemon.Restart()
	}
	l.verified(l.result(r, 0))
	l.nothingLeft()
	l.undisturbed()
	if shown := l.must("point", "show", name+"@latest"); !strings.Contains(shown, "verified") {
		l.t.Errorf("point show says\n%s", shown)
	}

	r = l.start("point", "drill", name+"@latest", "--check", "false")
	l.await(r, "the guest agent answered")
	r.Kill()
	if len(l.processes()) == 0 && l.daemon == nil {
		l.t.Error("QEMU ended with the drill: nothing is tested")
	}
	l.undisturbed()

	second := l.drill(6, "--check", "true", "--check", "echo it is broken; exit 3")
	l.nothingLeft()
	if second.Verified || !strings.Contains(second.Reason,
		"1 of 3 checks failed: echo it is broken; exit 3 (it is broken)") || !second.Checks[1].OK {
		l.t.Errorf("a failing check: %+v", second)
	}
	if second.AheadBytes == 0 {
		l.t.Error("nothing was read ahead of a boot that is known")
	}
	if shown := l.must("point", "show", name+"@latest"); strings.Count(shown, "boot-set") != 3 ||
		strings.Count(shown, "drill  ") != 2 {
		l.t.Errorf("of two drills and a killed one the point has the notes\n%s", shown)
	}
	l.undisturbed()
}

func (l *lab) verified(res drill.Result) {
	l.t.Helper()
	l.t.Logf("agent after %.1f s, service after %.1f s, all %.1f s", res.BootSeconds, res.ServiceSeconds, res.Seconds)
	if !res.Verified || res.Reason != "" || len(res.Checks) != 4 || res.BootSeconds <= 0 ||
		res.ServiceSeconds < res.BootSeconds {
		l.t.Fatalf("a point that works: %+v", res)
	}
	if i := res.Isolation; i.Checks < 3 || i.Files == 0 || i.Sockets == 0 || len(i.Found) > 0 {
		l.t.Errorf("isolation %+v", i)
	}
	if !strings.Contains(res.Checks[3].Output, "script in lab") {
		l.t.Errorf("the script said %q", res.Checks[3].Output)
	}
	if res.Screenshot == "" && !strings.Contains(res.Console, "GUEST-UP") {
		l.t.Errorf("neither a picture (%s) nor the console: %q", res.NoScreenshot, res.Console)
	}
}

// What is interrupted, takes too long, or finds damage, leaves nothing either.
func endsEarly(l *lab) {
	r := l.start("point", "drill", name+"@latest", "--check", "false")
	l.await(r, "isolated")
	r.Signal(syscall.SIGINT)
	r.Finish(l.t, 130)
	l.nothingLeft()

	res := l.drill(6, "--timeout", "1s")
	if res.Verified || !strings.Contains(res.Reason, "the guest agent did not answer within 1s") {
		l.t.Errorf("a drill without time: %+v", res)
	}
	l.nothingLeft()

	l.vm.MustExec(l.t, "echo broken >/sys/fs/ext4/vda/trigger_fs_error; sync")
	l.backup()
	res = l.drill(6)
	if res.Verified || !strings.Contains(res.Reason, "ext4 on vda has met 1 errors") {
		l.t.Errorf("a damaged file system: %+v", res)
	}
	l.nothingLeft()
	l.undisturbed()
}

// A drill that is killed at any step is cleaned up after by host reconcile, which leaves those that
// run alone.
func reconcile(l *lab) {
	scratch := filepath.Join(l.dir, "scratch")
	there := func(pattern string) func(*program.Run) bool {
		return func(*program.Run) bool {
			found, _ := filepath.Glob(filepath.Join(scratch, pattern))
			return len(found) > 0
		}
	}
	says := func(words string) func(*program.Run) bool {
		return func(r *program.Run) bool { return strings.Contains(r.Said(), words) }
	}
	for _, step := range []struct {
		name   string
		come   func(r *program.Run) bool
		before syscall.Signal // sent before the kill; 0 is none
	}{
		{"noted", there("drills/hf-drill-*.json"), 0},
		{"disks are served", there("hf-drill-*/nbd"), 0},
		{"overlays", there("hf-drill-*/disk-vdc.qcow2"), 0},
		{"started", func(*program.Run) bool { return l.machines() > 0 }, 0},
		{"isolated", says("isolated"), 0},
		{"discarding", says("isolated"), syscall.SIGINT},
	} {
		r := l.start("point", "drill", name+"@latest", "--check", "false")
		program.Until(l.t, step.name, func() bool { return step.come(r) || r.Ended() })
		if step.before != 0 {
			r.Signal(step.before)
		} else if said := l.must("--connect", l.uri, "host", "reconcile"); !strings.Contains(said,
			"left alone: the drill runs") && step.name == "isolated" {
			l.t.Errorf("with a drill that runs reconcile says\n%s", said)
		}
		r.Kill()
		if code := r.Status(); code != -1 && step.before == 0 {
			l.t.Fatalf("%s: it ended before it was killed: %v", step.name, r)
		}
		said := l.must("--connect", l.uri, "host", "reconcile")
		if !strings.Contains(said, "removed: its drill was killed after") && step.before == 0 ||
			!strings.Contains(said, name+": ") {
			l.t.Errorf("%s: reconcile says\n%s", step.name, said)
		}
		l.nothingLeft()
		l.undisturbed()
	}
}

// A way out that comes up while the machine runs ends the drill at once, and the machine.
func leak(l *lab) {
	r := l.start("point", "drill", name+"@latest", "--check", "false")
	l.await(r, "isolated")
	l.openWay()
	if said := r.Finish(l.t, 6); !strings.Contains(said,
		"not verified: the machine was not isolated, and was removed: network leak of type user") {
		l.t.Errorf("of a way out it says\n%s", said)
	}
	l.nothingLeft()
	l.undisturbed()
}
