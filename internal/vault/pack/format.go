// Package pack reads and writes packs: objects that hold many sealed chunks and a table of them.
//
// A pack is written once, by a [Writer] of one goroutine, and never changed. Each chunk is sealed with AES-256-GCM under a key derived
// for this pack alone, the nonce being the chunk's offset, so that no nonce is used twice; the chunk's ID and sizes are authenticated
// with it. docs/formats/pack.md is the format; golden files and a second reader hold it.
package pack

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/zeebo/blake3"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// Sizes in bytes; they are part of the format.
const (
	HeaderSize = 64
	EntrySize  = 48
	FooterSize = 64
	TagSize    = 16      // of AES-GCM, after each chunk
	MaxEntries = 1 << 16 // chunks in a pack
	MaxSize    = 1 << 30 // of a whole pack
)

const (
	headMagic = "HFPACK01"
	footMagic = "HFPKEND1"
)

// ErrCorrupt reports a pack, or a chunk in it, that is not as it was written.
var ErrCorrupt = errors.New("pack is damaged")

// Kind says what a pack holds. Kinds are kept apart so that metadata can be read without touching data.
type Kind byte

// Kinds of packs. The numbers are on disk.
const (
	Data Kind = 1 // chunks of disks
	Meta Kind = 2 // tree nodes
)

func (k Kind) prefix() string {
	if k == Meta {
		return "meta/"
	}
	return "data/"
}

// ID names a pack: 12 bytes of the session that wrote it, 4 of a counter.
type ID [16]byte

// Session returns the part of the ID that names the writing session.
func (id ID) Session() [12]byte { return [12]byte(id[:12]) }

// String returns 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Ref is a pack's ID and kind, which together are its name in the store.
type Ref struct {
	ID   ID
	Kind Kind
}

// Name returns the pack's object name.
func (r Ref) Name() string {
	s := r.ID.String()
	return r.Kind.prefix() + s[:2] + "/" + s
}

// ParseName is the inverse of Name.
func ParseName(name string) (Ref, error) {
	for _, k := range []Kind{Data, Meta} {
		p := k.prefix()
		if len(name) != len(p)+3+32 || name[:len(p)] != p {
			continue
		}
		r := Ref{Kind: k}
		if n, err := hex.Decode(r.ID[:], []byte(name[len(p)+3:])); err == nil && n == 16 && r.Name() == name {
			return r, nil
		}
	}
	return Ref{}, fmt.Errorf("%q is not the name of a pack", name)
}

// Entry is a row of a pack's table.
type Entry struct {
	ID       chunk.ID
	Offset   uint32 // of the sealed bytes in the pack
	Stored   uint32 // length of the sealed bytes, tag included
	Plain    uint32 // length of the chunk
	Encoding chunk.Encoding
	Sum      uint32 // CRC-32C of the sealed bytes: lets a mirror without the key find damage
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (e *Entry) append(b []byte) []byte {
	b = append(b, e.ID[:]...)
	b = binary.LittleEndian.AppendUint32(b, e.Offset)
	b = binary.LittleEndian.AppendUint32(b, e.Stored)
	b = binary.LittleEndian.AppendUint32(b, e.plainWord())
	return binary.LittleEndian.AppendUint32(b, e.Sum)
}

func (e *Entry) plainWord() uint32 { return e.Plain | uint32(e.Encoding)<<24 }

func parseEntry(b []byte) Entry {
	w := binary.LittleEndian.Uint32(b[40:])
	return Entry{
		ID: chunk.ID(b[:32]), Offset: binary.LittleEndian.Uint32(b[32:]), Stored: binary.LittleEndian.Uint32(b[36:]),
		Plain: w & 0xffffff, Encoding: chunk.Encoding(w >> 24), Sum: binary.LittleEndian.Uint32(b[44:]),
	}
}

// Secret derives the keys of packs from the vault's data key.
type Secret struct{ key [32]byte }

// NewSecret returns the Secret of a vault.
func NewSecret(key [32]byte) *Secret { return &Secret{key} }

// keys are those of one pack. They are safe for concurrent use.
type keys struct {
	aead cipher.AEAD
	mac  [32]byte
}

func (s *Secret) derive(id ID) (*keys, error) {
	okm, err := hkdf.Key(sha256.New, s.key[:], id[:], "holdfast pack v1", 64)
	if err != nil {
		return nil, fmt.Errorf("derive key of pack %s: %w", id, err)
	}
	block, err := aes.NewCipher(okm[:32])
	if err != nil {
		return nil, fmt.Errorf("cipher of pack %s: %w", id, err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("cipher of pack %s: %w", id, err)
	}
	return &keys{aead: aead, mac: [32]byte(okm[32:])}, nil
}

func nonce(offset uint32) (n [12]byte) {
	binary.LittleEndian.PutUint32(n[:], offset)
	return n
}

func (e *Entry) additional(b []byte) []byte {
	b = append(b[:0], e.ID[:]...)
	return binary.LittleEndian.AppendUint32(b, e.plainWord())
}

// seal appends plain, already encoded, sealed as entry e to dst.
func (k *keys) seal(dst []byte, e *Entry, encoded []byte) []byte {
	n := nonce(e.Offset)
	var ad [36]byte
	return k.aead.Seal(dst, n[:], encoded, e.additional(ad[:]))
}

// open returns the encoded bytes of sealed, decrypted in place.
func (k *keys) open(e *Entry, sealed []byte) ([]byte, error) {
	n := nonce(e.Offset)
	var ad [36]byte
	out, err := k.aead.Open(sealed[:0], n[:], sealed, e.additional(ad[:]))
	if err != nil {
		return nil, fmt.Errorf("%w: chunk at offset %d does not authenticate", ErrCorrupt, e.Offset)
	}
	return out, nil
}

func (k *keys) tableMAC(header, table []byte) [32]byte {
	h, err := blake3.NewKeyed(k.mac[:])
	if err != nil {
		panic(err) // only a key of another length is refused
	}
	h.Write(header)
	h.Write(table)
	var sum [32]byte
	h.Sum(sum[:0])
	return sum
}

func header(ref Ref, vault [16]byte) []byte {
	b := make([]byte, 0, HeaderSize)
	b = append(b, headMagic...)
	b = append(b, byte(ref.Kind), 0, 0, 0, 0, 0, 0, 0)
	b = append(b, ref.ID[:]...)
	b = append(b, vault[:]...)
	return b[:HeaderSize]
}

func footer(count int, tableOff int64, table []byte, mac [32]byte) []byte {
	b := make([]byte, 0, FooterSize)
	b = binary.LittleEndian.AppendUint32(b, uint32(count))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(table, castagnoli))
	b = binary.LittleEndian.AppendUint64(b, uint64(tableOff))
	b = append(b, mac[:]...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	return append(b, footMagic...)
}
