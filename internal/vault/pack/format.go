// Package pack reads and writes packs: objects that hold many sealed chunks, tree nodes and
// manifests, and a table of them.
//
// A pack is written once, by a [Writer] of one goroutine, and never changed. Each row is sealed
// with AES-256-GCM under a key that derives from a random salt of the pack in which it was first
// sealed, its nonce being its slot there. So rows move from pack to pack unopened, and a
// [log.Recipe] says to one without keys of which bytes of other packs it can make a new one. The
// table of rows is sealed too. docs/formats/pack.md is the format; golden files and a second reader
// hold it.
//
// What an entry of the log says of a pack, [log.Object.Sum], is the hash of its header and its
// trailer alone, and not of the rows between them, which are most of it: each row has a CRC-32C and
// a tag of its own in what that hash covers, and all rows together another CRC-32C, for those who
// have no key.
package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/zeebo/blake3"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Sizes in bytes; they are part of the format.
const (
	HeaderSize  = 64
	FooterSize  = 32
	RowSize     = 56       // of a row of the table
	TagSize     = 16       // of AES-GCM, after each row and after the table
	MaxEntries  = 1 << 16  // rows of a pack
	MaxOrigins  = 1 << 16  // salts by which rows of a pack were sealed, its own included
	MaxManifest = 64 << 20 // plain bytes of a manifest; other rows have at most chunk.MaxSize
	MaxSize     = 1 << 30  // of a whole pack
)

const (
	saltSize  = len(log.Salt{})
	maxTable  = MaxEntries*RowSize + (MaxOrigins-1)*saltSize + TagSize
	headMagic = "HFPACK01"
	footMagic = "HFPKEND1"
)

// ErrCorrupt reports a pack, or a row in it, that is not as it was written.
var ErrCorrupt = errors.New("pack is damaged")

// Kind says what a row of a pack is. The numbers are on disk.
type Kind byte

// Kinds of rows.
const (
	Data     Kind = 1 // chunk of a disk
	Node     Kind = 2 // tree node
	Manifest Kind = 3 // of a point
)

// maxPlain returns how many plain bytes a row of the kind may have: none if there is no such kind.
func (k Kind) maxPlain() int {
	switch k {
	case Data, Node:
		return chunk.MaxSize
	case Manifest:
		return MaxManifest
	}
	return 0
}

// Entry is a row of a pack's table. Its number in the table is its slot; rows stand in the order in
// which they were appended, which is that of their offsets.
type Entry struct {
	ID       chunk.ID
	Kind     Kind
	Encoding chunk.Encoding
	Offset   uint32   // of the sealed bytes in the pack
	Stored   uint32   // length of the sealed bytes, tag included
	Plain    uint32   // length of the plain bytes
	Sum      uint32   // CRC-32C of the sealed bytes
	Nonce    uint32   // slot in the pack in which it was sealed
	Salt     log.Salt // of the pack in which it was sealed: its key derives from that
}

// SumOK reports whether sealed bytes have the CRC that the table names. It needs no key.
func (e *Entry) SumOK(sealed []byte) bool { return crc32.Checksum(sealed, castagnoli) == e.Sum }

// check reports what is wrong with a row by itself, wherever it stands.
func (e *Entry) check() error {
	limit := uint32(e.Kind.maxPlain())
	switch {
	case limit == 0:
		return fmt.Errorf("it is of kind %d", e.Kind)
	case e.Plain == 0 || e.Plain > limit:
		return fmt.Errorf("it has %d plain bytes", e.Plain)
	case e.Stored < TagSize || e.Stored > limit+TagSize:
		return fmt.Errorf("it has %d sealed bytes", e.Stored)
	case e.Nonce >= MaxEntries:
		return fmt.Errorf("it was sealed in slot %d", e.Nonce)
	}
	return nil
}

// append adds the row to b; origin is the place of its salt in the table's list, 0 the pack's own.
func (e *Entry) append(b []byte, origin int) []byte {
	b = append(b, e.ID[:]...)
	for _, v := range [...]uint32{e.Offset, e.Stored, e.Plain, e.Sum, e.Nonce} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	b = append(b, byte(e.Kind), byte(e.Encoding))
	return binary.LittleEndian.AppendUint16(b, uint16(origin))
}

