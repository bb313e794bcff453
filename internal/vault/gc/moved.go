package gc

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// append appends the condemnation of the batch's packs, which adds the new ones. What it leaves
// out, as somebody counts on it by now, stays where it is, and its copies in the new packs are
// freed at once: nothing would ever free them otherwise.
func (w *rewriting) append(ctx context.Context) error {
	for i := range w.made {
		w.Index.Know(w.made[i].object, w.made[i].entries)
	}
	var said state.Condemn
	err := w.collector.append(ctx, func(ctx context.Context, s *state.State) ([]log.Op, error) {
		op, err := w.op(ctx, s)
		if err != nil {
			return nil, err
		}
		said = op
		return []log.Op{op.Op()}, nil
	})
	if err != nil {
		for i := range w.made {
			w.Index.Forget(w.made[i].object.ID)
		}
		return fmt.Errorf("condemn packs that were rewritten: %w", err)
	}
	is := map[log.ObjectID]bool{}
	for _, id := range said.Packs {
		is[id] = true
	}
	var condemned []state.Pack
	for _, p := range w.batch.packs {
		if is[p.Object.ID] {
			condemned = append(condemned, p)
		}
	}
	w.tally(w.batch, condemned)
	return nil
}

// op returns the condemnation as it may be said where the state is.
func (w *rewriting) op(ctx context.Context, s *state.State) (state.Condemn, error) {
	// All that lives in the packs moves, whatever copies there are elsewhere, so what others
	// condemned since the mark does not matter, but where it is of the same packs.
	op := state.Condemn{Recipes: w.recipes, Mark: w.mark.at, MarkAt: w.mark.count, Last: s.LastCondemn()}
	for i := range w.batch.packs {
		if id := w.batch.packs[i].Object.ID; !w.bad[id] {
			op.Packs = append(op.Packs, id)
		}
	}
	for i := range w.made {
		op.Added = append(op.Added, w.made[i].object)
	}
	if w.literals != nil {
		op.Added = append(op.Added, *w.literals)
	}
	if err := op.Prune(ctx, s); err != nil {
		return op, err
	}
	from := map[log.ObjectID]*state.Pack{}
	for _, id := range op.Packs {
		p, good, err := s.Pack(ctx, id)
		if err != nil {
			return op, err
		}
		if good {
			from[id] = &p
		}
	}
	for i := range w.made {
		op.Moved = append(op.Moved, w.made[i].moved(from))
	}
	return op, nil
}

// moved returns what is known of the rows of a new pack, where from is the packs that go.
func (m *made) moved(from map[log.ObjectID]*state.Pack) state.Moved {
	var shared, freed bitmap
	out := state.Moved{Pack: m.object.ID}
	for i := range m.rows {
		r := &m.rows[i]
		p := from[r.from.ID]
		if p != nil && bitmap(p.Shared).has(r.slot) {
			shared.set(uint32(i))
		}
		if p == nil || bitmap(p.Freed).has(r.slot) {
			freed.set(uint32(i))
			out.FreedBytes += uint64(r.Stored)
		}
	}
	out.Shared, out.Freed = shared, freed
	return out
}

// giveUp condemns what was written in vain, as an orphan, so that it may be deleted. Where it is
// not known whether an entry names it, or where even this cannot be said, it is left to whoever
// looks for orphans.
func (w *rewriting) giveUp(ctx context.Context, why error) error {
	if errors.Is(why, log.ErrInDoubt) || ctx.Err() != nil || len(w.begun) == 0 {
		return nil
	}
	op := state.Condemn{Orphans: true}
	for _, o := range w.begun {
		op.Packs, op.Parts = append(op.Packs, o.ID), append(op.Parts, o.Kind == log.Part)
	}
	all := op
	err := w.collector.append(ctx, func(ctx context.Context, s *state.State) ([]log.Op, error) {
		op := all
		if err := op.Prune(ctx, s); err != nil {
			return nil, err
		}
		return []log.Op{op.Op()}, nil
	})
	if errors.Is(err, state.ErrNoChange) {
		return nil
	}
	return err
}

// damaged notes that a pack cannot be read as it was written, and says so to all, unless it is that
// others condemned it.
func (c *collector) damaged(ctx context.Context, id log.ObjectID, why error) error {
	if err := c.Journal.Read(ctx); err != nil {
		return err
	}
	op := state.Damaged{Packs: []log.ObjectID{id}}
	good := false
	judge := func(ctx context.Context, s *state.State) (ops []log.Op, err error) {
		known := false
		if _, good, err = s.Good(ctx, id); err != nil || !good {
			return nil, err
		}
		if known, err = s.IsDamaged(ctx, id); err != nil || known {
			return nil, err
		}
		return []log.Op{op.Op()}, nil
	}
	var err error
	if c.o.DryRun {
		err = c.Journal.View(ctx, func(s *state.State) error {
			_, err := judge(ctx, s)
			return err
		})
	} else {
		err = c.append(ctx, judge)
	}
	if good {
		c.trouble("pack %s is damaged and left alone: %v", id, why)
	}
	return err
}
