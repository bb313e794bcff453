package fat

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const windowSize = 16 << 10 // bytes of the table that are read at once

// window reads entries of the table, keeping a part of it.
type window struct {
	f   *FS
	off int64 // of buf in the table
	buf []byte
}

// next returns the entry of a cluster: the cluster that follows it; 0 is a free one.
func (w *window) next(cluster uint32) (uint32, error) {
	switch w.f.bits {
	case 32:
		b, err := w.bytes(int64(cluster)*4, 4)
		if err != nil {
			return 0, err
		}
		return binary.LittleEndian.Uint32(b) & 0x0fffffff, nil
	case 16:
		b, err := w.bytes(int64(cluster)*2, 2)
		if err != nil {
			return 0, err
		}
		return uint32(binary.LittleEndian.Uint16(b)), nil
	}
	b, err := w.bytes(int64(cluster)*3/2, 2)
	if err != nil {
		return 0, err
	}
	v := uint32(binary.LittleEndian.Uint16(b))
	if cluster&1 != 0 {
		return v >> 4, nil
	}
	return v & 0xfff, nil
}

func (w *window) bytes(off int64, n int) ([]byte, error) {
	if off < w.off || off+int64(n) > w.off+int64(len(w.buf)) {
		start := off &^ 1023
		size := min(windowSize, w.f.tableLen-start)
		if off+int64(n) > start+size {
			return nil, fmt.Errorf("FAT: %w: an entry is beyond the end of the table", filesystem.ErrCorrupt)
		}
		if int64(cap(w.buf)) < size {
			w.buf = make([]byte, windowSize)
		}
		w.buf, w.off = w.buf[:size], start
		if got, err := w.f.r.ReadAt(w.buf, w.f.table+start); int64(got) < size {
			w.buf = w.buf[:0]
			return nil, fmt.Errorf("read the FAT at %d: %w", start, unexpected(err))
		}
	}
	return w.buf[off-w.off:][:n], nil
}

// piece is a range of the disk that a file is in.
type piece struct {
	file, disk, size int64
}

// chain returns where the first size bytes of what begins at cluster are. It ends: a chain that
// comes back to itself is damage, however much is asked for. need says that a chain shorter than
// size is, too.
func (f *FS) chain(cluster uint32, size int64, need bool) ([]piece, error) {
	var out []piece
	w := window{f: f}
	for at := int64(0); at < size; at += f.cluster {
		if f.isEnd(cluster) && !need {
			break
		}
		if cluster < 2 || cluster-2 >= f.clusters {
			return nil, fmt.Errorf("FAT: %w: a chain of clusters breaks off after %d of %d bytes",
				filesystem.ErrCorrupt, at,
				size)
		}
		if at/f.cluster >= int64(f.clusters) {
			return nil, errLoop
		}
		out = f.append(out, piece{at, f.data + int64(cluster-2)*f.cluster, min(f.cluster, size-at)})
		next, err := w.next(cluster)
		if err != nil {
			return nil, err
		}
		cluster = next
	}
	if overlap(out) {
		return nil, errLoop
	}
	return out, nil
}

var errLoop = fmt.Errorf("FAT: %w: a chain of clusters comes back to itself", filesystem.ErrCorrupt)

// overlap reports whether two pieces have a byte of the disk in common.
func overlap(list []piece) bool {
	sorted := slices.Clone(list)
	slices.SortFunc(sorted, func(a, b piece) int { return cmp.Compare(a.disk, b.disk) })
	for i := 1; i < len(sorted); i++ {
		if sorted[i].disk < sorted[i-1].disk+sorted[i-1].size {
			return true
		}
	}
	return false
}

func (f *FS) append(list []piece, p piece) []piece {
	if n := len(list); n > 0 && list[n-1].disk+list[n-1].size == p.disk {
		list[n-1].size += p.size
		return list
	}
	return append(list, p)
}

// isEnd reports whether an entry is the mark at the end of a chain.
func (f *FS) isEnd(cluster uint32) bool {
	return cluster >= map[int]uint32{12: 0xff8, 16: 0xfff8, 32: 0x0ffffff8}[f.bits]
}
