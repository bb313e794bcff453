package partition

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	protective = 0xee // an MBR entry that says there is a GPT
	maxLogical = 128  // links of a chain of logical partitions; Linux stops at 100 that hold none
)

// entry is one of the four of an MBR or of a link of the chain of logical partitions. Numbers are
// in sectors.
type entry struct {
	boot, kind   byte
	start, count int64
}

func (e entry) extended() bool { return e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85 }

func (e entry) empty() bool { return e.count == 0 || e.kind == 0 }

// parseMBR returns the four entries of a sector, and whether it is a partition table at all and not
// the boot sector of a file system.
func parseMBR(sector []byte) (entries [4]entry, valid bool) {
	if sector[510] != 0x55 || sector[511] != 0xaa {
		return entries, false
	}
	used := 0
	for i := range entries {
		raw := sector[446+16*i:]
		e := entry{raw[0], raw[4], int64(binary.LittleEndian.Uint32(raw[8:])),
			int64(binary.LittleEndian.Uint32(raw[12:]))}
		entries[i] = e
		if e.boot != 0 && e.boot != 0x80 {
			return entries, false // the code of a boot sector
		}
		if e.empty() {
			continue
		}
		if e.start == 0 {
			// it would hold itself: a table that mkfs.fat puts into its boot sector for other
			// systems
			return entries, false
		}
		used++
	}
	return entries, used > 0
}

func readMBR(r io.ReaderAt, size int64, sector []byte, sectorSize int64) (*Table, error) {
	entries, valid := parseMBR(sector)
	if !valid {
		return nil, filesystem.ErrNotThis
	}
	t := &Table{Kind: MBR, SectorSize: sectorSize}
	if id := binary.LittleEndian.Uint32(sector[440:]); id != 0 {
		t.UUID = fmt.Sprintf("%08x", id)
	}
	for i, e := range entries {
		if !e.empty() && !e.extended() {
			t.addEntry(i+1, e, 0, size)
		}
	}
	next := 5
	for _, e := range entries {
		if !e.empty() && e.extended() {
			var err error
			if next, err = t.readLogical(r, size, e, next); err != nil {
				return nil, err
			}
		}
	}
	return t, nil
}

// addEntry takes in a partition whose numbers count from base, in sectors.
func (t *Table) addEntry(number int, e entry, base, size int64) {
	p := Partition{Number: number, Offset: (base + e.start) * t.SectorSize, Size: e.count * t.SectorSize,
		Type: fmt.Sprintf("0x%02x", e.kind)}
	if t.UUID != "" {
		p.UUID = fmt.Sprintf("%s-%02x", t.UUID, number)
	}
	t.add(p, size)
}

// readLogical follows the chain that begins in the extended partition ext, and returns the number
// that is next.
func (t *Table) readLogical(r io.ReaderAt, size int64, ext entry, next int) (int, error) {
	seen := map[int64]bool{}
	for link := ext.start; ; {
		if seen[link] || len(seen) == maxLogical {
			t.note("the chain of logical partitions does not end: the first %d are shown", next-5)
			return next, nil
		}
		seen[link] = true
		entries, ok, err := t.readLink(r, size, link)
		if err != nil {
			return 0, err
		}
		if !ok {
			t.note("the chain of logical partitions is broken at sector %d: the first %d are shown", link, next-5)
			return next, nil
		}
		next = t.addLink(entries, link, ext, next, size)
		following := firstExtended(entries)
		if following == nil {
			return next, nil
		}
		link = ext.start + following.start
	}
}

// readLink reads the entries of one link; ok is false where there is none.
func (t *Table) readLink(r io.ReaderAt, size, link int64) (entries [4]entry, ok bool, err error) {
	off := link * t.SectorSize
	if off+512 > size {
		return entries, false, nil
	}
	sector, err := readAt(r, size, off, 512)
	if err != nil {
		return entries, false, err
	}
	if sector[510] != 0x55 || sector[511] != 0xaa {
		return entries, false, nil
	}
	for i := range entries {
		raw := sector[446+16*i:]
		entries[i] = entry{raw[0], raw[4], int64(binary.LittleEndian.Uint32(raw[8:])),
			int64(binary.LittleEndian.Uint32(raw[12:]))}
	}
	return entries, true, nil
}

// addLink takes in what a link holds. Its third and fourth entry count only where they are inside
// the extended partition, as in Linux: some programs leave garbage there.
func (t *Table) addLink(entries [4]entry, link int64, ext entry, next int, size int64) int {
	for i, e := range entries {
		if e.count == 0 || e.extended() {
			continue
		}
		if start := link + e.start; i >= 2 && (start < ext.start || start+e.count > ext.start+ext.count) {
			continue
		}
		t.addEntry(next, e, link, size)
		next++
	}
	return next
}

func firstExtended(entries [4]entry) *entry {
	for i := range entries {
		if entries[i].count != 0 && entries[i].extended() {
			return &entries[i]
		}
	}
	return nil
}
