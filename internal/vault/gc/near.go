package gc

import (
	"bytes"
	"context"
	"errors"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// stillPending returns errStale if a purge is not as it was when its walk began: others came
// further, and what could not be read may be gone for that.
func (f *freeings) stillPending(ctx context.Context, p *state.Pending) error {
	if f.o.DryRun {
		return nil
	}
	if err := f.Journal.Read(ctx); err != nil {
		return err
	}
	return f.Journal.View(ctx, func(s *state.State) error {
		same := false
		err := s.Pending(ctx, func(q state.Pending) bool {
			same = q.ID == p.ID && q.At == p.At && bytes.Equal(q.Cursor, p.Cursor)
			return !same && q.At <= p.At
		})
		if err == nil && !same {
			err = errStale
		}
		return err
	})
}

// errStale reports that what was found out is not as it is any more.
var errStale = errors.New("others collected meanwhile")

// warm reads the nodes of several points at the same time, so that they are at hand when their
// walks come, one after the other. What goes wrong is left for those to find.
func (c *collector) warm(ctx context.Context, pending []state.Pending) error {
	if len(pending) < 2 {
		return nil
	}
	return each(ctx, walkWays, pending, func(ctx context.Context, p state.Pending) error {
		n := 0
		visit := func(place, chunk.ID) error {
			if n++; n > warmRows {
				return errFull
			}
			return nil
		}
		_ = c.walkPoint(ctx, &p, visit, func(error) {})
		return ctx.Err()
	})
}

// walkPoint visits what a purged point alone has, from its cursor on.
func (c *collector) walkPoint(ctx context.Context, p *state.Pending, visit func(place, chunk.ID) error,
	trouble func(error)) error {
	var near []state.Point
	if err := c.Journal.View(ctx, func(s *state.State) (err error) {
		near, err = s.Neighbours(ctx, p.ID, p.At)
		return err
	}); err != nil {
		return err
	}
	trees, err := c.Trees(ctx, &p.Point)
	if err != nil {
		return err
	}
	lines := map[row.Line][]row.Tree{}
	for i := range near {
		of, err := c.Trees(ctx, &near[i])
		if err != nil {
			return err // what it needs is not known
		}
		for _, t := range of {
			lines[t.Line] = append(lines[t.Line], t)
		}
	}
	w := walker{nodes: c.Nodes, from: p.Cursor, visit: visit, trouble: trouble}
	for i, t := range trees {
		if err := w.walk(ctx, i, t, lines[t.Line]); err != nil {
			return err
		}
	}
	if id, ok := c.Manifest(&p.Point); ok {
		return w.tell(place{tree: uint32(len(trees)), level: -1}, id)
	}
	return nil
}
