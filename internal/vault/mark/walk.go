package mark

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

const (
	// batch is how many nodes of a level are looked up and read at once, of whatever points.
	batch = 4096
	// finders is how many look-ups are under way at once: what counts is how far the store is.
	finders = 16
)

// walk visits every unique node once. Nodes wait by level until there is a batch of them; those of
// the lowest level go first, so that no level waits for more than a few.
type walk struct {
	o        *Options
	seen     bitset // by position
	node     func(ctx context.Context, n *tree.Node) error
	manifest func(ctx context.Context, id chunk.ID) error
	lost     func(id chunk.ID, why error) error // nil goes on
	waiting  [][]chunk.ID                       // by level
}

// run walks all points.
func (w *walk) run(ctx context.Context) error {
	for p, err := range w.o.Points {
		if err != nil {
			return err
		}
		if err := w.point(ctx, &p); err != nil {
			return err
		}
	}
	for level := len(w.waiting) - 1; level >= 0; level-- {
		if err := w.flush(ctx, level); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) point(ctx context.Context, p *Point) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !p.Manifest.IsHole() {
		if err := w.manifest(ctx, p.Manifest); err != nil {
			return err
		}
	}
	for _, t := range p.Trees {
		if err := w.add(ctx, t.Root, tree.Levels(t.Chunks)-1); err != nil {
			return err
		}
	}
	return nil
}

// add has a node wait.
func (w *walk) add(ctx context.Context, id chunk.ID, level int) error {
	if id.IsHole() {
		return nil
	}
	for len(w.waiting) <= level {
		w.waiting = append(w.waiting, nil)
	}
	w.waiting[level] = append(w.waiting[level], id)
	if len(w.waiting[level]) < batch {
		return nil
	}
	return w.flush(ctx, level)
}

// flush visits the nodes that wait in a level.
func (w *walk) flush(ctx context.Context, level int) error {
	ids := w.waiting[level]
	w.waiting[level] = nil
	at, err := w.places(ctx, ids)
	if err != nil {
		return err
	}
	nodes, errs := w.o.Nodes.ReadNodes(ctx, at, level)
	for i, n := range nodes {
		if errs[i] != nil {
			err = w.unread(at[i].ID, errs[i])
		} else {
			err = w.visit(ctx, n)
		}
		if err != nil {
			return err
		}
	}
	w.waiting[level] = slices.Grow(w.waiting[level], cap(ids))
	return nil
}

func (w *walk) visit(ctx context.Context, n *tree.Node) error {
	if err := w.node(ctx, n); err != nil || n.Level == 0 {
		return err
	}
	for _, child := range n.Slots {
		if err := w.add(ctx, child, n.Level-1); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) unread(id chunk.ID, err error) error {
	if !content.IsDamage(err) {
		return err
	}
	return w.lost(id, fmt.Errorf("%w: node %s: %w", content.ErrCorrupt, id, err))
}

// places returns where those of the nodes are that were not seen before.
func (w *walk) places(ctx context.Context, ids []chunk.ID) ([]index.Loc, error) {
	slices.SortFunc(ids, compare)
	ids = slices.Compact(ids)
	found := make([]index.Loc, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	each := (len(ids) + finders - 1) / finders
	for from := 0; from < len(ids); from += each {
		to := min(from+each, len(ids))
		g.Go(func() error { return w.find(gctx, ids[from:to], found[from:to]) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	at := found[:0]
	for i, l := range found {
		if l.Pos < 0 {
			if err := w.lost(ids[i], noPlace(ids[i])); err != nil {
				return nil, err
			}
		} else if w.seen.set(l.Pos) {
			at = append(at, l)
		}
	}
	return at, nil
}

// find looks nodes up; the position of one that is nowhere is -1.
func (w *walk) find(ctx context.Context, ids []chunk.ID, found []index.Loc) error {
	for i, id := range ids {
		l, ok, err := w.o.best(ctx, id)
		if err != nil {
			return err
		}
		if found[i] = l; !ok {
			found[i].Pos = -1
		}
	}
	return nil
}
