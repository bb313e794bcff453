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

// hold keeps the guest's writes back around the instant and knows which level of consistency came
// of it.
type hold struct {
	want    point.Consistency
	require bool
	guest   Guest // nil: the guest is not asked
	log     func(format string, args ...any)

	mu      sync.Mutex
	settled bool // the outcome is what the guest promised, or better known
	outcome guest.Outcome
}

// openHold opens the guest of the machine, unless there is no use in asking it.
func (r *run) openHold(ctx context.Context) (*hold, error) {
	h := &hold{want: r.req.Consistency, require: r.req.Require, log: r.Log}
	m := r.req.Machine
	switch {
	case h.want == point.Crash:
		h.settle(reasonNotAsked)
	case m.State != hypervisor.Running:
		h.settle(reasonState, m.State)
	case !m.Agent:
		h.settle(reasonNoChannel)
	case r.OpenGuest == nil:
		h.settle(reasonNoWay)
	default:
		g, err := r.OpenGuest(ctx, m, h.want)
		if err != nil {
			return nil, err
		}
		h.guest = g
	}
	if err := h.failure(); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *hold) settle(format string, args ...any) {
	h.settled, h.outcome = true, guest.Outcome{Level: point.Crash, Reason: fmt.Sprintf(format, args...)}
}

func (h *hold) quiesce(ctx context.Context) error {
	if h.guest == nil {
		return nil
	}
	err := h.guest.Quiesce(ctx)
	h.take()
	if err != nil {
		return err
	}
	return h.failure()
}

func (h *hold) thaw(ctx context.Context) error {
	if h.guest == nil {
		return nil
	}
	err := h.guest.Thaw(ctx)
	h.take()
	if out := h.guest.Outcome(); out.Stuck != "" {
		h.log("the guest is not known to be released, its guard goes on trying: %s", out.Stuck)
	}
	return err
}

// take notes what the guest says came of it.
func (h *hold) take() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.settled, h.outcome = true, h.guest.Outcome()
}

// reached returns what came of it so far.
func (h *hold) reached() guest.Outcome {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.outcome
}

// failure returns ErrConsistency if the level is required and, as far as known, not reached.
func (h *hold) failure() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.require || !h.settled || h.outcome.Level.Rank() >= h.want.Rank() {
		return nil
	}
	return fmt.Errorf("%w: %s was asked for, %s reached: %s", ErrConsistency, h.want, h.outcome.Level, h.outcome.Reason)
}

func (h *hold) close() {
	if h.guest == nil {
		return
	}
	if err := h.guest.Close(); err != nil {
		h.log("let the guest go: %v", err)
	}
}
