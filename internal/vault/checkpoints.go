package vault

import (
	"context"
	"errors"
	"iter"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/mark"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// points checks that manifests can be read and that everything they need is in a good pack.
func (c *checker) points(ctx context.Context) error {
	before := len(c.report.Damage)
	for try := 0; ; try++ {
		lost, err := c.pointsOnce(ctx)
		again := errors.Is(err, index.ErrStale)
		if err == nil && lost > 0 { // or it was purged meanwhile
			again, err = c.v.moved(ctx, c.count)
		}
		if !again || try == maxStale {
			if err == nil && lost > 0 {
				c.damage("", "chunks, nodes and manifests that points need and no readable pack holds: %d", lost)
			}
			return err
		}
		c.report.Damage = c.report.Damage[:before]
	}
}

// pointsOnce returns of how much that points need no good pack has a whole copy, as far as that is
// seen without reading chunks.
func (c *checker) pointsOnce(ctx context.Context) (lost int, err error) {
	s := &surveyor{v: c.v, whole: true, bad: func(name string, err error) error {
		if !isDamage(err) {
			return err
		}
		c.damage("", "%s cannot be read whole: %v", name, err)
		return nil
	}}
	// Points before the index: what a point needs was there before the point was.
	if c.living, c.count, err = s.survey(ctx); err != nil {
		return 0, err
	}
	c.report.Points = len(c.living)
	snap, err := c.v.index.Snapshot(ctx)
	if err != nil {
		return 0, err
	}
	defer snap.Close()
	c.report.Warnings = c.report.Warnings[:0]
	for _, name := range c.v.index.Damaged() {
		c.warn("%s is damaged; the tables of its packs are used instead, and the next session writes it anew", name)
	}
	if err := c.suspect(ctx, snap); err != nil {
		return 0, err
	}
	_, err = mark.Mark(ctx, mark.Options{Rows: snap, Nodes: c.v.content, Points: c.needs(),
		Damaged: func(id log.ObjectID) bool { return c.badPacks[id] },
		Lost:    func(id chunk.ID, _ error) { lost++; c.bad[id] = true }})
	return lost, err
}

// suspect adds what the index knows to stand in packs that are missing, or not as their entries
// tell.
func (c *checker) suspect(ctx context.Context, snap *index.Snapshot) error {
	if len(c.suspects) == 0 {
		return nil
	}
	return snap.Each(ctx, func(l *index.Loc) bool {
		if c.suspects[l.Pack.ID] {
			c.bad[l.ID] = true
		}
		return true
	})
}

// needs yields what points need.
func (c *checker) needs() iter.Seq2[mark.Point, error] {
	return func(yield func(mark.Point, error) bool) {
		for _, p := range c.living {
			need := mark.Point{Manifest: p.manifest}
			for _, t := range p.trees {
				need.Trees = append(need.Trees, row.Tree{Root: t.root, Chunks: t.chunks})
			}
			if !yield(need, nil) {
				return
			}
		}
	}
}

// hits finds the ranges of disks that damage hits, where it hits every copy of a chunk.
func (c *checker) hits(ctx context.Context) error {
	for id := range c.bad {
		whole, err := c.readable(ctx, id)
		if err != nil {
			return err
		}
		if whole {
			delete(c.bad, id)
		}
	}
	if len(c.bad) == 0 {
		return nil
	}
	h := &hitter{c: c, clean: map[chunk.ID]bool{}}
	for _, p := range c.living {
		for _, t := range p.trees {
			ranges, err := h.of(ctx, t)
			if err != nil {
				return err
			}
			if len(ranges) > 0 {
				c.report.Hits = append(c.report.Hits, Hit{p.row.Point.ID, p.row.Point.VM, t.name, ranges})
			}
		}
	}
	return nil
}

// readable reports whether some copy of id is whole, as a chunk or as a node or manifest.
func (c *checker) readable(ctx context.Context, id chunk.ID) (bool, error) {
	size := chunk.MaxSize
	if loc, found, err := c.v.content.Find(ctx, id); err != nil {
		return false, err
	} else if found && loc.Kind == pack.Manifest {
		size = max(size, int(loc.Plain))
	}
	plain, err := c.v.content.Chunk(ctx, id, make([]byte, size))
	if isDamage(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return chunk.NewHasher(c.v.sec.chunks).ID(plain) == id || chunk.NewHasher(c.v.sec.nodes).ID(plain) == id, nil
}

// hitter goes over trees in search of what is damaged.
type hitter struct {
	c     *checker
	clean map[chunk.ID]bool // nodes with nothing damaged below

	tree   treeOf
	ranges []extent.Extent
}

// of returns the ranges of a tree that are below a damaged node or are a damaged chunk.
func (h *hitter) of(ctx context.Context, t treeOf) (extent.Set, error) {
	h.tree, h.ranges = t, nil
	err := h.walk(ctx, t.root, tree.Levels(t.chunks)-1, 0)
	return extent.Of(h.ranges...), err
}

func (h *hitter) add(first, count int64) {
	cs := int64(h.c.v.conf.ChunkSize)
	count = min(count, h.tree.chunks-first)
	h.ranges = append(h.ranges, extent.Extent{Off: first * cs, Len: min(count*cs, h.tree.size-first*cs)})
}

func (h *hitter) walk(ctx context.Context, id chunk.ID, level int, first int64) error {
	if id.IsHole() || h.clean[id] {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	span := tree.SpanOf(level)
	if h.c.bad[id] {
		h.add(first, span)
		return nil
	}
	n, err := h.c.v.content.Node(ctx, id, level)
	if isDamage(err) {
		h.add(first, span)
		return nil
	}
	if err != nil {
		return err
	}
	before := len(h.ranges)
	for i, child := range n.Slots {
		at := first + int64(i)*(span/tree.FanOut)
		if level > 0 {
			err = h.walk(ctx, child, level-1, at)
		} else if h.c.bad[child] {
			h.add(at, 1)
		}
		if err != nil {
			return err
		}
	}
	if len(h.ranges) == before {
		h.clean[id] = true
	}
	return nil
}
