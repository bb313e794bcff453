package protect

import (
	"context"
	"fmt"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// Why a guest was not even asked to hold its writes. docs/manual/quiesce.md explains these and
// those of package guest.
const (
	reasonNotAsked  = "crash consistency was asked for, so the guest was left alone"
	reasonState     = "the machine is %s, so its guest cannot answer"
	reasonNoChannel = "the machine has no guest agent channel"
	reasonNoWay     = "there is no way to the guest agent"
)

// quiescence keeps the guest's writes back around the instant and knows which level of consistency
// came of it.
type quiescence struct {
	want    point.Consistency
	require bool
	guest   Guest // nil: the guest is not asked
	log     func(format string, args ...any)

	mu      sync.Mutex
	settled bool // the outcome is what the guest promised, or better known
	outcome guest.Outcome
}

// openQuiescence opens the guest of the machine, unless asking it would be pointless.
func (r *run) openQuiescence(ctx context.Context) (*quiescence, error) {
	q := &quiescence{want: r.req.Consistency, require: r.req.Require, log: r.Log}
	m := r.req.Machine
	switch {
	case q.want == point.Crash:
		q.settle(reasonNotAsked)
	case m.State != hypervisor.Running:
		q.settle(reasonState, m.State)
	case !m.Agent:
		q.settle(reasonNoChannel)
	case r.OpenGuest == nil:
		q.settle(reasonNoWay)
	default:
		g, err := r.OpenGuest(ctx, m, q.want)
		if err != nil {
			return nil, err
		}
		q.guest = g
	}
	if err := q.failure(); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func (q *quiescence) settle(format string, args ...any) {
	q.settled, q.outcome = true, guest.Outcome{Level: point.Crash, Reason: fmt.Sprintf(format, args...)}
}

func (q *quiescence) quiesce(ctx context.Context) error {
	if q.guest == nil {
		return nil
	}
	err := q.guest.Quiesce(ctx)
	q.take()
	if err != nil {
		return err
	}
	return q.failure()
}

func (q *quiescence) thaw(ctx context.Context) error {
	if q.guest == nil {
		return nil
	}
	err := q.guest.Thaw(ctx)
	q.take()
	if out := q.guest.Outcome(); out.Stuck != "" {
		q.log("the guest is not known to be released, its guard goes on trying: %s", out.Stuck)
	}
	return err
}

// take notes what the guest says came of it.
func (q *quiescence) take() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.settled, q.outcome = true, q.guest.Outcome()
}

// reached returns what came of it so far.
func (q *quiescence) reached() guest.Outcome {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.outcome
}

// failure returns ErrConsistency if the level is required and, as far as known, not reached.
func (q *quiescence) failure() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.require || !q.settled || q.outcome.Level.Rank() >= q.want.Rank() {
		return nil
	}
	return fmt.Errorf("%w: %s was asked for, %s reached: %s", ErrConsistency, q.want, q.outcome.Level, q.outcome.Reason)
}

func (q *quiescence) close() {
	if q.guest == nil {
		return
	}
	if err := q.guest.Close(); err != nil {
		q.log("let the guest go: %v", err)
	}
}
