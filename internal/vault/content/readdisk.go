package content

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// maxLeaves bounds the leaves that a disk keeps at hand: 2 KiB each, and at chunks of 64 KiB 4 MiB
// of the disk each.
const maxLeaves = 4096

// leafCache keeps leaves of a disk's tree by their place, so that a chunk's ID is found without
// descending. The zero value keeps none.
type leafCache []atomic.Pointer[cachedLeaf]

type cachedLeaf struct {
	index int64
	node  *tree.Node // nil where all is a hole
}

func newLeafCache(chunks int64) leafCache {
	return make(leafCache, min((chunks+tree.FanOut-1)/tree.FanOut, maxLeaves))
}

func (c leafCache) get(leaf int64) *cachedLeaf {
	if len(c) == 0 {
		return nil
	}
	if l := c[leaf%int64(len(c))].Load(); l != nil && l.index == leaf {
		return l
	}
	return nil
}

func (c leafCache) put(l *cachedLeaf) {
	if len(c) > 0 {
		c[l.index%int64(len(c))].Store(l)
	}
}

func (l *cachedLeaf) slot(at int64) chunk.ID {
	if l.node == nil {
		return chunk.ID{}
	}
	return l.node.Slots[at%tree.FanOut]
}

// ChunkSize returns the size of the disk's chunks in bytes.
func (d *Disk) ChunkSize() int64 { return int64(d.s.p.ChunkSize) }

// Chunks returns how many chunks the disk has, holes included.
func (d *Disk) Chunks() int64 { return d.chunks }

// Chunk returns the ID of chunk number at, which is the zero ID for a hole.
func (d *Disk) Chunk(ctx context.Context, at int64) (chunk.ID, error) {
	l, err := d.leaf(ctx, at/tree.FanOut)
	if err != nil {
		return chunk.ID{}, fmt.Errorf("look up chunk %d of the disk: %w", at, err)
	}
	return l.slot(at), nil
}

// CachedChunk is Chunk without asking the store; ok is false if that would be needed.
func (d *Disk) CachedChunk(at int64) (id chunk.ID, ok bool) {
	l := d.leaves.get(at / tree.FanOut)
	if l == nil {
		return chunk.ID{}, false
	}
	return l.slot(at), true
}

func (d *Disk) leaf(ctx context.Context, index int64) (*cachedLeaf, error) {
	if l := d.leaves.get(index); l != nil {
		return l, nil
	}
	n, _, err := tree.Leaf(ctx, d.s, d.root, d.chunks, index)
	if err != nil {
		return nil, err
	}
	l := &cachedLeaf{index: index, node: n}
	d.leaves.put(l)
	return l, nil
}

// Run is a range of a disk that is data or a hole throughout.
type Run struct {
	Len  int64 // bytes
	Hole bool
}

// maxStatusNodes is how many nodes one Status reads at most: the leaves of 4 GiB at chunks of 64
// KiB.
const maxStatusNodes = 1024

// Status returns what the disk holds from off on, as runs that take turns and begin at off. It
// reads only the tree's nodes of that range, and may cover less than n bytes where they are very
// many, but never nothing. The range must lie within the disk.
func (d *Disk) Status(ctx context.Context, off, n int64) ([]Run, error) {
	cs := d.ChunkSize()
	s := &statusWalk{d: d, lo: off / cs, hi: (off + n + cs - 1) / cs, left: maxStatusNodes}
	if _, err := s.walk(ctx, d.root, tree.Levels(d.chunks)-1, 0); err != nil {
		return nil, fmt.Errorf("look for holes from offset %d: %w", off, err)
	}
	return s.bytes(off, off+n), nil
}

// statusWalk gathers runs of chunks from lo to hi.
type statusWalk struct {
	d      *Disk
	lo, hi int64 // chunks
	left   int   // nodes that may still be read
	runs   []Run // of chunks
}

// walk adds the part of a subtree within the range, and reports whether there is room for more.
func (s *statusWalk) walk(ctx context.Context, id chunk.ID, level int, first int64) (more bool, err error) {
	span := tree.SpanOf(level)
	from, to := max(first, s.lo), min(first+span, s.hi)
	if from >= to {
		return true, nil
	}
	if id.IsHole() {
		s.add(to-from, true)
		return true, nil
	}
	if s.left == 0 {
		return false, nil
	}
	if level == 0 {
		return true, s.leaf(ctx, first, from, to)
	}
	n, err := s.d.s.Node(ctx, id, level)
	if err != nil {
		return false, err
	}
	step := span / tree.FanOut
	for i := (from - first) / step; i < tree.FanOut && first+i*step < to; i++ {
		if more, err := s.walk(ctx, n.Slots[i], level-1, first+i*step); err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

func (s *statusWalk) leaf(ctx context.Context, first, from, to int64) error {
	s.left--
	l, err := s.d.leaf(ctx, first/tree.FanOut)
	if err != nil {
		return err
	}
	for at := from; at < to; at++ {
		id := l.slot(at)
		s.add(1, id.IsHole())
	}
	return nil
}

func (s *statusWalk) add(chunks int64, hole bool) {
	if n := len(s.runs); n > 0 && s.runs[n-1].Hole == hole {
		s.runs[n-1].Len += chunks
		return
	}
	s.runs = append(s.runs, Run{Len: chunks, Hole: hole})
}

// bytes turns runs of chunks into runs of bytes within [off, end).
func (s *statusWalk) bytes(off, end int64) []Run {
	at, out := s.lo*s.d.ChunkSize(), s.runs[:0]
	for _, r := range s.runs {
		to := min(at+r.Len*s.d.ChunkSize(), end)
		out = append(out, Run{Len: to - max(at, off), Hole: r.Hole})
		at = to
	}
	return out
}
