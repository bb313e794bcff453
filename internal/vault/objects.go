package vault

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/mark"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// objects numbers what is stored in packs, so that what is known of one is an entry of an array.
type objects struct {
	v       *Vault
	snap    *index.Snapshot
	damaged map[log.ObjectID]bool

	size  []uint32 // bytes stored, the row in the pack's table included; 0 for those not met yet
	state []uint32 // whatever the walk keeps of each

	nodes map[uint32]*linked
	cost  int // bytes that nodes takes, about
}

// linked is a tree node with the numbers of what it names.
type linked struct {
	kids []uint32
	ids  []chunk.ID // of the kids; nil in a leaf, whose kids are chunks
}

// maxLinked is how many bytes of linked nodes are kept.
const maxLinked = 96 << 20

func newObjects(v *Vault, snap *index.Snapshot, damaged map[log.ObjectID]bool) *objects {
	n := snap.Positions()
	return &objects{v: v, snap: snap, damaged: damaged, size: make([]uint32, n), state: make([]uint32, n),
		nodes: make(map[uint32]*linked)}
}

// reset forgets all state.
func (o *objects) reset() { clear(o.state) }

// number returns the number of a chunk, node or manifest. Of one that is stored at several places,
// a mark counts the same one.
func (o *objects) number(ctx context.Context, id chunk.ID) (uint32, error) {
	locs, err := o.snap.FindAll(ctx, id)
	if err != nil {
		return 0, err
	}
	if len(locs) == 0 {
		return 0, fmt.Errorf("%w: %s is in no pack", ErrCorrupt, id)
	}
	l := &locs[mark.Best(locs, func(id log.ObjectID) bool { return o.damaged[id] })]
	n := uint32(l.Pos)
	o.size[n] = l.Stored + pack.RowSize
	return n, nil
}

// link returns a node with the numbers of what it names.
func (o *objects) link(ctx context.Context, n uint32, id chunk.ID, level int) (*linked, error) {
	if l := o.nodes[n]; l != nil {
		return l, nil
	}
	node, err := o.v.content.Node(ctx, id, level)
	if err != nil {
		return nil, err
	}
	l := &linked{kids: make([]uint32, 0, node.Count())}
	for _, child := range node.Slots {
		if child.IsHole() {
			continue
		}
		kid, err := o.number(ctx, child)
		if err != nil {
			return nil, err
		}
		l.kids = append(l.kids, kid)
		if level > 0 {
			l.ids = append(l.ids, child)
		}
	}
	o.keep(n, l)
	return l, nil
}

func (o *objects) keep(n uint32, l *linked) {
	o.nodes[n] = l
	o.cost += l.cost()
	for k, old := range o.nodes {
		if o.cost <= maxLinked {
			return
		}
		o.cost -= old.cost()
		delete(o.nodes, k)
	}
}

func (l *linked) cost() int { return 100 + 4*len(l.kids) + len(chunk.ID{})*len(l.ids) }

// walk calls visit with the number of the node id, and if that returns true does the same with what
// the node names.
func (o *objects) walk(ctx context.Context, id chunk.ID, level int, visit func(n uint32) bool) error {
	n, err := o.number(ctx, id)
	if err != nil {
		return err
	}
	return o.descend(ctx, n, id, level, visit)
}

func (o *objects) descend(ctx context.Context, n uint32, id chunk.ID, level int, visit func(n uint32) bool) error {
	if !visit(n) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	l, err := o.link(ctx, n, id, level)
	if err != nil {
		return err
	}
	for i, kid := range l.kids {
		if level == 0 {
			visit(kid)
		} else if err := o.descend(ctx, kid, l.ids[i], level-1, visit); err != nil {
			return err
		}
	}
	return nil
}

// ownerSets gives numbers to sets of owners.
type ownerSets struct {
	all    [][]int // ascending; all[anySet] is not one
	number map[string]uint32
	met    map[[2]uint32]uint32
}

// anySet is the set of all owners: of an object that no tree was found to need.
const anySet = 0

func newOwnerSets() *ownerSets {
	return &ownerSets{all: make([][]int, 1), number: make(map[string]uint32), met: make(map[[2]uint32]uint32)}
}

func (s *ownerSets) intern(of []int) uint32 {
	key := make([]byte, 0, 4*len(of))
	for _, i := range of {
		key = binary.LittleEndian.AppendUint32(key, uint32(i))
	}
	n, ok := s.number[string(key)]
	if !ok {
		n = uint32(len(s.all))
		s.number[string(key)] = n
		s.all = append(s.all, of)
	}
	return n
}

// meet returns the owners that are in both sets.
func (s *ownerSets) meet(a, b uint32) uint32 {
	if a == anySet || a == b {
		return b
	}
	if len(s.all[a]) == 0 {
		return a
	}
	key := [2]uint32{a, b}
	n, ok := s.met[key]
	if !ok {
		var both []int
		for _, i := range s.all[a] {
			if _, found := slices.BinarySearch(s.all[b], i); found {
				both = append(both, i)
			}
		}
		n = s.intern(both)
		s.met[key] = n
	}
	return n
}
