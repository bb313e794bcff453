package mark

import (
	"bytes"
	"context"
	"math/bits"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Live is the set of rows that points need, by their position in the index that was marked. It is
// not changed any more, and safe for concurrent use.
type Live struct {
	rows Rows
	bits bitset
}

func newLive(rows Rows) *Live { return &Live{rows: rows, bits: newBits(rows.Positions())} }

// Has reports whether the row at a position is needed.
func (l *Live) Has(pos int64) bool { return l.bits.has(pos) }

// Count returns how many rows are needed.
func (l *Live) Count() (n int64) {
	for _, w := range l.bits {
		n += int64(bits.OnesCount64(w))
	}
	return n
}

// Pack is what is needed of one pack.
type Pack struct {
	log.Object
	Rows  int    // that it has
	Dead  int    // that nobody needs
	Slots []byte // those: bit i of byte i / 8 is slot i
	Live  int64  // bytes of the rows that are needed, as stored
}

// Packs returns the good packs that have rows, by their IDs. It takes an eighth of a byte for each
// row.
func (l *Live) Packs(ctx context.Context) ([]*Pack, error) {
	byID := map[log.ObjectID]*Pack{}
	err := l.rows.Each(ctx, func(at *index.Loc) bool {
		p := byID[at.Pack.ID]
		if p == nil {
			p = &Pack{Object: at.Pack}
			byID[at.Pack.ID] = p
		}
		p.add(at, l.Has(at.Pos))
		return ctx.Err() == nil
	})
	if err == nil {
		err = ctx.Err()
	}
	all := make([]*Pack, 0, len(byID))
	for _, p := range byID {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *Pack) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return all, err
}

func (p *Pack) add(at *index.Loc, live bool) {
	p.Rows++
	if live {
		p.Live += int64(at.Stored)
		return
	}
	p.Dead++
	if need := int(at.Slot/8) + 1; need > len(p.Slots) {
		p.Slots = append(p.Slots, make([]byte, need-len(p.Slots))...)
	}
	p.Slots[at.Slot/8] |= 1 << (at.Slot % 8)
}

// bitset is a set of numbers from 0.
type bitset []uint64

func newBits(n int64) bitset { return make(bitset, (n+63)/64) }

func (b bitset) has(i int64) bool { return b[i/64]>>(i%64)&1 == 1 }

// set adds i and reports whether it was not there.
func (b bitset) set(i int64) bool {
	old := b[i/64]
	b[i/64] |= 1 << (i % 64)
	return old != b[i/64]
}

func (b bitset) clear(i int64) { b[i/64] &^= 1 << (i % 64) }
