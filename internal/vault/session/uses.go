package session

import (
	"bytes"
	"slices"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// uses gathers which rows of packs a session shares. It holds bitmaps of those packs only that were
// touched.
type uses struct{ shards [16]useShard }

type useShard struct {
	mu    sync.Mutex
	packs map[log.ObjectID]*packUse
}

// packUse is what a session uses of a pack.
type packUse struct {
	told  bitmap // shared, and an entry says so
	fresh bitmap // shared, and no entry says so yet
	first bitmap // of an adopted pack: used once
}

type bitmap []byte

// set sets a bit and reports whether it was not set.
func (b *bitmap) set(i uint32) bool {
	if need := int(i/8) + 1; need > len(*b) {
		*b = append(*b, make([]byte, need-len(*b))...)
	}
	was := (*b)[i/8]
	(*b)[i/8] |= 1 << (i % 8)
	return was != (*b)[i/8]
}

func (b bitmap) has(i uint32) bool { return int(i/8) < len(b) && b[i/8]>>(i%8)&1 == 1 }

// join sets the bits of other, each first further on.
func (b *bitmap) join(other bitmap, first uint32) {
	for i := range uint32(len(other)) * 8 {
		if other.has(i) {
			b.set(first + i)
		}
	}
}

// with calls f with what is known of a pack, while nobody else looks at it.
func (u *uses) with(id log.ObjectID, f func(*packUse)) {
	sh := &u.shards[id[len(id)-1]%16]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	p := sh.packs[id]
	if p == nil {
		if sh.packs == nil {
			sh.packs = map[log.ObjectID]*packUse{}
		}
		p = &packUse{}
		sh.packs[id] = p
	}
	f(p)
}

// share sets the shared bit of a row.
func (u *uses) share(id log.ObjectID, slot uint32) {
	u.with(id, func(p *packUse) {
		if !p.told.has(slot) {
			p.fresh.set(slot)
		}
	})
}

// first reports whether a row of an adopted pack is used for the first time.
func (u *uses) first(id log.ObjectID, slot uint32) (is bool) {
	u.with(id, func(p *packUse) { is = p.first.set(slot) })
	return is
}

// moved says that the rows of one pack are now those of another from slot first on.
func (u *uses) moved(from, to log.ObjectID, first uint32) {
	var bits bitmap
	u.with(from, func(p *packUse) { bits, p.fresh = p.fresh, nil })
	if len(bits) > 0 {
		u.with(to, func(p *packUse) { p.fresh.join(bits, first) })
	}
}

// forget drops a pack that is gone.
func (u *uses) forget(id log.ObjectID) {
	sh := &u.shards[id[len(id)-1]%16]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	delete(sh.packs, id)
}

// take returns what no entry says yet of the packs for which may reports true, in the order of
// their IDs. The caller sees to it that an entry says it.
func (u *uses) take(may func(log.ObjectID) bool) (out []state.Count) {
	for i := range u.shards {
		sh := &u.shards[i]
		sh.mu.Lock()
		for id, p := range sh.packs {
			if len(p.fresh) > 0 && may(id) {
				out = append(out, state.Count{Pack: id, Shared: p.fresh})
				p.told.join(p.fresh, 0)
				p.fresh = nil
			}
		}
		sh.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b state.Count) int { return bytes.Compare(a.Pack[:], b.Pack[:]) })
	return out
}
