package restore_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/restore"
)

// A machine whose host has come back without a KVM that runs guests is not started: who asks for
// that is refused, and who does not gets its disks, and is told.
func TestInstantOfHostWithoutKVM(t *testing.T) {
	l := killedWhileItRan(t)
	l.w.cut()
	starts := l.w.starts
	o := l.options()
	o.Trouble = func(context.Context, hypervisor.Prospect) error { return hypervisor.ErrKVMUnfit }
	_, err := restore.ResumeInstant(t.Context(), l.v, l.w, l.storage, "web", true, o)
	if !errors.Is(err, hypervisor.ErrKVMUnfit) {
		t.Errorf("to start it: %v, want %v", err, hypervisor.ErrKVMUnfit)
	}
	if _, err := restore.ResumeInstant(t.Context(), l.v, l.w, l.storage, "web", false, o); err != nil {
		t.Fatal(err)
	}
	l.requireDone(t)
	if l.w.starts != starts {
		t.Errorf("it was started (%q)", l.w.events)
	}
	if !strings.Contains(strings.Join(l.w.events, "\n"), "stays off") {
		t.Errorf("nobody was told: %q", l.w.events)
	}
}

// killedWhileItRan returns a lab whose process was killed when the machine had just been started.
func killedWhileItRan(t *testing.T) *instantLab {
	t.Helper()
	for at := 1; ; at++ {
		l := newInstantLab(t, true)
		died, err := l.mortal(at, l.begin)
		if !died {
			t.Fatalf("the machine never ran while a process died (%v)", err)
		}
		if l.w.live != nil {
			return l
		}
	}
}
