package xfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// edited is an image of version 4, which has no checksums, that a guest with a hex editor has
// changed.
type edited struct {
	t testing.TB
	d *disk
	x *FS
}

func edit(t testing.TB) *edited {
	t.Helper()
	d := loadDisk(t, "testdata/v4-clean.image.gz")
	d = &disk{size: d.size, pages: maps.Clone(d.pages)}
	x, err := Open(d, d.size)
	if err != nil {
		t.Fatal(err)
	}
	return &edited{t, d, x}
}

// inode returns the number of what is at the top, and where it is.
func (e *edited) inode(name string) (id filesystem.ID, off int64) {
	e.t.Helper()
	id, err := e.x.Lookup(e.x.Root(), name)
	if err != nil {
		e.t.Fatal(err)
	}
	if off, err = e.x.sb.inodeOffset(uint64(id)); err != nil {
		e.t.Fatal(err)
	}
	return id, off
}

// extents makes a file or directory one of these pieces, each at its place in the list.
func (e *edited) extents(off int64, list []mapping) {
	e.t.Helper()
	var raw []byte
	for _, m := range list {
		raw = binary.BigEndian.AppendUint64(raw, m.off<<9|m.block>>43)
		raw = binary.BigEndian.AppendUint64(raw, m.block<<lengthBits|m.count)
	}
	e.d.put(raw, off+int64(e.x.sb.inodeHeader()))
	e.d.put(binary.BigEndian.AppendUint32(nil, uint32(len(list))), off+76)
	e.d.put([]byte{formatExtents}, off+5)
}

func (e *edited) reopened() *FS {
	e.t.Helper()
	x, err := Open(e.d, e.d.size)
	if err != nil {
		e.t.Fatal(err)
	}
	return x
}

func count(x *FS, dir filesystem.ID) (n int, last error) {
	for _, err := range x.ReadDir(dir) {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// A directory all of whose blocks are one ends where the block comes a second time.
func TestDirectoryOfOneBlock(t *testing.T) {
	e := edit(t)
	id, off := e.inode("dir60")
	whole, err := count(e.x, id)
	if err != nil || whole < 50 {
		t.Fatalf("%d entries, %v", whole, err)
	}
	ino, err := e.x.inode(uint64(id))
	if err != nil {
		t.Fatal(err)
	}
	list, err := e.x.dataMap(ino)
	if err != nil {
		t.Fatal(err)
	}
	var many []mapping
	for i := range uint64(8) {
		many = append(many, mapping{off: i, block: list[0].block, count: 1})
	}
	e.extents(off, many)
	e.d.put(binary.BigEndian.AppendUint64(nil, 8<<12), off+56)
	x := e.reopened()
	if n, err := count(x, id); n != whole || !errors.Is(err, filesystem.ErrCorrupt) ||
		!strings.Contains(err.Error(), "had before") {
		t.Errorf("%d entries, %v", n, err)
	}
	if _, err := x.Lookup(id, "none"); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("a name that is not there: %v", err)
	}
}

// A file of more blocks than there are, a btree that goes round, and a target of a link in a
// thousand blocks are refused before they are read.
func TestFilesWithoutEnd(t *testing.T) {
	e := edit(t)
	id, off := e.inode("sparse")
	half := e.x.sb.agBlocks / 2
	var many []mapping
	for i := range 2*e.x.sb.agCount + 1 {
		many = append(many, mapping{off: i * half, block: 1, count: half})
	}
	e.extents(off, many[:min(len(many), 9)])
	if _, err := e.reopened().Open(id); !errors.Is(err, filesystem.ErrCorrupt) ||
		!strings.Contains(err.Error(), "more blocks than") {
		t.Errorf("%d pieces of %d blocks of a disk of %d: %v", len(many), half, e.x.sb.blocks, err)
	}

	e = edit(t)
	id, off = e.inode("fragments many")
	ino, err := e.x.inode(uint64(id))
	if err != nil || ino.format != formatBtree {
		t.Fatal(err)
	}
	room := (len(ino.data) - bmapRootHeader) / recordSize
	pointers := off + int64(e.x.sb.inodeHeader()+bmapRootHeader+room*8)
	first := bytes.Clone(ino.data[bmapRootHeader+room*8:][:8])
	for i := range 3 {
		e.d.put(first, pointers+int64(i)*8)
	}
	e.d.put([]byte{0, 1, 0, 3}, off+int64(e.x.sb.inodeHeader()))
	if _, err := e.reopened().Open(id); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("a btree whose leaves are one: %v", err)
	}
	e.d.put([]byte{0, 2, 0, 1}, off+int64(e.x.sb.inodeHeader())) // the leaf above itself
	if _, err := e.reopened().Open(id); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("a btree below itself: %v", err)
	}

	e = edit(t)
	id, off = e.inode("link1023")
	e.extents(off, []mapping{{off: 0, block: 1, count: 1000}})
	if _, err := e.reopened().ReadLink(id); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("a link in a thousand blocks: %v", err)
	}
}

