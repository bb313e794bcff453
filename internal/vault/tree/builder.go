package tree

import (
	"context"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// Builder makes a new tree from an old one by replacing leaves in ascending order. It holds one
// node per level in memory and writes only inner nodes that changed. It is not safe for concurrent
// use.
type Builder struct {
	w      Writer
	levels int
	root   chunk.ID
	open   []*openNode // by level; open[0] is unused: leaves come finished
}

type openNode struct {
	node  Node
	index int64 // of the node among those of its level
	was   chunk.ID
	dirty bool
}

// NewBuilder begins with the tree base of a disk of chunks chunks; the zero ID is a disk of holes.
func NewBuilder(w Writer, base chunk.ID, chunks int64) *Builder {
	l := Levels(chunks)
	return &Builder{w: w, levels: l, root: base, open: make([]*openNode, l)}
}

// SetLeaf replaces leaf number index, which covers chunks [64·index, 64·index+64), by the node id;
// zero makes it a hole. Each index must be greater than the last.
func (b *Builder) SetLeaf(ctx context.Context, index int64, id chunk.ID) error {
	if b.levels == 1 {
		b.root = id
		return nil
	}
	if err := b.path(ctx, index); err != nil {
		return err
	}
	b.set(1, index, id)
	return nil
}

func (b *Builder) set(level int, child int64, id chunk.ID) {
	n := b.open[level]
	if slot := &n.node.Slots[child%FanOut]; *slot != id {
		*slot = id
		n.dirty = true
	}
}

// path opens the inner nodes above leaf index and closes those that it leaves.
func (b *Builder) path(ctx context.Context, leaf int64) error {
	at := make([]int64, b.levels)
	at[0] = leaf
	for l := 1; l < b.levels; l++ {
		at[l] = at[l-1] / FanOut
	}
	for l := b.levels - 1; l >= 1; l-- {
		if b.open[l] != nil && b.open[l].index != at[l] {
			if at[l] < b.open[l].index {
				return fmt.Errorf("leaf %d out of order", leaf)
			}
			if err := b.closeFrom(ctx, l); err != nil {
				return err
			}
		}
		if b.open[l] == nil {
			if err := b.openAt(ctx, l, at[l]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *Builder) openAt(ctx context.Context, level int, index int64) error {
	was := b.root
	if level < b.levels-1 {
		was = b.open[level+1].node.Slots[index%FanOut]
	}
	n := &openNode{index: index, was: was, node: Node{Level: level}}
	if !was.IsHole() {
		old, err := b.w.Node(ctx, was, level)
		if err != nil {
			return err
		}
		n.node = *old
	}
	b.open[level] = n
	return nil
}

// closeFrom finishes the open nodes of level and below, lowest first.
func (b *Builder) closeFrom(ctx context.Context, level int) error {
	for l := 1; l <= level; l++ {
		n := b.open[l]
		if n == nil {
			continue
		}
		b.open[l] = nil
		id := n.was
		if n.dirty {
			id = chunk.ID{}
			if n.node.Count() > 0 {
				var err error
				if id, err = b.w.PutNode(ctx, &n.node); err != nil {
					return err
				}
			}
		}
		if l == b.levels-1 {
			b.root = id
		} else {
			b.set(l+1, n.index, id)
		}
	}
	return nil
}

// Finish returns the root of the new tree; the zero ID is a disk of holes.
func (b *Builder) Finish(ctx context.Context) (chunk.ID, error) {
	if err := b.closeFrom(ctx, b.levels-1); err != nil {
		return chunk.ID{}, err
	}
	return b.root, nil
}
