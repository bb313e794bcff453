package gc

import (
	"bytes"
	"context"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// settle decides about the rows of a pack that are in doubt.
func (m *marking) settle(ctx context.Context, d *doubt) error {
	table, err := m.Secret.Table(ctx, m.Store, m.Vault.ID, d.pack)
	if isDamage(err) {
		return m.collector.damaged(ctx, d.pack.ID, err)
	}
	if err != nil {
		return err
	}
	for i := range table {
		if !d.slots.has(uint32(i)) {
			continue
		}
		if m.size >= m.freedSize {
			if err := m.tell(ctx); err != nil {
				return err
			}
		}
		if err := m.settleRow(ctx, d.pack.ID, uint32(i), &table[i]); err != nil {
			return err
		}
	}
	return nil
}

// settleRow frees a row that nobody needs. Of one that is needed and stored several times one copy
// is kept, and shared: how many use it is not known, so that only another mark may free it.
func (m *marking) settleRow(ctx context.Context, id log.ObjectID, slot uint32, e *pack.Entry) error {
	all, err := m.snap.FindAll(ctx, e.ID)
	if err != nil {
		return err
	}
	needed := slices.ContainsFunc(all, func(l index.Loc) bool { return m.live.Has(l.Pos) })
	if !needed {
		if !m.free[id].freed.has(slot) {
			m.freeRow(id, slot, int64(e.Stored))
		}
		return nil
	}
	best := m.keeper(all)
	if best == nil {
		return nil // in packs of which the mark knows nothing
	}
	others := false
	for i := range all {
		l := &all[i]
		if b := m.free[l.Pack.ID]; l != best && b != nil && !b.freed.has(l.Slot) {
			m.freeRow(l.Pack.ID, l.Slot, int64(l.Stored))
			others = true
		}
	}
	if b := m.free[best.Pack.ID]; (others || b.freed.has(best.Slot)) && !b.shared.has(best.Slot) {
		m.shareRow(best.Pack.ID, best.Slot)
	}
	return nil
}

// keeper returns the copy of a row that is kept: one that is not freed, in a pack that is sound,
// shared already, in this order.
func (m *marking) keeper(all []index.Loc) (best *index.Loc) {
	worth := func(l *index.Loc) (n int) {
		b := m.free[l.Pack.ID]
		for i, good := range []bool{b.shared.has(l.Slot), !b.damaged, !b.freed.has(l.Slot)} {
			if good {
				n |= 1 << i
			}
		}
		return n
	}
	for i := range all {
		l := &all[i]
		if m.free[l.Pack.ID] != nil && (best == nil || worth(l) > worth(best)) {
			best = l
		}
	}
	return best
}

func (m *marking) freeRow(id log.ObjectID, slot uint32, stored int64) {
	f := m.slots[id]
	if f == nil {
		f = &freeing{}
		m.slots[id] = f
		m.size += 24 + 4 + 8
	}
	n := len(f.slots)
	f.slots.set(slot)
	f.bytes += uint64(stored)
	m.size += len(f.slots) - n
	m.free[id].freed.set(slot)
	m.rows++
}

func (m *marking) shareRow(id log.ObjectID, slot uint32) {
	b := m.keep[id]
	if b == nil {
		m.size += 24 + 4 + 8
	}
	n := len(b)
	b.set(slot)
	m.size += len(b) - n
	m.keep[id] = b
	for _, of := range []*bitmap{&m.free[id].shared} {
		*of = bytes.Clone(*of)
		of.set(slot)
	}
}
