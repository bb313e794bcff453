package gc

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

const (
	goneAtOnce = 1024 // objects that one gone entry tells of
	deleteWays = 8    // objects that are deleted at the same time
)

// deleteCondemned deletes the objects of condemned names, whoever condemned them, and says so.
func (c *collector) deleteCondemned(ctx context.Context) error {
	if c.o.DryRun {
		return nil
	}
	for {
		objects, err := c.condemned(ctx)
		if err != nil || len(objects) == 0 {
			return err
		}
		if err := each(ctx, deleteWays, objects, func(ctx context.Context, o log.Object) error {
			if err := c.Store.Delete(ctx, o.Name()); err != nil {
				return fmt.Errorf("delete %s: %w", o.Name(), err)
			}
			return nil
		}); err != nil {
			return err
		}
		if err := c.sayGone(ctx, objects); err != nil {
			return err
		}
		c.report.DeletedPacks += len(objects)
	}
}

// condemned returns some of those that may go, and notes what waits. What condemns them is
// confirmed in the same turn: others of this process may read on at any time, and what was only
// read may vanish.
func (c *collector) condemned(ctx context.Context) (objects []log.Object, err error) {
	var waiting []log.Object
	if err := c.Journal.Log(ctx, func(l *log.Log, s *state.State) error {
		if err := l.Confirm(ctx); err != nil {
			return err
		}
		objects, waiting = nil, nil
		if err := s.EachCondemned(ctx, func(o log.Object, waits bool) bool {
			if waits {
				waiting = append(waiting, o)
			} else {
				objects = append(objects, o)
			}
			return len(objects) < goneAtOnce
		}); err != nil {
			return err
		}
		pins, err := s.Pins(ctx)
		c.report.WaitingFor = nil
		for _, p := range pins {
			if len(waiting) > 0 {
				c.report.WaitingFor = append(c.report.WaitingFor, fmt.Sprintf("mirror %x", p.Mirror))
			}
		}
		return err
	}); err != nil {
		return nil, err
	}
	return objects, c.noteWaiting(ctx, waiting)
}

// noteWaiting says how much waits for mirrors.
func (c *collector) noteWaiting(ctx context.Context, waiting []log.Object) error {
	c.report.WaitingPacks, c.report.WaitingBytes = len(waiting), 0
	for _, o := range waiting {
		info, err := c.Store.Stat(ctx, o.Name())
		if errors.Is(err, blob.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at %s: %w", o.Name(), err)
		}
		c.report.WaitingBytes += info.Size
	}
	return nil
}

// sayGone tells that objects are gone. A store so full that this cannot be told has room now.
func (c *collector) sayGone(ctx context.Context, objects []log.Object) error {
	return c.append(ctx, func(ctx context.Context, s *state.State) ([]log.Op, error) {
		ids := make([]log.ObjectID, len(objects))
		for i := range objects {
			ids[i] = objects[i].ID
		}
		left, err := state.CheckGone(ctx, s, ids)
		if err != nil || len(left) == 0 {
			return nil, err
		}
		return []log.Op{state.Gone(left)}, nil
	})
}

// each calls do for all items, at most ways at a time, and returns the first error, after which no
// more are begun.
func each[T any](ctx context.Context, ways int, items []T, do func(context.Context, T) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	slots := make(chan struct{}, ways)
	for _, item := range items {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := do(ctx, item); err != nil {
				stop(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
