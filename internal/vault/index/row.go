package index

import (
	"bytes"
	"encoding/binary"
	"sort"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// Sizes in bytes, and numbers, of the format: docs/formats/index.md.
const (
	rowSize    = 60
	originSize = 82
	lineSize   = 64 // of a filter; one cache line
	lineBits   = 12 // of a filter, a row
	probes     = 7
)

// row is a row of a segment. Its pack and salt stand in the segment's list of origins.
type row struct {
	entry  pack.Entry // without Salt
	slot   uint16
	origin uint32
}

func (r *row) append(b []byte) []byte {
	e := &r.entry
	b = append(b, e.ID[:]...)
	for _, v := range [...]uint32{r.origin, e.Offset, e.Stored, e.Plain, e.Sum} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	b = binary.LittleEndian.AppendUint16(b, r.slot)
	b = binary.LittleEndian.AppendUint16(b, uint16(e.Nonce))
	return append(b, byte(e.Kind), byte(e.Encoding), 0, 0)
}

func parseRow(b []byte) (r row) {
	u32 := func(off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
	r.entry = pack.Entry{ID: chunk.ID(b[:32]), Offset: u32(36), Stored: u32(40), Plain: u32(44), Sum: u32(48),
		Nonce: uint32(binary.LittleEndian.Uint16(b[54:])), Kind: pack.Kind(b[56]), Encoding: chunk.Encoding(b[57])}
	r.origin, r.slot = u32(32), binary.LittleEndian.Uint16(b[52:])
	return r
}

// fits reports whether the rows of a table fit those of a segment: slot and nonce are below
// pack.MaxEntries.
func fits(entries []pack.Entry) bool {
	if len(entries) > pack.MaxEntries {
		return false
	}
	for i := range entries {
		if entries[i].Nonce >= pack.MaxEntries {
			return false
		}
	}
	return true
}

// originOf is the pack of a row and the salt by which it was sealed.
type originOf struct {
	object log.Object
	salt   log.Salt
}

func (o *originOf) append(b []byte) []byte {
	return append(appendObject(b, &o.object), o.salt[:]...)
}

func parseOrigin(b []byte) originOf {
	return originOf{parseObject(b), log.Salt(b[objectSize:originSize])}
}

const objectSize = originSize - 16

func appendObject(b []byte, o *log.Object) []byte {
	b = append(append(b, o.ID[:]...), byte(o.Kind), o.Copy)
	return append(binary.LittleEndian.AppendUint64(b, o.Size), o.Sum[:]...)
}

func parseObject(b []byte) log.Object {
	return log.Object{ID: log.ObjectID(b[:24]), Kind: log.ObjectKind(b[24]), Copy: b[25],
		Size: binary.LittleEndian.Uint64(b[26:]), Sum: log.Hash(b[34:objectSize])}
}

// fenceOf returns the first 8 bytes of an ID, in its order.
func fenceOf(id *chunk.ID) uint64 { return binary.BigEndian.Uint64(id[:8]) }

// searchRows returns the number of the first of rows that is not below id.
func searchRows(rows []byte, id *chunk.ID) int {
	return sort.Search(len(rows)/rowSize, func(i int) bool {
		return bytes.Compare(rows[i*rowSize:i*rowSize+chunk.IDSize], id[:]) >= 0
	})
}

func filterSize(rows int64) int64 { return (rows*lineBits/8/lineSize + 1) * lineSize }

// line returns the line of a filter that has the bits of id, and a number that chooses them.
func line(filter []byte, id *chunk.ID) (line []byte, bits uint64) {
	n := binary.LittleEndian.Uint64(id[8:]) % uint64(len(filter)/lineSize)
	return filter[n*lineSize : (n+1)*lineSize], binary.LittleEndian.Uint64(id[16:])
}

func filterAdd(filter []byte, id *chunk.ID) {
	l, bits := line(filter, id)
	for range probes {
		l[bits>>3&63] |= 1 << (bits & 7)
		bits >>= 9
	}
}

func filterHas(filter []byte, id *chunk.ID) bool {
	l, bits := line(filter, id)
	for range probes {
		if l[bits>>3&63]&(1<<(bits&7)) == 0 {
			return false
		}
		bits >>= 9
	}
	return true
}

func originNumber(raw []byte) uint32 { return binary.LittleEndian.Uint32(raw[chunk.IDSize:]) }

func setOriginNumber(raw []byte, n uint32) { binary.LittleEndian.PutUint32(raw[chunk.IDSize:], n) }
