package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	drainTime  = 15 * time.Second // that a machine may stand still for what is left to copy
	drainPause = 20 * time.Millisecond
)

// ErrNotDrained reports that something was left to copy of a machine that stands still.
var ErrNotDrained = errors.New("the copies did not come to their end")

// Drain waits until the copies of a machine that stands still have nothing left to copy, so that
// completing them needs nothing of the export any more, which may end at any moment. Copies that do
// not run are left alone. It returns the error that a copy met, or [ErrNotDrained], which it does
// at once for a copy that is not Ready. The machine is the caller's to continue.
func Drain(ctx context.Context, h Hydrator, m Machine, targets []HydrationTarget) error {
	ctx, cancel := context.WithTimeoutCause(ctx, drainTime, ErrNotDrained)
	defer cancel()
	for {
		left, err := leftToCopy(ctx, h, m, targets)
		if err != nil || left == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %d bytes are left", context.Cause(ctx), left)
		case <-time.After(drainPause):
		}
	}
}

// leftToCopy returns how many bytes the copies that run have left.
func leftToCopy(ctx context.Context, h Hydrator, m Machine, targets []HydrationTarget) (left int64, err error) {
	for _, t := range targets {
		now, err := h.Hydration(ctx, m, t)
		if err == nil {
			err = now.Err
		}
		if err == nil && now.Running && !now.Ready {
			err = ErrNotDrained
		}
		if err != nil {
			return left, fmt.Errorf("disk %s: %w", t.Disk, err)
		}
		if now.Running {
			left += now.Total - now.Done
		}
	}
	return left, nil
}
