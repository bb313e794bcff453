package vault

import (
	"context"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// marks is the set of stored chunks that points need: a bit per entry of the index, and the few that are too young to have one.
type marks struct {
	snap  *index.Snapshot
	avoid map[pack.Ref]bool // packs that are not counted on while another place will do
	bits  []uint64
	young map[place]bool
	live  map[pack.Ref]int64 // bytes needed in each pack, table rows included
	// missing is told of every chunk or node that is in no pack; nil makes that an error.
	missing func(id chunk.ID)
}

type place struct {
	ref pack.Ref
	off uint32
}

func newMarks(snap *index.Snapshot, avoid map[pack.Ref]bool) *marks {
	return &marks{snap: snap, avoid: avoid, bits: make([]uint64, (snap.Positions()+63)/64), young: make(map[place]bool), live: make(map[pack.Ref]int64)}
}

func (m *marks) has(l *index.Loc) bool {
	if l.Pos < 0 {
		return m.young[place{l.Ref, l.Offset}]
	}
	return m.bits[l.Pos/64]&(1<<(l.Pos%64)) != 0
}

// mark marks one place of id and reports whether it was marked already.
func (m *marks) mark(ctx context.Context, id chunk.ID) (seen bool, err error) {
	locs, err := m.snap.FindAll(ctx, id)
	if err != nil {
		return false, err
	}
	if len(locs) == 0 {
		if m.missing == nil {
			return false, fmt.Errorf("%w: %s is in no pack", ErrCorrupt, id)
		}
		m.missing(id)
		return false, nil
	}
	if slices.ContainsFunc(locs, func(l index.Loc) bool { return m.has(&l) }) {
		return true, nil
	}
	best := bestPlace(locs, m.avoid)
	if best.Pos < 0 {
		m.young[place{best.Ref, best.Offset}] = true
	} else {
		m.bits[best.Pos/64] |= 1 << (best.Pos % 64)
	}
	m.live[best.Ref] += int64(best.Stored) + pack.EntrySize
	return false, nil
}

// bestPlace returns the place that counts among those of one chunk: whole packs go before cut ones, packs that stay before those in avoid.
func bestPlace(locs []index.Loc, avoid map[pack.Ref]bool) *index.Loc {
	worth := func(l *index.Loc) int {
		w := 2
		if l.Cut {
			w -= 2
		}
		if avoid[l.Ref] {
			w--
		}
		return w
	}
	best := &locs[0]
	for i := range locs {
		if l := &locs[i]; worth(l) > worth(best) {
			best = l
		}
	}
	return best
}

// roots returns the trees of a point with their sizes in chunks.
func (v *Vault) roots(p *point.RecoveryPoint) ([]treeOf, error) {
	cs := int64(v.conf.ChunkSize)
	var out []treeOf
	add := func(name, root string, size int64) error {
		id, err := chunk.ParseID(root)
		if err != nil {
			return fmt.Errorf("%w: point %s, %s: %v", ErrCorrupt, p.ID, name, err)
		}
		out = append(out, treeOf{name: name, root: id, size: size, chunks: (size + cs - 1) / cs})
		return nil
	}
	for _, d := range p.Disks {
		if err := add(d.Name, d.Root, d.Size); err != nil {
			return nil, err
		}
	}
	for _, f := range p.Files {
		if err := add(fileName(f), f.Root, f.Size); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// fileName is what a file of a point is called where disks have their names.
func fileName(f point.File) string { return f.Role + "/" + f.Name }

// treeOf is a stored disk or file of a point.
type treeOf struct {
	name   string
	root   chunk.ID
	size   int64 // bytes
	chunks int64
}

// markTree marks everything below a node. A node that was marked before is not visited again.
func (v *Vault) markTree(ctx context.Context, m *marks, id chunk.ID, level int) error {
	if id.IsHole() {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	seen, err := m.mark(ctx, id)
	if err != nil || seen {
		return err
	}
	n, err := v.Node(ctx, id, level)
	if err != nil {
		if m.missing != nil && damage(err) {
			m.missing(id)
			return nil
		}
		return err
	}
	for _, child := range n.Slots {
		switch {
		case child.IsHole():
		case level > 0:
			err = v.markTree(ctx, m, child, level-1)
		default:
			_, err = m.mark(ctx, child)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// markPoint marks everything that p needs.
func (v *Vault) markPoint(ctx context.Context, m *marks, p *point.RecoveryPoint) error {
	trees, err := v.roots(p)
	if err != nil {
		return err
	}
	if err := v.markTrees(ctx, m, trees); err != nil {
		return fmt.Errorf("point %s, %w", p.ID, err)
	}
	return nil
}

func (v *Vault) markTrees(ctx context.Context, m *marks, trees []treeOf) error {
	for _, t := range trees {
		if err := v.markTree(ctx, m, t.root, tree.Levels(t.chunks)-1); err != nil {
			return fmt.Errorf("disk %s: %w", t.name, err)
		}
	}
	return nil
}
