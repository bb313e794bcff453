package drill

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/isolation"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// looked is a host whose machine is looked at: the n-th look, from 1, finds what look says.
type looked struct {
	Host
	look    func(n int) ([]string, error)
	takes   time.Duration // each
	looks   int
	removed time.Time // zero if it was not
}

func (h *looked) Isolation(ctx context.Context, _ hypervisor.Machine) (isolation.Report, error) {
	h.looks++
	<-time.After(h.takes)
	found, err := h.look(h.looks)
	return isolation.Report{Files: 7, Sockets: 2, Found: found}, errors.Join(err, ctx.Err())
}

func (h *looked) Remove(context.Context, hypervisor.Machine) error {
	h.removed = time.Now()
	return nil
}

func (h *looked) RemoveTraces(context.Context, string) error { return nil }

// The machine is looked at while it runs and in the end; whenever it has a way out, it is removed
// at once, whatever its work would come to.
func TestGuarded(t *testing.T) {
	leakAt := func(at int) func(n int) ([]string, error) {
		return func(n int) ([]string, error) {
			if n >= at {
				return []string{"network n of type user"}, nil
			}
			return nil, nil
		}
	}
	away := errors.New("no answer")
	for _, tt := range []struct {
		name    string
		look    func(n int) ([]string, error)
		takes   time.Duration
		work    error
		want    string // beginning of the verdict; "" is none
		looks   int    // that found nothing
		removed float64
	}{
		{"isolated", leakAt(1000), 0, nil, "", 50, 0},
		{"isolated, looks are slow", leakAt(1000), time.Second, nil, "", 6, 0},
		{"a check fails", leakAt(1000), 0, failed("check failed"), "check failed", 50, 0},
		{"leaks soon", leakAt(1), 0, nil, "the machine was not isolated, and was removed: network n", 0, 2},
		{"leaks later", leakAt(10), 0, nil, "the machine was not isolated, and was removed: network n", 9, 20},
		{"leaks in the end", leakAt(50), 0, nil, "the machine was not isolated, and was removed: network n", 49, 0},
		{"leaks, and a check fails", leakAt(50), 0, failed("check failed"), "the machine was not isolated", 49, 0},
		{"cannot be told for a while", func(n int) ([]string, error) {
			if n > 3 && n < 10 {
				return nil, away
			}
			return nil, nil
		}, 0, nil, "", 44, 0},
		{"cannot be told any more", func(n int) ([]string, error) {
			if n > 3 {
				return nil, away
			}
			return nil, nil
		}, 0, nil, "it cannot be told whether the machine is isolated: no answer", 3, 0},
		{"has ended", func(n int) ([]string, error) {
			if n > 3 {
				return nil, hypervisor.ErrNoMachine
			}
			return nil, nil
		}, 0, failed("the machine has ended by itself; it said why"), "the machine has ended by itself; it said why", 3,
			0},
		{"has ended unseen", func(n int) ([]string, error) {
			return nil, hypervisor.ErrNoMachine
		}, 0, nil, "the machine has ended by itself", 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &looked{look: tt.look, takes: tt.takes}
				r := newRun(nil, Request{Point: &point.RecoveryPoint{}}, Options{}.withDefaults())
				r.host = h
				began := time.Now()
				err := r.guarded(t.Context(), func(ctx context.Context) error {
					select {
					case <-ctx.Done():
						return ctx.Err()
					case <-time.After(99 * time.Second):
						return tt.work
					}
				})
				got := ""
				var f *failure
				if errors.As(err, &f) {
					got = f.reason
				} else if err != nil {
					t.Fatalf("no verdict but %v", err)
				}
				if tt.want == "" && got != "" || !strings.HasPrefix(got, tt.want) {
					t.Errorf("verdict %q, want %q", got, tt.want)
				}
				if i := r.res.Isolation; i.Checks != tt.looks ||
					(len(i.Found) > 0) != strings.Contains(tt.want, "not isolated") {
					t.Errorf("%+v, want %d looks", i, tt.looks)
				}
				if tt.removed == 0 && !h.removed.IsZero() ||
					tt.removed > 0 && h.removed.Sub(began).Seconds() != tt.removed {
					t.Errorf("removed after %v, want %v s", h.removed.Sub(began), tt.removed)
				}
			})
		})
	}
}

// An interrupted drill has no verdict.
func TestGuardedInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		r := newRun(nil, Request{Point: &point.RecoveryPoint{}}, Options{}.withDefaults())
		r.host = &looked{look: func(int) ([]string, error) { return nil, nil }}
		err := r.guarded(ctx, func(ctx context.Context) error {
			<-ctx.Done()
			return failed("a check failed: %v", ctx.Err())
		})
		var f *failure
		if !errors.Is(err, context.DeadlineExceeded) || errors.As(err, &f) {
			t.Errorf("%v", err)
		}
	})
}
