// Package tree knows the radix trees that say which chunks a disk is made of.
//
// A tree has a fan-out of 64. A leaf holds the IDs of 64 neighbouring chunks, an inner node the IDs
// of 64 nodes one level below; a hole, or a subtree of holes, is the zero ID and takes no space. A
// node is canonical: equal content gives an equal node and an equal ID, so two trees are compared
// by descending only where IDs differ. docs/formats/tree.md is the format.
package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// FanOut is the number of children of a node.
const FanOut = 64

// MaxNodeSize is the length of a full node's encoding in bytes.
const MaxNodeSize = headSize + FanOut*chunk.IDSize

const (
	headSize = 16
	magic    = "HFTREE1"
)

// ErrCorrupt reports a node that no writer of this format made.
var ErrCorrupt = errors.New("tree node is damaged")

// Node is one node: Slots[i] is the ID of the i-th child, zero for a hole.
type Node struct {
	Level int // 0 for a leaf, whose children are chunks
	Slots [FanOut]chunk.ID
}

// Count returns the number of children that are not holes.
func (n *Node) Count() int {
	c := 0
	for i := range n.Slots {
		if !n.Slots[i].IsHole() {
			c++
		}
	}
	return c
}

// Append appends the node's encoding to b.
func (n *Node) Append(b []byte) []byte {
	b = append(b, magic...)
	b = append(b, byte(n.Level))
	var present uint64
	for i := range n.Slots {
		if !n.Slots[i].IsHole() {
			present |= 1 << i
		}
	}
	b = binary.LittleEndian.AppendUint64(b, present)
	for i := range n.Slots {
		if present&(1<<i) != 0 {
			b = append(b, n.Slots[i][:]...)
		}
	}
	return b
}

// Parse reads an encoding that must be of a node of level. It accepts exactly what Append makes of
// a node that is not empty.
func Parse(b []byte, level int) (*Node, error) {
	if len(b) < headSize || string(b[:7]) != magic {
		return nil, fmt.Errorf("%w: it does not begin as a node", ErrCorrupt)
	}
	if int(b[7]) != level {
		return nil, fmt.Errorf("%w: level %d where %d belongs", ErrCorrupt, b[7], level)
	}
	present := binary.LittleEndian.Uint64(b[8:])
	if present == 0 || len(b) != headSize+bits.OnesCount64(present)*chunk.IDSize {
		return nil, fmt.Errorf("%w: %d bytes for %d children", ErrCorrupt, len(b), bits.OnesCount64(present))
	}
	n := &Node{Level: level}
	ids := b[headSize:]
	for i := range n.Slots {
		if present&(1<<i) == 0 {
			continue
		}
		n.Slots[i] = chunk.ID(ids[:chunk.IDSize])
		if n.Slots[i].IsHole() {
			return nil, fmt.Errorf("%w: child %d is a hole that is said to be present", ErrCorrupt, i)
		}
		ids = ids[chunk.IDSize:]
	}
	return n, nil
}

// Levels returns the height of the tree of a disk of that many chunks: 1 up to 64 chunks, 2 up to
// 4096, and so on.
func Levels(chunks int64) int {
	l := 1
	for span := int64(FanOut); span < chunks; span *= FanOut {
		l++
	}
	return l
}

// SpanOf returns how many chunks a node of level covers.
func SpanOf(level int) int64 {
	n := int64(FanOut)
	for range level {
		n *= FanOut
	}
	return n
}

// Reader fetches nodes.
type Reader interface {
	// Node returns the node id of level. The caller does not change it.
	Node(ctx context.Context, id chunk.ID, level int) (*Node, error)
}

// Writer stores nodes.
type Writer interface {
	Reader
	// PutNode stores n, which is not empty and which it does not keep, and returns its ID.
	PutNode(ctx context.Context, n *Node) (chunk.ID, error)
}
