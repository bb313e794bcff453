// Package fat reads FAT12, FAT16 and FAT32 with long names, as Linux mounts them.
//
// Names are UTF-8; short ones without a long one are taken from code page 437, in lower case where
// the entry says so. Files have neither owners nor permissions: they are root's, 0755, as a plain
// mount shows them. Times are the guest's local times, read as UTC. exFAT is another file system:
// ErrNotThis.
package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const entrySize = 32

// FS is an open FAT file system. It is safe for concurrent use and keeps nothing in memory but its
// geometry.
type FS struct {
	r        io.ReaderAt
	bits     int   // 12, 16 or 32 of an entry of the table
	cluster  int64 // bytes
	table    int64 // where the table that counts begins
	tableLen int64 // bytes of it
	data     int64 // where cluster 2 is
	clusters uint32
	rootOff  int64 // of FAT12 and 16: where the fixed root directory is
	rootLen  int64
	rootAt   uint32 // of FAT32: its first cluster
	info     filesystem.Info
}

// Open reads the geometry of the file system in r, size bytes long.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	boot := make([]byte, 512)
	if size < 512 {
		return nil, filesystem.ErrNotThis
	}
	if n, err := r.ReadAt(boot, 0); n < len(boot) {
		return nil, fmt.Errorf("read the boot sector: %w", unexpected(err))
	}
	f := &FS{r: r}
	if err := f.geometry(boot, size); err != nil {
		return nil, err
	}
	if err := f.identify(boot); err != nil {
		return nil, err
	}
	return f, nil
}

// geometry checks the boot sector and takes in where everything is.
func (f *FS) geometry(boot []byte, size int64) error {
	le := binary.LittleEndian
	sector, perCluster := int64(le.Uint16(boot[11:])), int64(boot[13])
	reserved, tables, rootEntries := int64(le.Uint16(boot[14:])), int64(boot[16]), int64(le.Uint16(boot[17:]))
	if !looksLikeFAT(boot, sector, perCluster, reserved, tables) {
		return filesystem.ErrNotThis
	}
	total, length := int64(le.Uint16(boot[19:])), int64(le.Uint16(boot[22:]))
	if total == 0 {
		total = int64(le.Uint32(boot[32:]))
	}
	wide := length == 0
	if wide {
		length = int64(le.Uint32(boot[36:]))
	}
	if length == 0 || total == 0 {
		return filesystem.ErrNotThis
	}
	rootSectors := (rootEntries*entrySize + sector - 1) / sector
	dataStart := reserved + tables*length + rootSectors
	if dataStart >= total {
		return fmt.Errorf("FAT: %w: it is smaller than its tables", filesystem.ErrCorrupt)
	}
	if total > size/sector {
		return fmt.Errorf("FAT: %w: it has %d bytes, but only %d are there", filesystem.ErrCorrupt, total*sector, size)
	}
	f.cluster = sector * perCluster
	f.tableLen = length * sector
	f.table = reserved * sector
	f.rootOff, f.rootLen = (reserved+tables*length)*sector, rootEntries*entrySize
	f.data = dataStart * sector
	f.info.Size = total * sector
	f.info.Type = "vfat"
	f.width(wide, (total-dataStart)/perCluster)
	if wide {
		f.rootAt = le.Uint32(boot[44:])
		// only one table is kept up to date
		if flags := le.Uint16(boot[40:]); flags&0x80 != 0 && int64(flags&0xf) < tables {
			f.table += int64(flags&0xf) * f.tableLen
		}
	}
	return nil
}

// width decides how wide the table's entries are, as Linux does, and how many clusters can be
// counted with them.
func (f *FS) width(wide bool, clusters int64) {
	const max12 = 0xff4
	switch {
	case wide:
		f.bits = 32
	case clusters <= max12:
		f.bits = 12
	default:
		f.bits = 16
	}
	limit := f.tableLen*8/int64(f.bits) - 2
	f.clusters = uint32(max(min(clusters, limit, map[int]int64{12: 0xff4, 16: 0xfff4, 32: 0xffffff4}[f.bits]), 0))
}

func looksLikeFAT(boot []byte, sector, perCluster, reserved, tables int64) bool {
	switch {
	case boot[0] != 0xeb && boot[0] != 0xe9:
		return false
	case sector != 512 && sector != 1024 && sector != 2048 && sector != 4096:
		return false
	case perCluster == 0 || perCluster&(perCluster-1) != 0 || reserved == 0 || tables == 0 || tables > 4:
		return false
	}
	return boot[21] == 0xf0 || boot[21] >= 0xf8 // kind of medium
}

// identify reads the label, the serial number and how much is in use.
func (f *FS) identify(boot []byte) error {
	at := 36 // of the extended part
	if f.bits == 32 {
		at = 64
	}
	if boot[at+2] == 0x29 || boot[at+2] == 0x28 {
		serial := binary.LittleEndian.Uint32(boot[at+3:])
		f.info.UUID = fmt.Sprintf("%04X-%04X", serial>>16, serial&0xffff)
		if boot[at+2] == 0x29 {
			f.info.Label = fromOEM(strings.TrimRight(string(boot[at+7:at+18]), " \x00"))
		}
	}
	if f.info.Label == "NO NAME" {
		f.info.Label = ""
	}
	label, err := f.rootLabel()
	switch {
	case errors.Is(err, filesystem.ErrCorrupt): // whoever reads the directory is told
	case err != nil:
		return err
	case label != "":
		f.info.Label = label
	}
	f.info.Notes = []string{"times are the guest's local times, shown as UTC"}
	return f.countUsed(boot)
}

// countUsed takes the number of free clusters from where FAT32 keeps it, and counts in the smaller
// tables.
func (f *FS) countUsed(boot []byte) error {
	if f.bits != 32 {
		used, err := f.countTable()
		f.info.Used = used * f.cluster
		return err
	}
	sector := int64(binary.LittleEndian.Uint16(boot[11:]))
	raw := make([]byte, 512)
	if at := int64(binary.LittleEndian.Uint16(boot[48:])) * sector; at > 0 && at+512 <= f.info.Size {
		if n, err := f.r.ReadAt(raw, at); n < len(raw) {
			return fmt.Errorf("read the count of free clusters: %w", unexpected(err))
		}
	}
	free := binary.LittleEndian.Uint32(raw[488:])
	if string(raw[:4]) == "RRaA" && string(raw[484:488]) == "rrAa" && free <= f.clusters {
		f.info.Used = int64(f.clusters-free) * f.cluster
	}
	return nil
}

func (f *FS) countTable() (used int64, err error) {
	w := window{f: f}
	for c := range f.clusters {
		next, err := w.next(c + 2)
		if err != nil {
			return 0, err
		}
		if next != 0 {
			used++
		}
	}
	return used, nil
}

// Info returns what kind of file system it is.
func (f *FS) Info() filesystem.Info { return f.info }

// unexpected makes sure that a short read is an error.
func unexpected(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
