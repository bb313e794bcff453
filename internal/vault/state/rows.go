package state

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state/tier"
)

// Tables: the first byte of a key. Those of small letters are open, those of capitals sealed.
const (
	tablePack      = 'k' // object ID: a good object
	tableCondemned = 'c' // object ID: a condemned name
	tableMirror    = 'm' // mirror ID: its pin
	tableVolume    = 'v' // volume: where it ended
	tableAdded     = 'a' // count of the entry that added it (big-endian), object ID: a good object
	tableDamaged   = 'd' // object ID: a good pack in which a check found damage

	tablePoint   = 'P' // point ID
	tableChild   = 'X' // point ID, point ID that has it as a base
	tableBase    = 'Y' // the mirror image: point ID, point ID of its base
	tableFind    = 'F' // length of a find, find, complement of the time, point ID
	tableDeleted = 'D' // point ID: it is deleted softly
	tablePurged  = 'G' // point ID: it is purged
	tablePending = 'Q' // count of the purge, number in it (both big-endian), point ID: nobody said what it freed
	tableCursor  = 'O' // point ID: how far that was said
	tableHold    = 'H' // point ID, hold ID
	tableLock    = 'L' // point ID
	tableBits    = 'B' // object ID: which of its slots are shared, and freed
	tableWriter  = 'W' // writer
	tableSession = 'S' // session, number of a progress entry
)

func key(table byte, parts ...[]byte) []byte {
	k := []byte{table}
	for _, p := range parts {
		k = append(k, p...)
	}
	return k
}

func addedKey(count uint64, id log.ObjectID) []byte {
	return append(binary.BigEndian.AppendUint64(key(tableAdded), count), id[:]...)
}

func findKey(find string, time int64, id ID) []byte {
	k := append(key(tableFind, []byte{byte(len(find))}), find...)
	return append(binary.BigEndian.AppendUint64(k, ^uint64(time)), id[:]...)
}

func pendingKey(at uint64, number uint32, id ID) []byte {
	k := binary.BigEndian.AppendUint64(key(tablePending), at)
	return append(binary.BigEndian.AppendUint32(k, number), id[:]...)
}

func writerKey(w [12]byte) []byte { return key(tableWriter, w[:]) }

// enc appends values; dec takes them off again, and is zero once there were too few.
type enc []byte

func (e enc) u8(v byte) enc         { return append(e, v) }
func (e enc) u32(v uint32) enc      { return binary.LittleEndian.AppendUint32(e, v) }
func (e enc) u64(v uint64) enc      { return binary.LittleEndian.AppendUint64(e, v) }
func (e enc) raw(b []byte) enc      { return append(e, b...) }
func (e enc) bytes(b []byte) enc    { return append(e.u32(uint32(len(b))), b...) }
func (e enc) bool(v bool) enc       { return e.u8(map[bool]byte{true: 1}[v]) }
func (e enc) at(p log.Position) enc { return p.Append(e) }

type dec struct {
	b   []byte
	bad bool
}

func (d *dec) take(n int) []byte {
	if d.bad || n < 0 || n > len(d.b) {
		d.bad = true
		return make([]byte, max(0, min(n, 64)))
	}
	out := d.b[:n:n]
	d.b = d.b[n:]
	return out
}

func (d *dec) u8() byte         { return d.take(1)[0] }
func (d *dec) u32() uint32      { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *dec) u64() uint64      { return binary.LittleEndian.Uint64(d.take(8)) }
func (d *dec) bool() bool       { return d.u8() != 0 }
func (d *dec) at() log.Position { return log.ReadPosition(d.take(log.PositionSize)) }

func (d *dec) bytes() []byte {
	n := d.u32()
	if uint64(n) > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	return d.take(int(n))
}

// count takes the number of things that take at least size bytes each.
func (d *dec) count(size int) int {
	n := d.u32()
	if uint64(n)*uint64(size) > uint64(len(d.b)) {
		d.bad = true
		return 0
	}
	return int(n)
}

var errBody = errors.New("its body reads wrong")

// end returns an error unless all was taken and nothing was missing.
func (d *dec) end() error {
	if d.bad || len(d.b) > 0 {
		return errBody
	}
	return nil
}

// packRow is a good object.
type packRow struct {
	Object log.Object // without the ID
	Added  uint64     // count of the entry
	Time   int64      // of the entry, milliseconds since 1970
}

func (p packRow) encode() []byte {
	return enc(nil).u8(byte(p.Object.Kind)).u8(p.Object.Copy).u64(p.Object.Size).raw(p.Object.Sum[:]).u64(p.Added).
		u64(uint64(p.Time))
}

func readPack(id log.ObjectID, b []byte) (p packRow, err error) {
	d := dec{b: b}
	p.Object = log.Object{ID: id, Kind: log.ObjectKind(d.u8()), Copy: d.u8(), Size: d.u64()}
	copy(p.Object.Sum[:], d.take(32))
	p.Added, p.Time = d.u64(), int64(d.u64())
	return p, d.end()
}

// condemnedRow is a condemned name.
type condemnedRow struct {
	At   uint64 // count of the entry
	Gone bool   // the object was deleted
	Part bool   // it is no pack
}