// Leaves of attributes that follow themselves end, also where they are empty.
func TestAttributesThatGoRound(t *testing.T) {
	e := edit(t)
	id, off := e.inode("xattrs many")
	ino, err := e.x.inode(uint64(id))
	if err != nil {
		t.Fatal(err)
	}
	list, err := e.x.attrMap(ino)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	attrs := off + int64(e.x.sb.inodeHeader()) + int64(len(ino.data))
	var raw []byte
	for _, m := range []mapping{{off: 0, block: list[0].block, count: 1},
		{off: 1, block: list[0].block, count: e.x.sb.agBlocks / 2}} {
		raw = binary.BigEndian.AppendUint64(raw, m.off<<9|m.block>>43)
		raw = binary.BigEndian.AppendUint64(raw, m.block<<lengthBits|m.count)
	}
	e.d.put(raw, attrs)
	e.d.put([]byte{0, 2}, off+80)
	leaf := e.x.sb.offset(list[0].block)
	e.d.put([]byte{0, 0, 0, 1}, leaf) // the next leaf is block 1, which is this one
	e.d.put([]byte{0, 0}, leaf+12)    // of no attributes
	if _, err := e.reopened().Xattrs(id); !errors.Is(err, filesystem.ErrCorrupt) ||
		!strings.Contains(err.Error(), "in a circle") {
		t.Errorf("%v", err)
	}
}

// What a log says is bounded in memory and in work, whatever it is made of.
func TestLogWithoutEnd(t *testing.T) {
	a := newAssembler(func(*transaction) error { return nil })
	a.pending = maxPending - 100
	var err error
	tid := uint32(0)
	for ; err == nil; tid++ {
		err = a.operation(tid, opStart, nil, 1)
	}
	if !errors.Is(err, filesystem.ErrUnsupported) || tid != 101 {
		t.Errorf("%d more transactions that do not end: %v", tid, err)
	}

	a = newAssembler(func(*transaction) error { return nil })
	header := binary.LittleEndian.AppendUint32(nil, transactionMagic)
	for _, op := range []struct {
		flags byte
		data  []byte
	}{{opStart, nil}, {0, append(header, make([]byte, 12)...)}, {0, []byte{0x3c, 0x12, 1, 0}}} {
		if err := a.operation(1, op.flags, op.data, 1); err != nil {
			t.Fatal(err)
		}
	}
	part := make([]byte, 100)
	size := 4
	for err = nil; err == nil; size += len(part) { // each time all of it was copied
		err = a.operation(1, opContinued, part, 1)
	}
	if !errors.Is(err, filesystem.ErrCorrupt) || size < maxRegion {
		t.Errorf("a region of %d bytes: %v", size, err)
	}
	if part[0] = 1; a.open[1].items[0].regions[0][4] != 0 {
		t.Error("a region is in somebody else's memory")
	}
}

// Changes that are finished are forgotten, and those that are not stay in their order.
func TestFinishedIntentsAreForgotten(t *testing.T) {
	note := func(n *intents, kind uint16, id uint64) {
		t.Helper()
		b := make([]byte, intentHeader+bmapIntentSize)
		le.PutUint16(b, kind)
		le.PutUint32(b[4:], 1)
		le.PutUint64(b[8:], id)
		le.PutUint64(b[intentHeader:], 131)
		le.PutUint64(b[intentHeader+8:], id)
		le.PutUint32(b[intentHeader+24:], 1)
		le.PutUint32(b[intentHeader+28:], bmapMap)
		if err := n.note(&logItem{regions: [][]byte{b}}); err != nil {
			t.Fatal(err)
		}
	}
	var n intents
	for id := range uint64(20_000) {
		note(&n, itemBUI, id)
		if id%1000 != 7 {
			note(&n, itemBUD, id)
		}
	}
	if len(n.begun) > 3000 || n.unfinished() != 20 {
		t.Errorf("%d are kept, %d are not finished", len(n.begun), n.unfinished())
	}
	var got []uint64
	for _, r := range n.fixes().maps[131] {
		got = append(got, r.to.block)
	}
	if fmt.Sprint(got[:3], len(got)) != "[7 1007 2007] 20" {
		t.Errorf("they are %v", got)
	}
	x := n.fixes()
	if _, err := x.remap(&FS{}, 131, false, make([]mapping, maxRemapWork/20+1)); !errors.Is(err,
		filesystem.ErrUnsupported) {
		t.Errorf("more work than a machine has time for: %v", err)
	}
}
