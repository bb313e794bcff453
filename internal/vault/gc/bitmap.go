package gc

import (
	"bytes"
	"math/bits"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// bitmap says something of the slots of a pack: bit i of byte i / 8 is slot i.
type bitmap []byte

func (b bitmap) has(i uint32) bool { return int(i/8) < len(b) && b[i/8]>>(i%8)&1 == 1 }

func (b *bitmap) set(i uint32) {
	if need := int(i/8) + 1; need > len(*b) {
		*b = append(*b, make([]byte, need-len(*b))...)
	}
	(*b)[i/8] |= 1 << (i % 8)
}

func (b bitmap) count() (n int) {
	for _, v := range b {
		n += bits.OnesCount8(v)
	}
	return n
}

func sortCounts(cs []state.Count) {
	slices.SortFunc(cs, func(a, b state.Count) int { return bytes.Compare(a.Pack[:], b.Pack[:]) })
}
