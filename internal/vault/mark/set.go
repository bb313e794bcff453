package mark

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// idSet is a bounded set of IDs by their first eight bytes. Two IDs that have those in common, of
// which there is hardly ever a pair, count as both in the set: more is marked then, never less.
type idSet struct {
	keys  []uint64 // open addressing; 0 is free; a power of two of them, in about the order of IDs
	found bitset   // by place in keys
	n     int
	limit int // places
}

// minKeys is how many places a set has at least.
const minKeys = 1 << 10

func newIDSet(memory int64) *idSet {
	s := &idSet{keys: make([]uint64, minKeys), limit: minKeys}
	for int64(s.limit)*16 <= memory {
		s.limit *= 2
	}
	return s
}

func compare(a, b chunk.ID) int { return bytes.Compare(a[:], b[:]) }

// keyOf returns what stands for an ID, which is uniformly distributed.
func keyOf(id *chunk.ID) uint64 { return max(binary.BigEndian.Uint64(id[:8]), 1) }

// full reports whether nothing more should be added.
func (s *idSet) full() bool { return len(s.keys) == s.limit && s.n >= s.limit/5*4 }

// place returns where a key is, or would be.
func (s *idSet) place(key uint64) int {
	mask := len(s.keys) - 1
	i := int(key >> (64 - bits.Len(uint(mask))))
	for s.keys[i] != 0 && s.keys[i] != key {
		i = (i + 1) & mask
	}
	return i
}

// add adds an ID and reports whether it was not there.
func (s *idSet) add(id *chunk.ID) bool {
	if s.n >= len(s.keys)/5*4 && len(s.keys) < s.limit {
		s.grow()
	}
	key := keyOf(id)
	i := s.place(key)
	if s.keys[i] == key {
		return false
	}
	s.keys[i] = key
	s.n++
	return true
}

func (s *idSet) grow() {
	old := s.keys
	s.keys = make([]uint64, 2*len(old))
	for _, key := range old {
		if key != 0 {
			s.keys[s.place(key)] = key
		}
	}
}

// find reports whether an ID is there, and whether it was found before.
func (s *idSet) find(id *chunk.ID) (known, again bool) {
	key := keyOf(id)
	i := s.place(key)
	if s.keys[i] != key {
		return false, false
	}
	if s.found == nil {
		s.found = newBits(int64(len(s.keys)))
	}
	return true, !s.found.set(int64(i))
}

// unfound calls do for each key that was not found.
func (s *idSet) unfound(do func(key uint64)) {
	for i, key := range s.keys {
		if key != 0 && (s.found == nil || !s.found.has(int64(i))) {
			do(key)
		}
	}
}

// clear forgets all.
func (s *idSet) clear() {
	clear(s.keys)
	s.n, s.found = 0, nil
}
