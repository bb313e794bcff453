package sweep

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// orphans looks for objects that are in no entry, and condemns those that were there for long
// enough. A commit that names one of them afterwards fails, so what an open session could still
// name needs no care here.
func (r *run) orphans(ctx context.Context) error {
	due, err := r.dueOrphans(ctx)
	if err != nil {
		return err
	}
	if err := r.condemn(ctx, due); err != nil {
		return err
	}
	if err := r.lookOn(ctx); err != nil {
		return fmt.Errorf("look for objects in no entry: %w", err)
	}
	r.report.Suspects = len(r.seen.Orphans)
	return nil
}

// lookOn lists the next names, if it is time for that.
func (r *run) lookOn(ctx context.Context) error {
	if r.Memory == nil { // nobody would know what was seen before
		return nil
	}
	now := r.Clock()
	if r.seen.After == "" {
		if r.seen.Ever && now.At-r.seen.Looked < r.Policy.Look {
			return nil
		}
		r.seen.Looked, r.seen.Ever = now.At, true
	}
	left := r.Policy.Names
	for _, prefix := range []string{"pack/", "part/"} { // in the order of their names
		after := ""
		if r.seen.After >= prefix {
			if after = r.seen.After; after >= prefix+"~" {
				continue
			}
		}
		var names []string
		for name, err := range blob.Names(ctx, r.Store, prefix, after) {
			if err != nil {
				return err
			}
			names = append(names, name)
			if len(names) == left {
				break
			}
		}
		if err := r.suspect(ctx, names); err != nil {
			return err
		}
		if left -= len(names); left == 0 {
			r.seen.After = names[len(names)-1]
			return nil
		}
	}
	r.seen.After = ""
	return nil
}

// suspect notes which of the names that were listed are in no entry. They were read before the
// state, so what was committed meanwhile is known there.
func (r *run) suspect(ctx context.Context, names []string) error {
	if err := r.Journal.Read(ctx); err != nil {
		return err
	}
	for len(names) > 0 {
		some := names[:min(len(names), atOnce)]
		names = names[len(some):]
		if err := r.Journal.View(ctx, func(s *state.State) error {
			for _, name := range some {
				o, ok := log.ParseObjectName(name)
				if !ok {
					continue
				}
				orphan, err := isOrphan(ctx, s, o.ID)
				if err != nil {
					return err
				}
				if orphan {
					r.since(r.seen.Orphans, name)
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// isOrphan reports whether a name is in no entry.
func isOrphan(ctx context.Context, s *state.State, id log.ObjectID) (bool, error) {
	if _, good, err := s.Good(ctx, id); err != nil || good {
		return false, err
	}
	condemned, err := s.IsCondemned(ctx, id)
	return !condemned, err
}

// dueOrphans returns those that were seen for long enough and are still there, and forgets those
// that are in an entry by now, or gone.
func (r *run) dueOrphans(ctx context.Context) (due []log.Object, err error) {
	for _, name := range slices.Sorted(maps.Keys(r.seen.Orphans)) {
		o, ok := log.ParseObjectName(name)
		orphan := false
		if ok {
			if err := r.Journal.View(ctx, func(s *state.State) (err error) {
				orphan, err = isOrphan(ctx, s, o.ID)
				return err
			}); err != nil {
				return nil, err
			}
		}
		if orphan && r.since(r.seen.Orphans, name) < r.Policy.Orphan {
			continue
		}
		if orphan {
			_, err := r.Store.Stat(ctx, name)
			if err != nil && !errors.Is(err, blob.ErrNotExist) {
				return nil, fmt.Errorf("look for object %s: %w", name, err)
			}
			orphan = err == nil
		}
		if !orphan {
			delete(r.seen.Orphans, name)
			continue
		}
		due = append(due, o)
	}
	return due, nil
}

// condemn condemns orphans by name. A collection deletes their objects.
func (r *run) condemn(ctx context.Context, due []log.Object) error {
	if r.dry {
		r.report.Orphans = len(due)
		return nil
	}
	for len(due) > 0 {
		some := due[:min(len(due), atOnce)]
		due = due[len(some):]
		n := 0
		_, err := r.Journal.Append(ctx, func(ctx context.Context, s *state.State) ([]log.Op, error) {
			c := state.Condemn{Orphans: true}
			for _, o := range some {
				c.Packs, c.Parts = append(c.Packs, o.ID), append(c.Parts, o.Kind == log.Part)
			}
			err := c.Prune(ctx, s)
			if n = len(c.Packs); errors.Is(err, state.ErrNoChange) {
				return nil, nil
			}
			return []log.Op{c.Op()}, err
		})
		if err != nil {
			return fmt.Errorf("condemn objects in no entry: %w", err)
		}
		r.report.Orphans += n
		r.Log("%d objects in no entry are condemned", n)
		for _, o := range some {
			delete(r.seen.Orphans, o.Name())
		}
	}
	return nil
}
