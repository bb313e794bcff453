package restore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/restore"
)

// A machine that would not run is refused before anything is written. A test guest is asked only
// where it can tell something: of a machine that is to be started under KVM, unless the caller
// knows better.
func TestMachineThatWouldNotRun(t *testing.T) {
	l := newLab(t, rand.New(rand.NewPCG(5, 6)))
	noKVM := fmt.Errorf("run it: %w", hypervisor.ErrNoKVM)
	unfit := fmt.Errorf("%w: it stands still", hypervisor.ErrKVMUnfit)
	kvm := hypervisor.Prospect{Accel: "kvm", Program: "/q", HostCPU: true}
	for _, tt := range []struct {
		name     string
		start    bool
		accel    string
		cannot   error
		prospect hypervisor.Prospect
		want     error
		tried    int
	}{
		{"no KVM", true, "", noKVM, kvm, hypervisor.ErrNoKVM, 0},
		{"no KVM to define it with", false, "", noKVM, kvm, hypervisor.ErrNoKVM, 0},
		{"KVM stands still", true, "", nil, kvm, hypervisor.ErrKVMUnfit, 1},
		{"it is not started", false, "", nil, kvm, nil, 0},
		{"emulated as asked", true, "tcg", nil, hypervisor.Prospect{Accel: "tcg"}, nil, 0},
		{"KVM is insisted on", true, "kvm", nil, kvm, nil, 0},
	} {
		for _, how := range []string{"machine", "instant"} {
			t.Run(tt.name+", "+how, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "new")
				h := &host{prospect: tt.prospect, cannot: tt.cannot}
				tried := 0
				req := restore.MachineRequest{Point: l.p, Name: "web", Storage: dir, Start: tt.start, Accel: tt.accel,
					Trouble: func(_ context.Context, p hypervisor.Prospect) error {
						if tried++; p != kvm {
							t.Errorf("a guest was tried for %+v", p)
						}
						return unfit
					}}
				var err error
				if how == "machine" {
					_, err = restore.Machine(t.Context(), l.v, h, req)
				} else if tt.want != nil {
					o := restore.InstantOptions{RunDir: t.TempDir()}
					_, err = restore.Instant(t.Context(), l.v, refusing{newWorld(t), h}, req, 0, o)
				} else {
					t.Skip("the law of instant restores covers it")
				}
				if !errors.Is(err, tt.want) || tried != tt.tried {
					t.Errorf("error %v, want %v; a guest was tried %d times, want %d", err, tt.want, tried, tt.tried)
				}
				if h.got.Start != tt.start || h.got.Accel != tt.accel || h.got.Point != l.p {
					t.Errorf("the host was asked of %+v", h.got)
				}
				if _, err := os.Stat(dir); tt.want != nil && !os.IsNotExist(err) {
					t.Errorf("something was written: %v, %q", err, listed(t, dir))
				}
			})
		}
	}
}

// refusing is a world that has the prospects of another host.
type refusing struct {
	*world
	other *host
}

func (r refusing) Prospect(ctx context.Context, b hypervisor.Rebuild) (hypervisor.Prospect, error) {
	return r.other.Prospect(ctx, b)
}
