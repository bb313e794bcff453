// Package mark finds out which rows of packs living points need.
//
// It walks every unique tree node once, and notes a bit for each row of an index. Of a chunk that
// several packs have, one copy counts, which everybody who marks by the same index and knows the
// same packs for damaged chooses alike. Memory is a bit for each row and what [Options] allows,
// however many points there are.
//
// Nodes are looked up one by one; chunks, of which there are 64 times as many, are gathered in a
// set and found by going over the whole index, which is in the order of their IDs and on a disk.
package mark

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Rows is an index as it was at one moment; an index.Snapshot is.
type Rows interface {
	Positions() int64
	FindAll(ctx context.Context, id chunk.ID) ([]index.Loc, error)
	Each(ctx context.Context, do func(*index.Loc) bool) error
}

// Nodes reads tree nodes; a content.Source does.
type Nodes interface {
	ReadNodes(ctx context.Context, at []index.Loc, level int) ([]*tree.Node, []error)
}

// Point is what a walk must know of a point.
type Point struct {
	Trees    []row.Tree
	Manifest chunk.ID // zero for one that is in no pack
}

// Options says what to mark. Rows, Nodes and Points must be set; the zero value of each other field
// is its default.
type Options struct {
	Rows   Rows
	Nodes  Nodes
	Points iter.Seq2[Point, error] // may be gone over twice; an error ends the mark
	// Damaged reports whether a pack is known to be damaged: of several copies one in another
	// counts.
	Damaged func(log.ObjectID) bool
	// Lost is told of every node, chunk and manifest that no good pack has or, with why, that
	// cannot be read; a chunk or node only once. The mark goes on. nil makes each of that an error
	// that matches content.ErrCorrupt.
	Lost     func(id chunk.ID, why error)
	Memory   int64                     // bytes for the set of chunks; 0 means 64 MiB
	Progress func(nodes, chunks int64) // that were gone through so far; nil discards
}

// defaultMemory holds 6.7 million chunks: an index of 10 million is gone over twice.
const defaultMemory = 64 << 20

// Mark marks what points need. It returns index.ErrStale if the index was rewritten meanwhile: take
// another one and mark again.
func Mark(ctx context.Context, o Options) (*Live, error) {
	if o.Memory <= 0 {
		o.Memory = defaultMemory
	}
	m := &marker{o: &o, live: newLive(o.Rows), chunks: newIDSet(o.Memory), lost: map[chunk.ID]bool{},
		gone: map[uint64]bool{}}
	if err := m.mark(ctx); err != nil {
		return nil, fmt.Errorf("mark what points need: %w", err)
	}
	return m.live, nil
}

// marker is a Mark under way.
type marker struct {
	o      *Options
	live   *Live
	chunks *idSet
	lost   map[chunk.ID]bool // told already
	gone   map[uint64]bool   // keys of chunks that are in no good pack

	nodesDone, chunksDone int64
}

func (m *marker) mark(ctx context.Context) error {
	w := &walk{o: m.o, seen: m.live.bits, node: m.gather, manifest: m.manifest, lost: m.tell}
	if err := w.run(ctx); err != nil {
		return err
	}
	if err := m.settle(ctx); err != nil || len(m.gone) == 0 {
		return err
	}
	return m.nameGone(ctx)
}

// gather adds the chunks of a leaf to the set.
func (m *marker) gather(ctx context.Context, n *tree.Node) error {
	m.nodesDone++
	if n.Level > 0 {
		return nil
	}
	for i := range n.Slots {
		if n.Slots[i].IsHole() {
			continue
		}
		m.chunksDone++
		if !m.chunks.add(&n.Slots[i]) {
			continue
		}
		if m.chunks.full() {
			if err := m.settle(ctx); err != nil {
				return err
			}
		}
	}
	m.progress()
	return nil
}

// manifest marks a manifest.
func (m *marker) manifest(ctx context.Context, id chunk.ID) error {
	l, ok, err := m.o.best(ctx, id)
	if err != nil {
		return err
	}
	if !ok {
		return m.tell(id, noPlace(id))
	}
	m.live.bits.set(l.Pos)
	return nil
}

func (m *marker) progress() {
	if m.o.Progress != nil && m.nodesDone%64 == 0 {
		m.o.Progress(m.nodesDone, m.chunksDone)
	}
}

// settle marks the rows of the chunks that were gathered, and forgets them.
func (m *marker) settle(ctx context.Context) error {
	if m.chunks.n == 0 {
		return nil
	}
	var twice []chunk.ID // of which there are several rows
	err := m.o.Rows.Each(ctx, func(l *index.Loc) bool {
		known, again := m.chunks.find(&l.ID)
		if again {
			twice = append(twice, l.ID)
		} else if known {
			m.live.bits.set(l.Pos)
		}
		return ctx.Err() == nil
	})
	if err = errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	for _, id := range twice {
		if err := m.markBest(ctx, id); err != nil {
			return err
		}
	}
	m.chunks.unfound(func(key uint64) { m.gone[key] = true })
	m.chunks.clear()
	return nil
}

// markBest marks one of several copies, and no other.
func (m *marker) markBest(ctx context.Context, id chunk.ID) error {
	all, err := m.o.Rows.FindAll(ctx, id)
	if err != nil || len(all) == 0 {
		return err
	}
	for i := range all {
		m.live.bits.clear(all[i].Pos)
	}
	m.live.bits.set(all[m.o.choose(all)].Pos)
	return nil
}

// nameGone walks once more to find the whole IDs of the chunks that are in no good pack.
func (m *marker) nameGone(ctx context.Context) error {
	w := &walk{o: m.o, seen: newBits(m.o.Rows.Positions()), lost: m.tell}
	w.node = func(_ context.Context, n *tree.Node) error {
		for _, id := range n.Slots {
			if n.Level == 0 && !id.IsHole() && m.gone[keyOf(&id)] {
				if err := m.tell(id, noPlace(id)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	w.manifest = func(context.Context, chunk.ID) error { return nil }
	return w.run(ctx)
}

// tell tells of what is lost, once.
func (m *marker) tell(id chunk.ID, why error) error {
	if m.o.Lost == nil {
		return why
	}
	if !m.lost[id] {
		m.lost[id] = true
		m.o.Lost(id, why)
	}
	return nil
}

func noPlace(id chunk.ID) error {
	return fmt.Errorf("%w: %s is in no pack", content.ErrCorrupt, id)
}
