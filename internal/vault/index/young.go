package index

import (
	"encoding/binary"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// youngPack is a pack whose rows are in memory. Nobody changes one that others see.
type youngPack struct {
	object  log.Object
	added   uint64 // count of the entry that added it
	known   bool   // from Know: no entry was seen yet
	entries []pack.Entry
}

// young is the packs that no segment has, and a hash table of their rows: about 90 bytes a row.
type young struct {
	packs []*youngPack
	byID  map[log.ObjectID]int // index in packs
	rows  int
	table []uint64 // pack's index + 1 and slot of a row; 0 is free. Its length is a power of two
}

func newYoung() *young { return &young{byID: make(map[log.ObjectID]int)} }

func place(id *chunk.ID, mask uint64) uint64 {
	h := (binary.LittleEndian.Uint64(id[:]) ^ binary.LittleEndian.Uint64(id[24:])) * 0x9e3779b97f4a7c15
	return h >> 20 & mask
}

// add takes in a pack, in place of one that has its ID.
func (y *young) add(p *youngPack) {
	if i, ok := y.byID[p.object.ID]; ok && len(y.packs[i].entries) == len(p.entries) {
		y.packs[i] = p // the same rows, known before
		return
	} else if ok {
		y.remove(func(q *youngPack) bool { return q.object.ID == p.object.ID })
	}
	y.byID[p.object.ID] = len(y.packs)
	y.packs = append(y.packs, p)
	y.rows += len(p.entries)
	if 4*y.rows > 3*len(y.table) {
		y.rebuild()
		return
	}
	y.enter(len(y.packs) - 1)
}

func (y *young) enter(i int) {
	mask := uint64(len(y.table) - 1)
	for slot := range y.packs[i].entries {
		at := place(&y.packs[i].entries[slot].ID, mask)
		for y.table[at] != 0 {
			at = (at + 1) & mask
		}
		y.table[at] = uint64(i+1)<<32 | uint64(slot)
	}
}

func (y *young) rebuild() {
	n := 1 << 10
	for 3*n < 4*y.rows+y.rows {
		n *= 2
	}
	y.table = make([]uint64, n)
	for i := range y.packs {
		y.enter(i)
	}
}

// remove drops the packs of which gone says so.
func (y *young) remove(gone func(*youngPack) bool) {
	kept := make([]*youngPack, 0, len(y.packs))
	for _, p := range y.packs {
		if !gone(p) {
			kept = append(kept, p)
		}
	}
	if len(kept) == len(y.packs) {
		return
	}
	y.packs, y.rows = kept, 0
	clear(y.byID)
	for i, p := range kept {
		y.byID[p.object.ID] = i
		y.rows += len(p.entries)
	}
	y.rebuild()
}

// find calls yield with each row of id.
func (y *young) find(id *chunk.ID, yield func(p *youngPack, slot int)) {
	if len(y.table) == 0 {
		return
	}
	mask := uint64(len(y.table) - 1)
	for at := place(id, mask); y.table[at] != 0; at = (at + 1) & mask {
		p, slot := y.packs[y.table[at]>>32-1], int(uint32(y.table[at]))
		if p.entries[slot].ID == *id {
			yield(p, slot)
		}
	}
}
