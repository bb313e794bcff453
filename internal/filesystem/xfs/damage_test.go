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

// altered returns d with the byte at a place changed.
func (d *disk) altered(at int64) *disk {
	c := &disk{size: d.size, pages: maps.Clone(d.pages)}
	b := make([]byte, 1)
	_, _ = d.ReadAt(b, at)
	c.put([]byte{b[0] ^ 0x55}, at)
	return c
}

// readAll reads what is at the top of a file system, and the names below.
func readAll(d *disk) error {
	x, err := Open(d, d.size)
	if err != nil {
		return err
	}
	for e, err := range x.ReadDir(x.Root()) {
		if err != nil {
			return err
		}
		if _, err := knownOf(x, e.ID); err != nil {
			return err
		}
		if !e.Type.IsDir() {
			continue
		}
		for _, err := range x.ReadDir(e.ID) {
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Every byte of metadata of version 5 counts for a checksum, so that none can change unnoticed.
func TestDamageIsNoticed(t *testing.T) {
	d := loadDisk(t, "testdata/clean.image.gz")
	if err := readAll(d); err != nil {
		t.Fatal(err)
	}
	x, err := Open(d, d.size)
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range metadata(x) {
		if at == int64(x.sb.sectorSize) || at >= x.sb.offset(x.sb.logStart) && at < x.sb.offset(x.sb.logStart)+
			basicBlock*2 {
			continue // free space is not looked at, and neither is a log that is clean
		}
		ino := int64(i % 90)
		if data := d.pages[(at+ino)/pageSize]; data == nil || !isMetadata(x, data, at) {
			continue
		}
		if err := readAll(d.altered(at + ino)); !errors.Is(err, filesystem.ErrCorrupt) &&
			!errors.Is(err, filesystem.ErrNotThis) {
			t.Errorf("byte %d changed: %v", at+ino, err)
		}
	}
}

// isMetadata says whether a place begins a block that describes itself, or an inode.
func isMetadata(x *FS, pg []byte, at int64) bool {
	b := pg[at%pageSize:]
	if len(b) < 64 {
		return false
	}
	for _, l := range []*layout{&bmapLayout, &dirBlockLayout, &dirDataLayout, &attrLeafLayout, &attrNodeLayout,
		&symlinkLayout} {
		if x.is(l, b) {
			return true
		}
	}
	return string(b[:2]) == "IN" || string(b[:4]) == "XFSB"
}

// withSuper returns d with a part of the superblock replaced and its checksum made right.
func (d *disk) withSuper(at int64, data []byte) *disk {
	c := &disk{size: d.size, pages: maps.Clone(d.pages)}
	c.put(data, at)
	binary.LittleEndian.PutUint32(c.pages[0][superCRC:], checksum(c.pages[0][:basicBlock], superCRC))
	return c
}

func TestOpenRefuses(t *testing.T) {
	d := loadDisk(t, "testdata/clean.image.gz")
	dirty := loadDisk(t, "testdata/dirty.image.gz")
	for _, tt := range []struct {
		name string
		disk *disk
		want error
		text string
	}{
		{"nothing", &disk{size: 1 << 20}, filesystem.ErrNotThis, ""},
		{"too small for anything", &disk{size: 100}, filesystem.ErrNotThis, ""},
		{"an unknown feature", d.withSuper(216, []byte{0, 0x80, 0, 3}), filesystem.ErrUnsupported, "0x800000"},
		{"an unknown feature of the log, dirty", dirty.withSuper(220, []byte{0, 0x40, 0, 0}), filesystem.ErrUnsupported,
			"0x400000"},
		{"need of repair", d.withSuper(216, []byte{0, 0, 0, 0x1b}), filesystem.ErrCorrupt, "xfs_repair"},
		{"a log elsewhere", d.withSuper(48, make([]byte, 8)), filesystem.ErrUnsupported, "log on another device"},
		{"a cut off disk", &disk{size: d.size / 2, pages: d.pages}, filesystem.ErrCorrupt, "do not fit"},
		{"another version", d.withSuper(100, []byte{0xb4, 0xa6}), filesystem.ErrUnsupported, "XFS version 6"},
		{"blocks of no size", d.withSuper(4, make([]byte, 4)), filesystem.ErrCorrupt, "block size"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Open(tt.disk, tt.disk.size)
			if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
}

// Mappings that the log began to change are as they would have become.
func TestRemapping(t *testing.T) {
	list := []mapping{{0, 100, 10, false}, {10, 200, 10, true}, {30, 300, 10, false}}
	for _, tt := range []struct {
		name   string
		change remapping
		want   []mapping
	}{
		{"unmap the middle", remapping{unmap: true, to: mapping{3, 103, 4, false}},
			[]mapping{{0, 100, 3, false}, {7, 107, 3, false}, {10, 200, 10, true}, {30, 300, 10, false}}},
		{"unmap over two", remapping{unmap: true, to: mapping{5, 0, 10, false}},
			[]mapping{{0, 100, 5, false}, {15, 205, 5, true}, {30, 300, 10, false}}},
		{"map a hole", remapping{to: mapping{22, 500, 3, false}},
			[]mapping{{0, 100, 10, false}, {10, 200, 10, true}, {22, 500, 3, false}, {30, 300, 10, false}}},
		{"map the end", remapping{to: mapping{40, 500, 3, true}},
			[]mapping{{0, 100, 10, false}, {10, 200, 10, true}, {30, 300, 10, false}, {40, 500, 3, true}}},
		{"map over one", remapping{to: mapping{12, 500, 3, false}},
			[]mapping{{0, 100, 10, false}, {10, 200, 2, true}, {12, 500, 3, false}, {15, 205, 5, true},
				{30, 300, 10, false}}},
	} {
		if got := tt.change.change(list); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// An intent counts until the log says that it is done.
func TestIntents(t *testing.T) {
	bui := make([]byte, intentHeader+bmapIntentSize)
	le.PutUint16(bui, itemBUI)
	le.PutUint32(bui[4:], 1)
	le.PutUint64(bui[8:], 77)
	for at, v := range []uint64{131, 500, 22} { // inode, block, offset
		le.PutUint64(bui[intentHeader+at*8:], v)
	}
	le.PutUint32(bui[intentHeader+24:], 3)
	le.PutUint32(bui[intentHeader+28:], bmapMap)
	bud := bytes.Clone(bui[:intentHeader])
	le.PutUint16(bud, itemBUD)
	var n intents
	if err := n.note(&logItem{regions: [][]byte{bui}}); err != nil || n.unfinished() != 1 {
		t.Fatalf("%d unfinished: %v", n.unfinished(), err)
	}
	want := []remapping{{num: 131, to: mapping{22, 500, 3, false}}}
	if got := n.fixes().maps[131]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := n.note(&logItem{regions: [][]byte{bud}}); err != nil || n.unfinished() != 0 {
		t.Errorf("%d unfinished: %v", n.unfinished(), err)
	}
}
