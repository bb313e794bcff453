package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/signal"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// GuardSpec says which guest to quiesce and how.
type GuardSpec struct {
	Machine string            `json:"machine"` // unique on this host, such as URI and name: names the note that the guest is held
	Agent   string            `json:"agent"`   // tells the opener of the guard process which agent to open
	Want    point.Consistency `json:"want"`
	Limits  Limits            `json:"limits"`
}

// What the two processes say to each other: JSON, one message a line.
type (
	request struct {
		Do       string     `json:"do"` // begin, quiesce, thaw
		Spec     *GuardSpec `json:"spec,omitempty"`
		StateDir string     `json:"state_dir,omitempty"`
	}
	reply struct {
		Now     string             `json:"now"` // ready, held, over
		Outcome Outcome            `json:"outcome"`
		Guest   *point.GuestReport `json:"guest,omitempty"`
	}
)

const (
	doBegin   = "begin"
	doQuiesce = "quiesce"
	doThaw    = "thaw"

	nowReady = "ready" // prepared; the level is not known yet
	nowHeld  = "held"  // the level is what the thaw will confirm
	nowOver  = "over"  // the outcome is final; Stuck says whether the guest is released

	idleTime     = 2 * time.Second  // that an agent is kept open before the guest is to be held
	leftoverTime = 10 * time.Second // for the release of a guest that an earlier attempt left held
)

// OpenAgent opens the agent that a [GuardSpec] names.
type OpenAgent func(ctx context.Context, agent string) (hypervisor.Agent, error)

// GuardMain is the guard process: it takes requests from in and answers on out. The guest is
// released when it is told to, when in ends, which is when the process that wanted the point is
// dead, when the time to hold is over, which it also is if that process was stopped, when ctx ends,
// and on SIGTERM. It returns when the guest is released or could not be within Limits.Retry; then
// the note stays for [ThawLeftover]. It ignores SIGINT, SIGHUP and SIGPIPE for the whole process,
// for a guard must outlive its terminal and its parent.
func GuardMain(ctx context.Context, in io.Reader, out io.Writer, open OpenAgent) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	enc := json.NewEncoder(out)
	say := func(r reply) { _ = enc.Encode(r) } // whether anybody listens makes no difference to the guest
	return guard(ctx, in, say, open)
}

// guard runs one quiesce as requests tell.
func guard(ctx context.Context, in io.Reader, say func(reply), open OpenAgent) error {
	dec := json.NewDecoder(in)
	var first request
	if err := dec.Decode(&first); err != nil {
		return fmt.Errorf("guard: read what to do: %w", err)
	}
	if first.Do != doBegin || first.Spec == nil {
		return fmt.Errorf("guard: asked to %q before %q", first.Do, doBegin)
	}
	requests, alive := pump(ctx, dec)
	a := newAttempt(*first.Spec, first.StateDir, open)
	defer a.close()

	report := a.begin(alive, first)
	if a.settled() {
		say(reply{Now: nowOver, Outcome: a.out, Guest: report})
		return nil
	}
	say(reply{Now: nowReady, Outcome: a.out, Guest: report})
	if !a.awaitQuiesce(alive, requests) {
		a.crash(reasonNeverAsked)
		say(reply{Now: nowOver, Outcome: a.out})
		return nil
	}
	return a.run(alive, requests, say)
}

// begin does what can be done before the guest is held, a leftover of an earlier attempt first.
func (a *attempt) begin(ctx context.Context, first request) *point.GuestReport {
	thaw, cancel := context.WithTimeout(ctx, leftoverTime)
	defer cancel()
	if _, err := ThawLeftover(thaw, a.open, first.StateDir, first.Spec.Machine); err != nil {
		a.crash(reasonLeftHeld, err)
		return nil
	}
	return a.prepare(ctx)
}

// run holds the guest and releases it. alive ends when nobody waits for the instant any more.
func (a *attempt) run(alive context.Context, requests <-chan string, say func(reply)) error {
	a.hold(alive)
	if !a.settled() {
		timeUp := time.After(a.limits.Hold)
		say(reply{Now: nowHeld, Outcome: a.out})
		a.awaitThaw(alive, requests, timeUp)
	}
	err := a.release(alive)
	if err == nil {
		say(reply{Now: nowOver, Outcome: a.out})
		return nil
	}
	a.crash(reasonNotReleased, err)
	say(reply{Now: nowOver, Outcome: a.out})
	err = a.releaseUntil(alive)
	say(reply{Now: nowOver, Outcome: a.out})
	return err
}

// awaitQuiesce returns whether the guest is to be held. Until it is, others may want to talk to the
// agent, whose socket takes one client.
func (a *attempt) awaitQuiesce(alive context.Context, requests <-chan string) bool {
	idle := time.After(idleTime)
	for {
		select {
		case what := <-requests:
			return what == doQuiesce
		case <-idle:
			a.close()
		case <-alive.Done():
			return false
		}
	}
}

// awaitThaw returns when the guest must be released, and settles the level if that is not because
// the instant was taken.
func (a *attempt) awaitThaw(alive context.Context, requests <-chan string, timeUp <-chan time.Time) {
	select {
	case <-timeUp:
		a.crash(reasonTimeUp, a.limits.Hold)
	case what := <-requests:
		if what != doThaw {
			a.crash(reasonReleased)
		}
	case <-alive.Done():
		select {
		case what := <-requests: // the last word of a process that has closed the pipe since
			if what == doThaw {
				return
			}
		default:
		}
		a.crash(reasonReleased)
	}
}

func newAttempt(spec GuardSpec, stateDir string, open OpenAgent) *attempt {
	a := &attempt{want: spec.Want, limits: spec.Limits}
	a.open = func(ctx context.Context) (hypervisor.Agent, error) { return open(ctx, spec.Agent) }
	var note *claim
	a.claim = func() (err error) {
		note, err = newClaim(stateDir, Leftover{Machine: spec.Machine, Agent: spec.Agent, Since: time.Now().UTC()})
		if errors.Is(err, fs.ErrExist) {
			return ErrHeldByUs
		}
		return err
	}
	a.dismiss = func() error { return note.remove(claimFile(stateDir, spec.Machine)) }
	return a
}

// pump reads requests until there are no more, which ends the context it returns.
func pump(ctx context.Context, dec *json.Decoder) (<-chan string, context.Context) {
	requests := make(chan string, 4)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		for {
			var r request
			if dec.Decode(&r) != nil {
				return
			}
			select {
			case requests <- r.Do:
			case <-ctx.Done():
				return
			}
		}
	}()
	return requests, ctx
}
