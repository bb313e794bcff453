package accel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// Trial says how to run the test guest. The zero value of each field is its default.
type Trial struct {
	Accel   string        // KVM or TCG; "" means KVM
	Program string        // QEMU's; "" means that of the host
	CPU     string        // QEMU's word for the processor that the guest sees; "" means QEMU's default
	Time    time.Duration // for each stage of the guest, before it is looked at; 0 means 2 s
	image   []byte        // instead of the test guest
	least   float64       // speed of counting below which it crawls; 0 means leastSpeed
}

// modes are the stages of the test guest, by the letter that begins each.
var modes = map[byte]string{letterReal: "16-bit code", letterProtected: "32-bit code", letterLong: "64-bit code"}

// Try runs the test guest and says what came of it, within a second where it runs. An error means
// that it could not be tried.
func Try(ctx context.Context, t Trial) (Result, error) {
	if t.Accel == "" {
		t.Accel = KVM
	}
	if t.Time == 0 {
		t.Time = stageTime
	}
	if t.least == 0 {
		t.least = leastSpeed
	}
	r := Result{Accel: t.Accel, CPU: t.CPU, Program: t.Program}
	if t.Accel == KVM {
		if err := Available(); err != nil {
			r.Verdict, r.Said = Missing, rootOf(err).Error()
			return r, nil
		}
	}
	if runtime.GOARCH != "amd64" {
		r.Verdict, r.Said = Untried, "there is no test guest for processors of kind "+runtime.GOARCH
		return r, nil
	}
	if err := t.run(ctx, &r); err != nil {
		return r, fmt.Errorf("try a guest under %s: %w", t.Accel, err)
	}
	return r, nil
}

// rootOf returns the error that others were made of.
func rootOf(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path
	}
	return err
}

func (t Trial) run(ctx context.Context, r *Result) (err error) {
	if r.Program == "" {
		if r.Program, err = Program(); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	image := t.image
	if image == nil {
		image = rom()
	}
	if err := os.WriteFile(filepath.Join(dir, "rom"), image, 0o600); err != nil {
		return err
	}
	g, err := t.start(ctx, r.Program, dir)
	if err != nil {
		return err
	}
	defer g.end()
	return g.watch(ctx, t, r)
}

// Trouble runs a test guest as a machine will run, and returns [hypervisor.ErrKVMUnfit] if that did
// not come to its end. A machine that does not run under KVM has no trouble with it, nor is it any
// that nothing could be tried, for want of permission or of room.
func Trouble(ctx context.Context, p hypervisor.Prospect) error {
	if p.Accel != KVM {
		return nil
	}
	t := Trial{Program: p.Program}
	if p.HostCPU {
		t.CPU = "host"
	}
	r, err := Try(ctx, t)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil || r.Verdict == Missing { // whoever runs the machine has other rights
		return nil
	}
	return r.Err()
}
