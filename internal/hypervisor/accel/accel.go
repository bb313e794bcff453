// Package accel finds out what runs guests here, and whether it does.
//
// That /dev/kvm opens says little. There are hosts, nested or paravirtual ones above all, where KVM
// runs firmware and where an ordinary kernel stands still for ever or crawls, while QEMU calls the
// machine running. [Try] therefore runs a guest of our own: some instructions that go through the
// modes of an x86 processor, as every kernel does, and count in each. [Processors] reads where the
// processors of any machine are.
//
// Nothing of a trial is left behind. Package accel changes nothing on the host and knows no
// machine.
package accel

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// What QEMU calls its accelerators.
const (
	KVM = "kvm" // the processor itself
	TCG = "tcg" // QEMU's own emulation
)

// Device is what a process opens to use KVM.
const Device = "/dev/kvm"

// Verdict is what came of a trial.
type Verdict string

// Verdicts.
const (
	Runs    Verdict = "runs"         // the test guest came to its end
	Crawls  Verdict = "crawls"       // its processor moves, too slowly to be of use
	Stands  Verdict = "stands_still" // its processor does not move
	Refused Verdict = "refused"      // QEMU does not start the guest, or ended
	Missing Verdict = "missing"      // there is no KVM, or it is not for this user
	Untried Verdict = "untried"      // there is no test guest for this processor
)

// Result says what came of a trial, and where the test guest was.
type Result struct {
	Verdict Verdict `json:"verdict"`
	Accel   string  `json:"accel"`
	CPU     string  `json:"cpu,omitempty"` // QEMU's word for the processor that the guest saw; "" is QEMU's default
	Mode    string  `json:"mode,omitempty"`
	At      string  `json:"at,omitempty"`           // where its processor was last
	Speed   float64 `json:"speed,omitempty"`        // of counting, a second
	Seconds float64 `json:"seconds,omitempty"`      // from its first letter to its last
	Said    string  `json:"qemu_said,omitempty"`    // QEMU's own words
	Program string  `json:"qemu_program,omitempty"` // that was tried
}

// Works reports whether nothing speaks against running machines so.
func (r Result) Works() bool { return r.Verdict == Runs || r.Verdict == Untried }

func (r Result) String() string {
	what := "a test guest under " + r.Accel
	if r.CPU != "" {
		what += " with processor " + r.CPU
	}
	switch r.Verdict {
	case Runs:
		return fmt.Sprintf("%s ran in 16, 32 and 64 bits, in %.2f s", what, r.Seconds)
	case Crawls:
		return fmt.Sprintf("%s crawls: in %s it counts %.1f million a second", what, r.Mode, r.Speed/1e6)
	case Stands:
		text := what + " stands still"
		if r.Mode != "" {
			text += " in " + r.Mode
		}
		if r.At != "" {
			text += " at " + r.At
		}
		return text
	case Refused:
		return fmt.Sprintf("QEMU does not run %s: %s", what, r.Said)
	case Missing:
		return r.Said
	}
	return "not tried: " + r.Said
}

// Err returns nil if Works, [hypervisor.ErrNoKVM] or [hypervisor.ErrKVMUnfit] with the reason.
func (r Result) Err() error {
	switch {
	case r.Works():
		return nil
	case r.Verdict == Missing:
		return fmt.Errorf("%w: %s", hypervisor.ErrNoKVM, r.Said)
	}
	return fmt.Errorf("%w: %v", hypervisor.ErrKVMUnfit, r)
}

// Available returns nil if this process may use KVM, else [hypervisor.ErrNoKVM] with the reason.
func Available() error {
	f, err := os.OpenFile(Device, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", hypervisor.ErrNoKVM, err)
	}
	return f.Close()
}

// programs are the names of QEMU for x86, the usual one first.
var programs = []string{"qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm", "kvm"}

// Program returns the path of the QEMU of this host, or [hypervisor.ErrNoQEMU].
func Program() (string, error) {
	for _, name := range programs {
		if path, err := child.Find(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: no %s is found", hypervisor.ErrNoQEMU, programs[0])
}
