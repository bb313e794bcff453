package xfs

import (
	"encoding/binary"
	"io"
	"maps"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/filesystemtest"
)

// changed returns d with bytes put over it: runs of a place of eight bytes, a length of one, and
// what is put there.
func (d *disk) changed(changes []byte) *disk {
	c := &disk{size: d.size, pages: maps.Clone(d.pages)}
	for len(changes) > 9 {
		at := int64(binary.LittleEndian.Uint64(changes) % uint64(d.size))
		n := min(int(changes[8]), len(changes)-9, int(pageSize-at%pageSize))
		c.put(changes[9:9+n], at)
		changes = changes[9+n:]
	}
	return c
}

// put writes within one page.
func (d *disk) put(data []byte, at int64) {
	(&filesystemtest.Pages{Size: d.size, All: d.pages}).Put(data, at)
}

// exercise reads all of a file system that may be damaged in any way, though not without end.
func exercise(x *FS) {
	todo, seen := []filesystem.ID{x.Root()}, map[filesystem.ID]bool{}
	for len(todo) > 0 && len(seen) < 500 {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[id] {
			continue
		}
		seen[id] = true
		_, _ = x.Stat(id)
		_, _ = x.Xattrs(id)
		_, _ = x.ReadLink(id)
		if file, err := x.Open(id); err == nil {
			_, _ = file.Extents()
			_, _ = io.CopyN(io.Discard, io.NewSectionReader(file, 0, file.Size()), 40000)
			_, _ = file.ReadAt(make([]byte, 5000), file.Size()-3000)
		}
		_, _ = x.Lookup(id, "no such name")
		for e, err := range x.ReadDir(id) {
			if err != nil {
				break
			}
			todo = append(todo, e.ID)
		}
	}
}

// metadata returns places in an image that are worth changing.
func metadata(x *FS) []int64 {
	places := []int64{0, int64(x.sb.sectorSize), x.sb.offset(x.sb.logStart), x.sb.offset(x.sb.logStart) + 512}
	for id, err := range x.entries(x.sb.root) {
		if err != nil {
			break
		}
		ino, err := x.inode(id.ino)
		if err != nil {
			continue
		}
		if off, err := x.sb.inodeOffset(id.ino); err == nil {
			places = append(places, off, off+int64(x.sb.inodeHeader()))
		}
		for _, fork := range []func(*inode) ([]mapping, error){x.dataMap, x.attrMap} {
			if list, err := fork(ino); err == nil && len(list) > 0 {
				places = append(places, x.sb.offset(list[0].block))
			}
		}
	}
	return places
}

// Whatever the bytes, reading ends, and without a panic.
func FuzzOpen(f *testing.F) {
	var bases []*disk
	for _, name := range []string{"testdata/clean.image.gz", "testdata/dirty.image.gz"} {
		d := loadDisk(f, name)
		x, err := Open(d, d.size)
		if err != nil {
			f.Fatal(err)
		}
		for i, at := range metadata(x)[:40] {
			change := append(binary.LittleEndian.AppendUint64(nil, uint64(at)+uint64(i%100)), 4, 0, byte(i), 0xff,
				byte(i*7))
			f.Add(uint8(len(bases)), change)
		}
		bases = append(bases, d)
	}
	f.Fuzz(func(t *testing.T, base uint8, changes []byte) {
		d := bases[int(base)%len(bases)].changed(changes)
		if x, err := open(d, d.size, true); err == nil {
			exercise(x)
		}
	})
}

// Whatever is in the log, replaying it ends, and so does reading what it made.
func FuzzLog(f *testing.F) {
	d := loadDisk(f, "testdata/dirty.image.gz")
	x, err := Open(d, d.size)
	if err != nil {
		f.Fatal(err)
	}
	j, err := x.journal()
	if err != nil {
		f.Fatal(err)
	}
	used := make([]byte, 256<<10)
	if _, err := d.ReadAt(used, j.start); err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), used[:8192])
	for at := uint32(0); at < uint32(len(used)); at += 4096 + 512 {
		f.Add(at+44, []byte("\x00\x01\x02\x03"))
		f.Add(at+512, []byte{0xff, 0xff, 0x3c, 0x12, 2, 0, 0, 0, 1})
	}
	f.Fuzz(func(t *testing.T, at uint32, log []byte) {
		c := &disk{size: d.size, pages: maps.Clone(d.pages)}
		for pos := j.start + int64(at)%(j.blocks*basicBlock); len(log) > 0; {
			n := min(len(log), int(pageSize-pos%pageSize))
			if pos+int64(n) > j.start+j.blocks*basicBlock {
				break
			}
			c.put(log[:n], pos)
			log, pos = log[n:], pos+int64(n)
		}
		if x, err := open(c, c.size, true); err == nil {
			exercise(x)
		}
	})
}
