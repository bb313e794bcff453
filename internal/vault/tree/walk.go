package tree

import (
	"context"
	"errors"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// Run is a leaf's place in the disk: chunk First and up to 63 after it.
type Run struct {
	First int64
	Node  *Node
}

// ErrStop, returned by a visitor, ends a walk without an error.
var ErrStop = errors.New("stop")

// Walk calls visit with each leaf that is not all holes, in ascending order.
func Walk(ctx context.Context, r Reader, root chunk.ID, chunks int64, visit func(Run) error) error {
	return WalkWithin(ctx, r, root, chunks, func(int64, int64) bool { return true }, visit)
}

// WalkWithin is Walk that leaves out those subtrees for which within, told the first chunk of one
// and how many it covers, returns false.
func WalkWithin(ctx context.Context, r Reader, root chunk.ID, chunks int64, within func(first, count int64) bool,
	visit func(Run) error) error {
	err := Leaves(ctx, r, root, chunks, within, func(leaf int64, id chunk.ID) error {
		n, err := r.Node(ctx, id, 0)
		if err != nil {
			return err
		}
		return visit(Run{First: leaf * FanOut, Node: n})
	})
	if errors.Is(err, ErrStop) {
		return nil
	}
	return err
}

// Leaves calls visit with the number and the ID of each leaf that WalkWithin would visit. It reads
// inner nodes only.
func Leaves(ctx context.Context, r Reader, root chunk.ID, chunks int64, within func(first, count int64) bool,
	visit func(leaf int64, id chunk.ID) error) error {
	l := leafWalk{ctx: ctx, r: r, within: within, visit: visit}
	return l.walk(root, Levels(chunks)-1, 0)
}

type leafWalk struct {
	ctx    context.Context
	r      Reader
	within func(first, count int64) bool
	visit  func(leaf int64, id chunk.ID) error
}

func (l *leafWalk) walk(id chunk.ID, level int, first int64) error {
	if id.IsHole() || !l.within(first, SpanOf(level)) {
		return nil
	}
	if err := l.ctx.Err(); err != nil {
		return err
	}
	if level == 0 {
		return l.visit(first/FanOut, id)
	}
	n, err := l.r.Node(l.ctx, id, level)
	if err != nil {
		return err
	}
	step := SpanOf(level - 1)
	for i := range n.Slots {
		if err := l.walk(n.Slots[i], level-1, first+int64(i)*step); err != nil {
			return err
		}
	}
	return nil
}

// Lookup returns the ID of one chunk.
func Lookup(ctx context.Context, r Reader, root chunk.ID, chunks, at int64) (chunk.ID, error) {
	id := root
	for level := Levels(chunks) - 1; level >= 0 && !id.IsHole(); level-- {
		n, err := r.Node(ctx, id, level)
		if err != nil {
			return chunk.ID{}, err
		}
		id = n.Slots[at/(SpanOf(level)/FanOut)%FanOut]
	}
	return id, nil
}

// Leaf returns leaf number index of the tree, nil if it is all holes.
func Leaf(ctx context.Context, r Reader, root chunk.ID, chunks, index int64) (*Node, chunk.ID, error) {
	id := root
	for level := Levels(chunks) - 1; ; level-- {
		if id.IsHole() {
			return nil, id, nil
		}
		n, err := r.Node(ctx, id, level)
		if err != nil || level == 0 {
			return n, id, err
		}
		id = n.Slots[index*FanOut/SpanOf(level-1)%FanOut]
	}
}

// Diff calls visit with each run of chunks [first, first+count) in which trees a and b of disks of
// chunksA and chunksB chunks may differ, in ascending order: runs of single chunks where both have
// leaves. It reads only nodes that differ.
func Diff(ctx context.Context, r Reader, a chunk.ID, chunksA int64, b chunk.ID, chunksB int64,
	visit func(first, count int64) error) error {
	d := differ{ctx: ctx, r: r, visit: visit, end: max(chunksA, chunksB)}
	return d.at(side{a, Levels(chunksA) - 1}, side{b, Levels(chunksB) - 1}, 0)
}

type side struct {
	id    chunk.ID
	level int
}

type differ struct {
	ctx   context.Context
	r     Reader
	visit func(first, count int64) error
	end   int64
}

func (d *differ) at(a, b side, first int64) error {
	if a.id == b.id && (a.level == b.level || a.id.IsHole()) {
		return nil
	}
	if err := d.ctx.Err(); err != nil {
		return err
	}
	level := max(a.level, b.level)
	na, err := d.children(a, level)
	if err != nil {
		return err
	}
	nb, err := d.children(b, level)
	if err != nil {
		return err
	}
	step := SpanOf(level) / FanOut
	for i := range FanOut {
		at := first + int64(i)*step
		if at >= d.end {
			return nil
		}
		if level > 0 {
			if err := d.at(a.child(na, level, i), b.child(nb, level, i), at); err != nil {
				return err
			}
		} else if na.Slots[i] != nb.Slots[i] {
			if err := d.visit(at, 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// child is the i-th subtree of s seen from a node of level, which may be above s: then s itself
// stands as its child 0.
func (s side) child(n *Node, level, i int) side {
	if s.level < level && i == 0 {
		return s
	}
	return side{n.Slots[i], level - 1}
}

// children returns the node of s, or an empty one where s is a hole or stands below level.
func (d *differ) children(s side, level int) (*Node, error) {
	if s.id.IsHole() || s.level < level {
		return &Node{Level: level}, nil
	}
	return d.r.Node(d.ctx, s.id, s.level)
}
