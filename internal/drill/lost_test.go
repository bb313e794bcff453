package drill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/drill/role"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/isolation"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// away is a host that cannot be asked for a while: its libvirtd is restarted. Its guest is well
// all the time.
type away struct {
	Host
	from, until time.Time
	err         error // of asking meanwhile
	boots       time.Time
	opens       bool // the agent's channel can be opened meanwhile
}

func (h *away) ask() error {
	if now := time.Now(); now.Before(h.from) || !now.Before(h.until) {
		return nil
	}
	return h.err
}

func (h *away) Machines(context.Context) ([]hypervisor.Machine, error) {
	return []hypervisor.Machine{{Name: "m", State: hypervisor.Running, Agent: true}}, h.ask()
}

func (h *away) Isolation(context.Context, hypervisor.Machine) (isolation.Report, error) {
	if err := h.ask(); lost(err) {
		return isolation.Report{}, err
	}
	return isolation.Report{}, nil
}

func (h *away) SerialText(context.Context, hypervisor.Machine, int64) (string, error) {
	return "", h.ask()
}
func (h *away) Processors(context.Context, hypervisor.Machine) ([]accel.Processor, error) {
	return nil, h.ask()
}
func (h *away) Release(context.Context, hypervisor.Machine) error { return h.ask() }
func (h *away) Remove(context.Context, hypervisor.Machine) error  { return h.ask() }
func (h *away) RemoveTraces(context.Context, string) error        { return nil }

func (h *away) OpenAgent(context.Context, hypervisor.Machine) (hypervisor.Agent, error) {
	if time.Now().Before(h.boots) {
		return nil, hypervisor.ErrNoAgent
	}
	if h.opens {
		return awayAgent{h}, nil
	}
	return awayAgent{h}, h.ask()
}

type awayAgent struct{ h *away }

func (a awayAgent) Close() error { return nil }

func (a awayAgent) Command(_ context.Context, name string, _ any) ([]byte, error) {
	if err := a.h.ask(); err != nil {
		return nil, err
	}
	switch name {
	case "guest-exec":
		return []byte(`{"pid":7}`), nil
	case "guest-exec-status":
		return []byte(`{"exited":true,"exitcode":0}`), nil
	}
	return json.Marshal(map[string]string{"id": "debian"})
}

// A host that cannot be asked says nothing of the machine: a drill looks again until it can, and
// only if that takes too long ends, without a verdict. That the machine is gone only the host says.
func TestHostIsAway(t *testing.T) {
	lost := fmt.Errorf("look up m: %w: connection to libvirtd is closed", hypervisor.ErrUnreachable)
	odd, gone := errors.New("internal error"), fmt.Errorf("%w: m", hypervisor.ErrNoMachine)
	for _, tt := range []struct {
		name    string
		from    time.Duration // after the start
		takes   time.Duration
		err     error
		opens   bool
		want    string // of the error; "" is verified
		verdict bool
	}{
		{"while it boots", time.Second, 20 * time.Second, lost, false, "", false},
		{"when the guest is asked", time.Second, 20 * time.Second, lost, true, "", false},
		{"before it is let go", 0, 20 * time.Second, lost, false, "", false},
		{"past the deadline", time.Second, 40 * time.Second, lost, false, "", false},
		{"for good", time.Second, time.Hour, lost, false, "the host cannot be asked", false},
		{"for good, when the guest is asked", time.Second, time.Hour, lost, true, "the host cannot be asked", false},
		{"for good, before it is let go", 0, time.Hour, lost, false, "the host cannot be asked", false},
		{"an odd answer", time.Second, 20 * time.Second, odd, false, "", false},
		{"an odd answer for good", time.Second, time.Hour, odd, false, "internal error", false},
		{"the machine is gone", time.Second, time.Hour, gone, false, "the machine has ended by itself", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				now := time.Now()
				h := &away{from: now.Add(tt.from), until: now.Add(tt.from + tt.takes), err: tt.err,
					boots: now.Add(5 * time.Second), opens: tt.opens}
				r := newRun(nil, Request{Point: &point.RecoveryPoint{}, Timeout: 30 * time.Second,
					Checks: []role.Check{role.Given("true")}}, Options{}.withDefaults())
				r.note.Name, r.note.Host, r.started, r.watched = "m", "qemu:///x", now, now
				r.host, r.disks, r.place = h, &disks{ended: make(chan struct{})}, &place{}
				err := r.release(t.Context())
				if err == nil {
					err = r.guarded(t.Context(), r.ask)
				}
				var f *failure
				switch {
				case tt.want == "" && err != nil:
					t.Errorf("%v (%+v)", err, r.res.Checks)
				case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
					t.Errorf("error %v, want %q", err, tt.want)
				case errors.As(err, &f) != tt.verdict:
					t.Errorf("%v is a verdict: %v", err, !tt.verdict)
				}
				if took := time.Since(now); took > 3*time.Minute {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}
