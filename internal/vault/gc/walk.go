package gc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// place is where a point has a node or a chunk. Places are in the order of a walk: a node comes
// before what is below it.
type place struct {
	tree  uint32 // number among the point's; beyond them stands its manifest
	first int64  // chunk of the disk with which it begins
	level int    // of a node; -1 for a chunk
}

const cursorSize = 4 + 8 + 1

// cursor returns the place as bytes in the order of places.
func (p place) cursor() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, cursorSize), p.tree)
	b = binary.BigEndian.AppendUint64(b, uint64(p.first))
	return append(b, byte(0xff-(p.level+1)))
}

// side is a subtree of a neighbour: of a disk that is smaller its level may be below that of the
// place at which it is compared; then it stands at the first child.
type side struct {
	id    chunk.ID
	level int
}

// child is the i-th subtree of s seen from a node of level.
func (s side) child(n *tree.Node, level, i int) side {
	switch {
	case s.level == level:
		return side{n.Slots[i], level - 1}
	case i == 0:
		return s
	}
	return side{}
}

// walker finds what a point has and none of its neighbours has at that place.
type walker struct {
	nodes   tree.Reader
	from    []byte // cursor: all up to it was told already
	visit   func(at place, id chunk.ID) error
	trouble func(err error) // part of a neighbour cannot be read
}

// walk visits what the tree number n of a point has alone. An error for which isDamage is true says
// that the tree itself cannot be read.
func (w *walker) walk(ctx context.Context, n int, t row.Tree, near []row.Tree) error {
	top := tree.Levels(t.Chunks) - 1
	var sides []side
	for _, t := range near {
		s := side{t.Root, tree.Levels(t.Chunks) - 1}
		for s.level > top && !s.id.IsHole() {
			node, err := w.nodes.Node(ctx, s.id, s.level)
			if isDamage(err) {
				w.trouble(err)
				return nil
			}
			if err != nil {
				return err
			}
			s = side{node.Slots[0], s.level - 1}
		}
		sides = addSide(sides, s)
	}
	return w.node(ctx, place{tree: uint32(n), level: top}, t.Root, sides)
}

func addSide(sides []side, s side) []side {
	if s.id.IsHole() {
		return sides
	}
	for _, other := range sides {
		if other == s {
			return sides
		}
	}
	return append(sides, s)
}

func (w *walker) node(ctx context.Context, at place, id chunk.ID, near []side) error {
	last := place{tree: at.tree, first: at.first + tree.SpanOf(at.level) - 1, level: -1}
	if id.IsHole() || w.told(last) {
		return nil
	}
	for _, s := range near {
		if s.id == id && s.level == at.level {
			return nil // and all below it
		}
	}
	if err := w.tell(at, id); err != nil {
		return err
	}
	n, err := w.nodes.Node(ctx, id, at.level)
	if err != nil {
		return err
	}
	nodes, err := w.nearNodes(ctx, at.level, near)
	if isDamage(err) {
		w.trouble(err)
		return nil
	}
	if err != nil {
		return err
	}
	if at.level == 0 {
		return w.leaf(at, n, nodes)
	}
	return w.children(ctx, at, n, near, nodes)
}

func (w *walker) children(ctx context.Context, at place, n *tree.Node, near []side, nodes []*tree.Node) error {
	step := tree.SpanOf(at.level - 1)
	for i := range n.Slots {
		if n.Slots[i].IsHole() {
			continue
		}
		var below []side
		for j, s := range near {
			below = addSide(below, s.child(nodes[j], at.level, i))
		}
		child := place{tree: at.tree, first: at.first + int64(i)*step, level: at.level - 1}
		if err := w.node(ctx, child, n.Slots[i], below); err != nil {
			return err
		}
	}
	return nil
}

// leaf visits the chunks of a leaf that no leaf of a neighbour has at their place.
func (w *walker) leaf(at place, n *tree.Node, near []*tree.Node) error {
chunks:
	for i := range n.Slots {
		if n.Slots[i].IsHole() {
			continue
		}
		for _, m := range near {
			if m.Slots[i] == n.Slots[i] {
				continue chunks
			}
		}
		if err := w.tell(place{tree: at.tree, first: at.first + int64(i), level: -1}, n.Slots[i]); err != nil {
			return err
		}
	}
	return nil
}

// nearNodes returns the nodes of those sides that stand at level, nil for others.
func (w *walker) nearNodes(ctx context.Context, level int, near []side) ([]*tree.Node, error) {
	nodes := make([]*tree.Node, len(near))
	for i, s := range near {
		if s.level != level {
			continue
		}
		n, err := w.nodes.Node(ctx, s.id, level)
		if err != nil {
			return nil, err
		}
		nodes[i] = n
	}
	return nodes, nil
}

func (w *walker) told(at place) bool { return w.from != nil && bytes.Compare(at.cursor(), w.from) <= 0 }

func (w *walker) tell(at place, id chunk.ID) error {
	if w.told(at) {
		return nil
	}
	return w.visit(at, id)
}

// isDamage reports whether an error says that bytes are missing or not as they were written.
func isDamage(err error) bool {
	return err != nil && (content.IsDamage(err) || errors.Is(err, tree.ErrCorrupt))
}