func readRow(b []byte) (e Entry, origin int) {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	return Entry{
		ID: chunk.ID(b[:32]), Offset: u32(32), Stored: u32(36), Plain: u32(40), Sum: u32(44), Nonce: u32(48),
		Kind: Kind(b[52]), Encoding: chunk.Encoding(b[53]),
	}, int(binary.LittleEndian.Uint16(b[54:]))
}

func header(vault [16]byte, id log.ObjectID, salt log.Salt) []byte {
	b := make([]byte, 0, HeaderSize)
	b = append(append(b, headMagic...), vault[:]...)
	return append(append(b, id[:]...), salt[:]...)
}

// parseHeader returns the salt in the header of the pack id of a vault.
func parseHeader(b []byte, vault [16]byte, id log.ObjectID) (salt log.Salt, err error) {
	copy(salt[:], b[HeaderSize-saltSize:])
	if string(b) != string(header(vault, id, salt)) {
		return salt, fmt.Errorf("%w: its header is not that of this pack of this vault", ErrCorrupt)
	}
	return salt, nil
}

// footer is the end of a pack.
type footer struct {
	rows    int
	origins int    // salts in the list of the table: those that are not the pack's own
	table   int64  // offset of the sealed table
	body    uint32 // CRC-32C of all before the table
}

// tableSize returns the length of the sealed table.
func (f *footer) tableSize() int { return f.rows*RowSize + f.origins*saltSize + TagSize }

// size returns the length of the pack.
func (f *footer) size() int64 { return f.table + int64(f.tableSize()) + FooterSize }

// append adds the part of the footer that is authenticated with the table: all but checksum and
// magic.
func (f *footer) append(b []byte) []byte {
	for _, v := range [...]uint32{uint32(f.rows), uint32(f.origins), uint32(f.table), f.body, 0} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// trailerSum returns the checksum at the end of a trailer, which it covers all but itself and the
// magic of, and the header.
func trailerSum(head, trailer []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, trailer)
}

// trailer returns the footer's trailer: the sealed table, and itself.
func (f *footer) trailer(k *keys, head, table []byte) []byte {
	end := f.append(make([]byte, 0, FooterSize))
	t := make([]byte, 0, len(table)+TagSize+FooterSize)
	t = append(k.sealTable(t, table, head, end), end...)
	t = binary.LittleEndian.AppendUint32(t, trailerSum(head, t))
	return append(t, footMagic...)
}

// parseFooter returns what the last bytes of a pack of size bytes say, checked against that size.
func parseFooter(b []byte, size int64) (f footer, err error) {
	if len(b) != FooterSize || string(b[FooterSize-len(footMagic):]) != footMagic {
		return f, fmt.Errorf("%w: it has no footer: it was cut short or overwritten", ErrCorrupt)
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	if u32(0) > MaxEntries || u32(4) >= MaxOrigins || u32(8) < HeaderSize || u32(16) != 0 {
		return f, fmt.Errorf("%w: its footer makes no sense", ErrCorrupt)
	}
	f = footer{rows: int(u32(0)), origins: int(u32(4)), table: int64(u32(8)), body: u32(12)}
	if f.size() != size {
		return f, fmt.Errorf("%w: its footer does not fit its size", ErrCorrupt)
	}
	return f, nil
}

// checkTrailer compares a trailer with the checksum in it.
func checkTrailer(head, trailer []byte) error {
	n := len(trailer) - len(footMagic) - 4
	if binary.LittleEndian.Uint32(trailer[n:]) != trailerSum(head, trailer[:n]) {
		return fmt.Errorf("%w: its header or table has another checksum", ErrCorrupt)
	}
	return nil
}

// sumOf returns what the log says of a pack: the hash of header and trailer.
func sumOf(head, trailer []byte) (sum log.Hash) {
	h := blake3.New()
	h.Write(head)
	h.Write(trailer)
	h.Sum(sum[:0])
	return sum
}
