package session

import (
	"context"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// span is the part of a batch within one leaf of the tree.
type span struct {
	seq        int64
	leaf       int64
	data, zero extent.Set
}

type leafResult struct {
	seq  int64
	leaf int64
	id   chunk.ID
}

// split cuts the batch into spans, in ascending order. Zeros are only looked at where the base has
// something: holes that stay holes cost nothing, however many they are.
func (p *put) split(ctx context.Context, out chan<- span) error {
	width := p.size * tree.FanOut
	s := splitter{out: out, data: cutter{slices.Clone(p.in.Data), width}, zero: cutter{slices.Clone(p.in.Zero), width}}
	within := func(first, count int64) bool {
		return touches(p.in.Zero, extent.Extent{Off: first * p.size, Len: count * p.size})
	}
	err := tree.Leaves(ctx, p.s, p.base, p.chunks, within, func(leaf int64, _ chunk.ID) error {
		if err := s.upTo(ctx, leaf); err != nil {
			return err
		}
		return s.send(ctx, leaf)
	})
	if err != nil {
		return fmt.Errorf("read the last point: %w", err)
	}
	return s.upTo(ctx, noLeaf)
}

// splitter hands out spans.
type splitter struct {
	out        chan<- span
	data, zero cutter
	seq        int64
}

// upTo sends the leaves before the given one that have data.
func (s *splitter) upTo(ctx context.Context, leaf int64) error {
	for next := s.data.leaf(); next < leaf; next = s.data.leaf() {
		if err := s.send(ctx, next); err != nil {
			return err
		}
	}
	return nil
}

func (s *splitter) send(ctx context.Context, leaf int64) error {
	s.zero.skip(leaf)
	sp := span{seq: s.seq, leaf: leaf, data: s.data.take(leaf), zero: s.zero.take(leaf)}
	s.seq++
	select {
	case s.out <- sp:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

const noLeaf = int64(1) << 62

// cutter takes a set apart leaf by leaf; the set is its own.
type cutter struct {
	rest  extent.Set
	width int64
}

func (c *cutter) leaf() int64 {
	if len(c.rest) == 0 {
		return noLeaf
	}
	return c.rest[0].Off / c.width
}

// skip drops what lies before leaf.
func (c *cutter) skip(leaf int64) {
	start := leaf * c.width
	for len(c.rest) > 0 && c.rest[0].Off < start {
		if e := c.rest[0]; e.End() > start {
			c.rest[0] = extent.Extent{Off: start, Len: e.End() - start}
			return
		}
		c.rest = c.rest[1:]
	}
}

func (c *cutter) take(leaf int64) extent.Set {
	end := (leaf + 1) * c.width
	var out extent.Set
	for len(c.rest) > 0 && c.rest[0].Off < end {
		e := c.rest[0]
		if e.End() <= end {
			out = append(out, e)
			c.rest = c.rest[1:]
			continue
		}
		out = append(out, extent.Extent{Off: e.Off, Len: end - e.Off})
		c.rest[0] = extent.Extent{Off: end, Len: e.End() - end}
	}
	return out
}

// touches says whether a set has any byte of e.
func touches(set extent.Set, e extent.Extent) bool {
	i, _ := slices.BinarySearchFunc(set, e.Off, func(s extent.Extent, off int64) int {
		if s.End() <= off {
			return -1
		}
		return 1
	})
	return i < len(set) && set[i].Off < e.End()
}
