// Package chunk knows what a chunk of a disk is: its identity, whether it is a hole, and its
// compressed form.
//
// An [ID] is the keyed BLAKE3-256 of the plain bytes. The key is the vault's own, so that an ID
// tells an outsider nothing about the bytes, not even whether two vaults hold the same ones. A
// [Hasher] and a [Codec] belong to one goroutine each.
package chunk

import (
	"bytes"
	"encoding/hex"
	"fmt"

	"github.com/zeebo/blake3"
)

// Sizes of a chunk, in bytes. The size is a power of two and fixed per vault.
const (
	MinSize     = 16 << 10
	MaxSize     = 1 << 20
	DefaultSize = 64 << 10
)

// IDSize is the length of an ID in bytes.
const IDSize = 32

// ID names a chunk or a tree node by its content. The zero ID is a hole: bytes that are all zero.
type ID [IDSize]byte

// IsHole reports whether id stands for bytes that are all zero.
func (id ID) IsHole() bool { return id == ID{} }

// String returns the hexadecimal form, "" for a hole.
func (id ID) String() string {
	if id.IsHole() {
		return ""
	}
	return hex.EncodeToString(id[:])
}

// ParseID reads what String wrote.
func ParseID(s string) (ID, error) {
	var id ID
	if s == "" {
		return id, nil
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != IDSize {
		return id, fmt.Errorf("chunk id %q is not %d hexadecimal digits", s, 2*IDSize)
	}
	copy(id[:], b)
	return id, nil
}

// Hasher computes IDs. It is not safe for concurrent use.
type Hasher struct{ h *blake3.Hasher }

// NewHasher returns a Hasher under a 32-byte key.
func NewHasher(key [32]byte) *Hasher {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // only a key of another length is refused
	}
	return &Hasher{h}
}

// ID returns the identity of p, which must not be all zero: that is a hole and has the zero ID.
func (h *Hasher) ID(p []byte) ID {
	var id ID
	h.h.Reset()
	h.h.Write(p) // never fails
	h.h.Sum(id[:0])
	return id
}

var zeros [MaxSize]byte

// IsZero reports whether p holds only zeros. p may be up to MaxSize bytes.
func IsZero(p []byte) bool {
	const peek = 64 // most data differs early
	if len(p) > peek && !bytes.Equal(p[:peek], zeros[:peek]) {
		return false
	}
	return bytes.Equal(p, zeros[:len(p)])
}
