package partition

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf16"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	gptMagic   = "EFI PART"
	headerSize = 92
	maxEntries = 4 << 20 // bytes of a table of entries; 128 of 128 bytes are usual
)

// header is a GPT header whose checksum is right. Numbers are in sectors.
type header struct {
	sectorSize       int64
	disk             [16]byte
	entries          int64 // where they are
	count, entrySize int64
	entriesSum       uint32
}

// readBareGPT reads a GPT without an MBR to say that there is one: only the primary counts, since a
// disk that was made a whole file system may keep an old backup at its end.
func readBareGPT(r io.ReaderAt, size int64, sector []byte) (*Table, error) {
	if sector[510] == 0x55 && sector[511] == 0xaa {
		return nil, filesystem.ErrNotThis
	}
	for _, ss := range []int64{512, 4096} {
		t, err := tryGPT(r, size, ss, 1)
		if err == nil {
			t.note("the disk has a GPT, but no protective MBR")
			return t, nil
		}
		if !damaged(err) {
			return nil, err
		}
	}
	return nil, filesystem.ErrNotThis
}

// readGPT reads the primary table, or the backup where the primary is damaged.
func readGPT(r io.ReaderAt, size int64) (*Table, error) {
	var reasons []error
	for _, ss := range []int64{512, 4096} {
		t, err := tryGPT(r, size, ss, 1)
		if err == nil {
			return t, nil
		}
		if !damaged(err) {
			return nil, err
		}
		if !errors.Is(err, filesystem.ErrNotThis) {
			reasons = append(reasons, err)
		}
	}
	primary := errors.Join(reasons...)
	if primary == nil {
		primary = fmt.Errorf("%w: it has no header", filesystem.ErrCorrupt)
	}
	for _, at := range backups(r, size) {
		t, err := tryGPT(r, size, at.sectorSize, at.lba)
		if err == nil {
			t.note("the GPT is damaged (%v): its backup was used", primary)
			return t, nil
		}
		if !damaged(err) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("GPT: %w; and it has no valid backup", primary)
}

// damaged reports whether err speaks of what the disk holds, not of reading it.
func damaged(err error) bool {
	return errors.Is(err, filesystem.ErrCorrupt) || errors.Is(err, filesystem.ErrNotThis)
}

type place struct{ sectorSize, lba int64 }

// backups returns where a backup header may be: where a damaged primary says, and at the end of the
// disk.
func backups(r io.ReaderAt, size int64) []place {
	var out []place
	for _, ss := range []int64{512, 4096} {
		if raw, err := readAt(r, size, ss, headerSize); err == nil && string(raw[:8]) == gptMagic {
			if lba := binary.LittleEndian.Uint64(raw[32:]); lba > 1 && lba < uint64(size/ss) {
				out = append(out, place{ss, int64(lba)})
			}
		}
		out = append(out, place{ss, size/ss - 1})
	}
	return out
}

// tryGPT reads the table whose header is at lba. ErrNotThis means no header at all.
func tryGPT(r io.ReaderAt, size, sectorSize, lba int64) (*Table, error) {
	h, err := readHeader(r, size, sectorSize, lba)
	if err != nil {
		return nil, err
	}
	if h.entries <= 0 || h.entries >= size/sectorSize {
		return nil, fmt.Errorf("%w: the entries are beyond the end of the disk", filesystem.ErrCorrupt)
	}
	raw, err := readAt(r, size, h.entries*sectorSize, int(h.count*h.entrySize))
	if err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(raw) != h.entriesSum {
		return nil, fmt.Errorf("%w: the checksum of the entries is wrong", filesystem.ErrCorrupt)
	}
	t := &Table{Kind: GPT, UUID: guid(h.disk[:]), SectorSize: sectorSize}
	for i := range h.count {
		t.addGPT(int(i)+1, raw[i*h.entrySize:][:128], size)
	}
	return t, nil
}

func readHeader(r io.ReaderAt, size, sectorSize, lba int64) (*header, error) {
	raw, err := readAt(r, size, lba*sectorSize, int(sectorSize))
	if errors.Is(err, filesystem.ErrCorrupt) {
		return nil, filesystem.ErrNotThis
	}
	if err != nil {
		return nil, err
	}
	if string(raw[:8]) != gptMagic {
		return nil, filesystem.ErrNotThis
	}
	le := binary.LittleEndian
	length := le.Uint32(raw[12:])
	if length < headerSize || int64(length) > sectorSize {
		return nil, fmt.Errorf("%w: a header of %d bytes", filesystem.ErrCorrupt, length)
	}
	sum := le.Uint32(raw[16:])
	clear(raw[16:20])
	if crc32.ChecksumIEEE(raw[:length]) != sum {
		return nil, fmt.Errorf("%w: the checksum of the header is wrong", filesystem.ErrCorrupt)
	}
	if le.Uint64(raw[24:]) != uint64(lba) {
		return nil, fmt.Errorf("%w: the header is in another place than it says", filesystem.ErrCorrupt)
	}
	h := &header{sectorSize: sectorSize, entries: int64(le.Uint64(raw[72:])),
		count: int64(le.Uint32(raw[80:])), entrySize: int64(le.Uint32(raw[84:])), entriesSum: le.Uint32(raw[88:])}
	copy(h.disk[:], raw[56:])
	if h.entrySize < 128 || h.entrySize > 4096 || h.count > maxEntries/h.entrySize {
		return nil, fmt.Errorf("%w: %d entries of %d bytes", filesystem.ErrCorrupt, h.count, h.entrySize)
	}
	return h, nil
}

func (t *Table) addGPT(number int, raw []byte, size int64) {
	le := binary.LittleEndian
	kind := raw[:16]
	if [16]byte(kind) == [16]byte{} {
		return
	}
	first, last := le.Uint64(raw[32:]), le.Uint64(raw[40:])
	if first > last || last >= 1<<62/uint64(t.SectorSize) {
		t.note("partition %d is from sector %d to %d: left out", number, first, last)
		return
	}
	t.add(Partition{Number: number, Offset: int64(first) * t.SectorSize, Size: int64(last-first+1) * t.SectorSize,
		Type: guid(kind), UUID: guid(raw[16:32]), Label: label(raw[56:128])}, size)
}

// guid prints 16 bytes as Microsoft orders them.
func guid(b []byte) string {
	var v [16]byte
	for i, from := range []int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15} {
		v[i] = b[from]
	}
	s := hex.EncodeToString(v[:])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}

func label(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}