func (c condemnedRow) encode() []byte { return enc(nil).u64(c.At).bool(c.Gone).bool(c.Part) }

func readCondemned(b []byte) (c condemnedRow, err error) {
	d := dec{b: b}
	c = condemnedRow{At: d.u64(), Gone: d.bool(), Part: d.bool()}
	return c, d.end()
}

// purgedRow says when a point was purged.
type purgedRow struct {
	At     uint64 // count of the entry
	Number uint32 // among those that it purged
}

func readPurged(b []byte) (p purgedRow, err error) {
	d := dec{b: b}
	p = purgedRow{At: d.u64(), Number: d.u32()}
	return p, d.end()
}

func (p purgedRow) before(q purgedRow) bool {
	return p.At < q.At || p.At == q.At && p.Number < q.Number
}

// writerRow is what a writer appended last: Mask has bit i where Last-i is in the history.
type writerRow struct {
	Last uint32
	Mask uint64
	In   log.Volume
}

func (w writerRow) encode() []byte { return w.In.Append(enc(nil).u32(w.Last).u64(w.Mask)) }

func readWriter(b []byte) (w writerRow, err error) {
	d := dec{b: b}
	w = writerRow{Last: d.u32(), Mask: d.u64()}
	w.In = log.ReadVolume(d.take(10))
	return w, d.end()
}

func (w writerRow) join(newer writerRow) writerRow {
	if newer.Last < w.Last {
		return newer.join(w)
	}
	if n := newer.Last - w.Last; n < 64 {
		newer.Mask |= w.Mask << n
	}
	return newer
}

// bitsRow says of the slots of a pack which are shared, and which were freed and not shared since.
type bitsRow struct {
	Counted       uint64 // count of the last entry that counted on the pack
	Shared, Freed []byte // bitmaps
	FreedBytes    uint64 // of all slots that were ever freed
	FreedSince    int64  // time of the first entry that freed any, milliseconds since 1970
	Moved         bool   // a condemnation made the pack of what lived elsewhere
}

func (r bitsRow) encode() []byte {
	e := enc(nil).u64(r.Counted).bytes(r.Shared).bytes(r.Freed)
	return e.u64(r.FreedBytes).u64(uint64(r.FreedSince)).bool(r.Moved)
}

func readBits(b []byte) (r bitsRow, err error) {
	d := dec{b: b}
	r = bitsRow{Counted: d.u64(), Shared: d.bytes(), Freed: d.bytes()}
	r.FreedBytes, r.FreedSince, r.Moved = d.u64(), int64(d.u64()), d.bool()
	return r, d.end()
}

func (r bitsRow) join(newer bitsRow) bitsRow {
	freed := make([]byte, max(len(r.Freed), len(newer.Freed)))
	copy(freed, r.Freed)
	for i := range freed {
		if i < len(newer.Shared) {
			freed[i] &^= newer.Shared[i]
		}
		if i < len(newer.Freed) {
			freed[i] |= newer.Freed[i]
		}
	}
	shared := make([]byte, max(len(r.Shared), len(newer.Shared)))
	copy(shared, r.Shared)
	for i, b := range newer.Shared {
		shared[i] |= b
	}
	since := r.FreedSince
	if since == 0 || newer.FreedSince != 0 && newer.FreedSince < since {
		since = newer.FreedSince
	}
	return bitsRow{Counted: max(r.Counted, newer.Counted), Shared: shared, Freed: freed,
		FreedBytes: r.FreedBytes + newer.FreedBytes, FreedSince: since, Moved: r.Moved || newer.Moved}
}

// rules are how rows meet: [tier.Rules].
type rules struct{ s *State }

func (rules) Adds(key []byte) bool                { return adds(key) }
func (rules) Join(older, newer tier.Row) tier.Row { return join(older, newer) }
func (r rules) Keep(row tier.Row) bool            { return keep(row, r.s.now().Forget) }

func adds(key []byte) bool { return key[0] == tableBits || key[0] == tableWriter }

// join returns the row of a key that adds up. One that reads wrong was written by nobody: its fold
// would have failed.
func join(older, newer tier.Row) tier.Row {
	if newer.Gone || older.Gone {
		return newer
	}
	if newer.Key[0] == tableWriter {
		a, _ := readWriter(older.Value)
		b, _ := readWriter(newer.Value)
		return tier.Row{Key: newer.Key, Value: a.join(b).encode()}
	}
	a, _ := readBits(older.Value)
	b, _ := readBits(newer.Value)
	return tier.Row{Key: newer.Key, Value: a.join(b).encode()}
}

// keep reports whether a row is to be remembered: nonces and names of packs that are gone are
// forgotten with their volume.
func keep(r tier.Row, forget log.Volume) bool {
	switch r.Key[0] {
	case tableWriter:
		w, err := readWriter(r.Value)
		return err != nil || r.Gone || w.In.Compare(forget) >= 0
	case tableCondemned:
		c, err := readCondemned(r.Value)
		return err != nil || r.Gone || !c.Gone || log.ReadVolume(r.Key[1:]).Compare(forget) >= 0
	}
	return true
}

func damaged(what string, err error) error {
	return fmt.Errorf("%w: %s: %w", log.ErrDamaged, what, err)
}
