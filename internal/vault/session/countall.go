package session

import (
	"context"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// countAll counts on a copy of everything that the trees of a point need, whatever was inherited.
// [ErrLost] says that something is nowhere.
func (s *Session) countAll(ctx context.Context, what *choice) error {
	if err := s.room.Journal.Read(ctx); err != nil {
		return err
	}
	if err := s.room.Index.Sync(ctx); err != nil {
		return err
	}
	err := s.room.Journal.View(ctx, func(st *state.State) (err error) {
		s.damaged, err = damagedPacks(ctx, st)
		return err
	})
	if err != nil {
		return err
	}
	if err := s.countWhole(ctx, what.whole); err != nil {
		return err
	}
	c := counting{Session: s, own: map[log.ObjectID]*bitmap{}}
	return c.trees(ctx, slices.DeleteFunc(slices.Clone(what.trees), func(t row.Tree) bool {
		return slices.Contains(what.whole, t)
	}))
}

// countWhole marks everything that trees need as shared.
func (s *Session) countWhole(ctx context.Context, trees []row.Tree) error {
	c := counting{Session: s}
	return c.trees(ctx, trees)
}

// counting is a countAll at work.
type counting struct {
	*Session
	own map[log.ObjectID]*bitmap // rows of own packs that are used at one place; nil: all are shared
}

func (c *counting) trees(ctx context.Context, trees []row.Tree) error {
	for _, t := range trees {
		if t.Root.IsHole() {
			continue
		}
		if err := c.node(ctx, t.Root, tree.Levels(t.Chunks)-1); err != nil {
			return fmt.Errorf("count what tree %s needs: %w", t.Root, err)
		}
	}
	return nil
}

// node counts a node and all below it.
func (c *counting) node(ctx context.Context, id chunk.ID, level int) error {
	if err := c.row(ctx, id); err != nil {
		return err
	}
	n, err := c.Node(ctx, id, level)
	if err != nil {
		return err
	}
	for _, child := range n.Slots {
		switch {
		case child.IsHole():
			continue
		case level > 0:
			err = c.node(ctx, child, level-1)
		default:
			err = c.row(ctx, child)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// row counts on a copy of a chunk or node: on one of the session's own if there is one.
func (c *counting) row(ctx context.Context, id chunk.ID) error {
	all, err := c.room.Index.FindAll(ctx, id)
	if err != nil {
		return err
	}
	var best *index.Loc
	for i := range all {
		if l := &all[i]; !c.skip(l) && (best == nil || c.owns(l.Pack.ID)) {
			best = l
		}
	}
	if best == nil {
		return fmt.Errorf("%w: %s is in no pack any more", ErrLost, id)
	}
	if c.own == nil || !c.owns(best.Pack.ID) {
		c.uses.share(best.Pack.ID, best.Slot)
		return nil
	}
	used := c.own[best.Pack.ID]
	if used == nil {
		used = &bitmap{}
		c.own[best.Pack.ID] = used
	}
	if !used.set(best.Slot) {
		c.uses.share(best.Pack.ID, best.Slot)
	}
	return nil
}
