// Package partition finds where on a disk its partitions are: GPT, and MBR with logical partitions,
// numbered as Linux numbers them.
//
// A table is read as Linux reads it: GPT counts only where the MBR says so (hybrid ones too) or
// where there is no MBR at all, its checksums are verified, and the backup is used where the
// primary is damaged. What is returned lies inside the disk: partitions that begin beyond its end
// are left out and those that end beyond it are cut, each with a note. Chains of logical partitions
// end.
//
// All offsets and sizes are bytes.
package partition

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// Kind is a kind of partition table.
type Kind string

// The kinds of tables that are read.
const (
	GPT Kind = "gpt"
	MBR Kind = "mbr"
)

// Table is what a partition table says.
type Table struct {
	Kind       Kind
	UUID       string // of the disk: a GUID, or eight hexadecimal digits of an MBR; "" where there is none
	SectorSize int64
	Partitions []Partition // by number
	Notes      []string    // in words: what was wrong and passed over
}

// Partition is a part of a disk. Extended partitions, which only hold others, are not listed.
type Partition struct {
	Number       int // as Linux counts: logical ones from 5
	Offset, Size int64
	Type         string // a GUID in lower case, or 0x83
	Label        string // of a GPT
	UUID         string // PARTUUID as Linux has it
}

// maxPartitions are counted of a table: Linux has no names for more.
const maxPartitions = 256

// Name returns what Linux calls a partition of a disk: vda1, nvme0n1p1.
func Name(disk string, number int) string {
	if disk != "" && disk[len(disk)-1] >= '0' && disk[len(disk)-1] <= '9' {
		disk += "p"
	}
	return disk + strconv.Itoa(number)
}

// Read reads the partition table of a disk of size bytes. It returns filesystem.ErrNotThis where
// there is none, and filesystem.ErrCorrupt where there must have been one, but neither it nor its
// backup can be trusted.
func Read(r io.ReaderAt, size int64) (*Table, error) {
	sector, err := readAt(r, size, 0, 512)
	if errors.Is(err, filesystem.ErrCorrupt) {
		return nil, filesystem.ErrNotThis // smaller than a table
	}
	if err != nil {
		return nil, err
	}
	entries, valid := parseMBR(sector)
	if !valid {
		return readBareGPT(r, size, sector)
	}
	for _, e := range entries {
		if e.kind == protective {
			return readGPT(r, size)
		}
	}
	return readMBR(r, size, sector, 512)
}

// ReadMBR reads an MBR whose numbers count sectors of sectorSize bytes, which nothing in it says:
// Read takes them for 512.
func ReadMBR(r io.ReaderAt, size, sectorSize int64) (*Table, error) {
	sector, err := readAt(r, size, 0, 512)
	if err != nil {
		return nil, err
	}
	return readMBR(r, size, sector, sectorSize)
}

// readAt reads n bytes; what is not inside the disk is ErrCorrupt.
func readAt(r io.ReaderAt, size, off int64, n int) ([]byte, error) {
	if off < 0 || off > size || int64(n) > size-off {
		return nil, fmt.Errorf("%w: %d bytes at offset %d are beyond the end of the disk", filesystem.ErrCorrupt, n,
			off)
	}
	p := make([]byte, n)
	if got, err := r.ReadAt(p, off); got < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %d bytes at offset %d: %w", n, off, err)
	}
	return p, nil
}

// add takes a partition in, clipped at the end of the disk.
func (t *Table) add(p Partition, size int64) {
	switch {
	case len(t.Partitions) == maxPartitions:
		t.note("there are more than %d partitions: partition %d is left out", maxPartitions, p.Number)
		return
	case p.Offset >= size:
		t.note("partition %d begins at %d, beyond the end of the disk at %d", p.Number, p.Offset, size)
		return
	case p.Size > size-p.Offset:
		t.note("partition %d ends beyond the end of the disk: the last %d bytes are missing", p.Number,
			p.Size-(size-p.Offset))
		p.Size = size - p.Offset
	}
	t.Partitions = append(t.Partitions, p)
}

func (t *Table) note(format string, args ...any) {
	const most = 64
	if len(t.Notes) < most {
		t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
	}
}
