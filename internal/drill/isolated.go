package drill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

const (
	lookEvery = 2 * time.Second  // between two looks for ways out, at least
	lookShare = 20               // looking takes one part of so many of the time, at most
	blindTime = 30 * time.Second // that a machine may run without a look that told something
)

// errEnded reports that the machine could not be looked at because it is not there any more.
var errEnded = errors.New("the machine has ended by itself")

// isolated looks for ways out of the machine. A *failure is a verdict.
func (r *run) isolated(ctx context.Context) error {
	err := r.persist(ctx, func() error { return r.lookOut(ctx) })
	var f *failure
	if err == nil || ctx.Err() != nil || errors.As(err, &f) || lost(err) {
		return err
	}
	if errors.Is(err, errEnded) {
		return failed("%v", errEnded)
	}
	return failed("it cannot be told whether the machine was isolated: %v", err)
}

// lookOut looks for ways out of the machine once, and counts it. A *failure is a way out.
func (r *run) lookOut(ctx context.Context) error {
	report, err := r.host.Isolation(ctx, r.machine())
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, hypervisor.ErrNoMachine):
		return errEnded
	case err != nil:
		return err
	}
	i := &r.res.Isolation
	i.Files, i.Sockets = report.Files, report.Sockets
	if !report.Isolated() {
		i.Found = report.Found
		return failed("the machine was not isolated, and was removed: %s", list(report.Found))
	}
	i.Checks++
	return nil
}

// guarded does work while another goroutine looks for ways out again and again, and looks once more
// in the end. A way out removes the machine at once, and the work's context ends. The verdict of a
// look goes before that of the work.
func (r *run) guarded(ctx context.Context, work func(ctx context.Context) error) error {
	working, leak := context.WithCancelCause(ctx)
	defer leak(nil)
	watching, enough := context.WithCancel(working)
	defer enough()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if err := r.keepLooking(watching); err != nil {
			leak(err)
		}
	}()
	err := work(working)
	enough()
	<-watched // until here the results of looks are that goroutine's
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var leaked *failure
	cause := context.Cause(working)
	switch {
	case errors.As(cause, &leaked):
		return leaked
	case cause != nil && !errors.Is(cause, context.Canceled): // it cannot be looked at any more
		return cause
	case lost(err):
		return err
	}
	if last := r.isolated(ctx); err == nil || len(r.res.Isolation.Found) > 0 {
		err = last
	}
	return err
}

// keepLooking looks for ways out until ctx ends, and then returns nil. It returns a *failure when
// the machine has a way out and was removed for it, or cannot be looked at any more.
func (r *run) keepLooking(ctx context.Context) error {
	began := r.o.Now()
	told := began
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(lookEvery, lookShare*r.o.Now().Sub(began))):
		}
		began = r.o.Now()
		err := r.lookOut(ctx)
		var leaked *failure
		switch {
		case err == nil:
			told = r.o.Now()
		case ctx.Err() != nil, errors.Is(err, errEnded): // what the machine has ended of, its work finds out
			return nil
		case errors.As(err, &leaked):
			r.o.Log("a way out of the machine was found: it is removed")
			return errors.Join(leaked, r.removeAtOnce(ctx))
		case lost(err) && r.o.Now().Sub(told) > lostTime:
			return fmt.Errorf("see that the machine is isolated, again and again for %v: %w", lostTime, err)
		case !lost(err) && r.o.Now().Sub(told) > blindTime:
			return failed("it cannot be told whether the machine is isolated: %v", err)
		}
	}
}

// removeAtOnce removes the machine, also when ctx has ended. What it could not do is done again
// when all is discarded.
func (r *run) removeAtOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTime)
	defer cancel()
	return r.note.removeMachine(ctx, r.host)
}
