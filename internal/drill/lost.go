package drill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// lostTime is how long a host may not be able to tell of the machine, as while its libvirtd is
// restarted, before the drill ends without a verdict.
const lostTime = time.Minute

// lost reports whether err says nothing of a machine, but that its host cannot be asked.
func lost(err error) bool { return errors.Is(err, hypervisor.ErrUnreachable) }

// persist does what asks the host, again and again while that cannot be asked.
func (r *run) persist(ctx context.Context, do func() error) error {
	began := r.o.Now()
	for {
		err := do()
		if !lost(err) || r.o.Now().Sub(began) > lostTime {
			return err
		}
		if err := r.pause(ctx); err != nil {
			return err
		}
	}
}

// absent takes note that the host did not tell of the machine. The error is for one that has not
// for too long.
func (r *run) absent(err error) error {
	now := r.o.Now()
	if r.lostAt.IsZero() {
		r.lostAt = now
		r.o.Log("%s does not tell of the machine, and is asked again: %v", r.note.Host, err)
	}
	if now.Sub(r.lostAt) > lostTime {
		return fmt.Errorf("look at the machine of the drill, again and again for %v: %w", lostTime, err)
	}
	return nil
}

// present takes note that the host did. The time that it did not is given to the machine.
func (r *run) present() {
	if !r.lostAt.IsZero() {
		r.away += r.o.Now().Sub(r.lostAt)
		r.lostAt = time.Time{}
	}
}

// late reports whether a machine that can be seen has had its time.
func (r *run) late(ctx context.Context, deadline time.Time) (bool, error) {
	if r.o.Now().Before(deadline.Add(r.away)) {
		return false, nil
	}
	r.watched = time.Time{}
	_, err := r.watch(ctx)
	return err == nil && r.lostAt.IsZero() && !r.o.Now().Before(deadline.Add(r.away)), err
}

// left returns how much time there is until a deadline, but at least some.
func (r *run) left(deadline time.Time, least time.Duration) time.Duration {
	return max(deadline.Add(r.away).Sub(r.o.Now()), least)
}
