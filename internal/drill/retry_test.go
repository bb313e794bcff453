package drill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/drill/inside"
	"github.com/holdfast-vm/holdfast/internal/drill/role"
	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// fakeGuest answers checks by their command lines: "after 3" passes at the third try, "never" not,
// "final" fails for good, "slow 7" takes seven seconds.
type fakeGuest struct {
	windows bool
	tries   map[string]int
	broken  error
}

func (g *fakeGuest) Windows() bool { return g.windows }

func (g *fakeGuest) Run(ctx context.Context, c inside.Command) (inside.Outcome, error) {
	text := c.Shown
	g.tries[text]++
	if g.broken != nil {
		return inside.Outcome{}, g.broken
	}
	var n int
	switch {
	case text == "never":
		return inside.Outcome{Status: 1, Output: "not yet\nsecond line"}, nil
	case text == "final":
		return inside.Outcome{Status: role.Final}, nil
	case strings.HasPrefix(text, "after "):
		fmt.Sscanf(text, "after %d", &n)
		if g.tries[text] < n {
			return inside.Outcome{Status: 9}, nil
		}
	case strings.HasPrefix(text, "slow "):
		fmt.Sscanf(text, "slow %d", &n)
		select {
		case <-ctx.Done():
			return inside.Outcome{}, fmt.Errorf("it does not end: %w", ctx.Err())
		case <-time.After(time.Duration(n) * time.Second):
		}
	}
	return inside.Outcome{}, nil
}

type fakeHost struct {
	Host
	name string
}

func (h fakeHost) Machines(context.Context) ([]hypervisor.Machine, error) {
	return []hypervisor.Machine{{Name: h.name, State: hypervisor.Running, Agent: true}}, nil
}

// agentHost is a host with one agent.
type agentHost struct {
	fakeHost
	agent hypervisor.Agent
}

func (h agentHost) OpenAgent(context.Context, hypervisor.Machine) (hypervisor.Agent, error) {
	return h.agent, nil
}

// Checks are tried until they pass, all of them, and none longer than there is time.
func TestChecks(t *testing.T) {
	for _, tt := range []struct {
		name, checks string
		guest        fakeGuest
		want         string // of the verdict; "" is verified
		seconds      float64
	}{
		{"all pass", "", fakeGuest{}, "", 0},
		{"later", "after 3,after 1", fakeGuest{}, "", 1},
		{"not in time", "never,after 2", fakeGuest{}, "1 of 3 checks failed: never (not yet)", 20},
		{"for good", "final,after 2", fakeGuest{}, "1 of 3 checks failed: final (exit status 3)", 0.5},
		{"hangs", "slow 1000", fakeGuest{},
			"1 of 2 checks failed: slow 1000 (it does not end: context deadline exceeded)", 20},
		{"slow", "slow 7", fakeGuest{}, "", 7},
		{"forbidden", "after 1", fakeGuest{broken: inside.ErrNoExec},
			"the checks could not be run: the guest agent runs no commands; allow guest-exec", 0},
		{"lost", "after 1", fakeGuest{broken: errors.New("gone")},
			"2 of 2 checks failed: file systems (gone); after 1 (gone)", 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				req := Request{Point: &point.RecoveryPoint{}, Timeout: 20 * time.Second}
				for _, c := range strings.FieldsFunc(tt.checks, func(r rune) bool { return r == ',' }) {
					req.Checks = append(req.Checks, role.Given(c))
				}
				r := newRun(nil, req, Options{}.withDefaults())
				r.note.Name = "m"
				r.host, r.disks = fakeHost{name: "m"}, &disks{ended: make(chan struct{})}
				r.started = time.Now()
				r.watched = r.started
				tt.guest.tries = map[string]int{}
				err := r.check(t.Context(), &tt.guest, r.started.Add(req.Timeout))
				got := ""
				if err != nil {
					got = err.Error()
				}
				if tt.want == "" && got != "" || !strings.HasPrefix(got, tt.want) {
					t.Errorf("verdict %q, want %q", got, tt.want)
				}
				if took := time.Since(r.started).Seconds(); took < tt.seconds || took > tt.seconds+1 {
					t.Errorf("it took %v s, want %v", took, tt.seconds)
				}
				for _, c := range r.res.Checks {
					if c.OK == strings.Contains(got, c.Name) && !strings.HasPrefix(got, "the checks could") {
						t.Errorf("%+v with the verdict %q", c, got)
					}
				}
			})
		})
	}
}

// An interrupted drill has no verdict.
func TestChecksInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		r := newRun(nil, Request{Point: &point.RecoveryPoint{}, Checks: []role.Check{role.Given("slow 1000")}},
			Options{}.withDefaults())
		r.started = time.Now()
		err := r.check(ctx, &fakeGuest{tries: map[string]int{}}, r.started.Add(time.Minute))
		var f *failure
		if !errors.Is(err, context.DeadlineExceeded) || errors.As(err, &f) {
			t.Errorf("%v", err)
		}
	})
}

// mute is a host of a guest that idles at its login, whose agent cannot be opened.
type mute struct {
	still
	err error
}

func (h mute) OpenAgent(context.Context, hypervisor.Machine) (hypervisor.Agent, error) {
	return nil, h.err
}

// A guest without an answer is told in words that people can act on: in the verdict on its drill,
// after all the time that it was given. What keeps us from asking it is told as it is.
func TestSilence(t *testing.T) {
	const silent = "the guest has not booted so far, or runs no agent; its console shows which"
	for _, tt := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("machine m: %w: %w", hypervisor.ErrNoAgent, guest.ErrSilent), silent},
		{fmt.Errorf("machine m: %w", hypervisor.ErrNoAgent), silent},
		{fmt.Errorf("sync: %w", guest.ErrSilent), silent},
		{errors.New("connect to /run/a: permission denied"), "connect to /run/a: permission denied"},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := mute{still{fakeHost{name: "m"}, func() []accel.Processor { return at(idle) },
				func() string { return "login:" }}, tt.err}
			r := newRun(nil, Request{Point: &point.RecoveryPoint{}, Timeout: time.Minute}, Options{}.withDefaults())
			r.note.Name, r.host, r.disks = "m", h, &disks{ended: make(chan struct{})}
			r.started = time.Now()
			var f *failure
			if err := r.ask(t.Context()); !errors.As(err, &f) {
				t.Fatalf("%v: no verdict: %v", tt.err, err)
			}
			if want := "the guest agent did not answer within 1m0s: " + tt.want; f.reason != want {
				t.Errorf("%v: the verdict is %q, want %q", tt.err, f.reason, want)
			}
			if waited := time.Since(r.started); waited < time.Minute {
				t.Errorf("%v: it was given up after %v", tt.err, waited)
			}
		})
	}
}
