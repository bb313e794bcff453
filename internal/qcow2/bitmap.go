package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/holdfast-vm/holdfast/internal/extent"
)

const (
	bitmapInUse     = 1 << 0
	bitmapAuto      = 1 << 1
	bitmapExtraSafe = 1 << 2 // unknown extra data does not change the meaning

	maxBitmaps        = 65535 // QEMU's limit
	maxBitmapName     = 1023
	minGranularBits   = 9
	maxGranularBits   = 31
	dirEntryBytes     = 24
	maxDirectoryBytes = maxBitmaps * (dirEntryBytes + maxBitmapName + 1)
	dirtyBitmap       = 1 // the only type there is
)

// BitmapInfo is an entry of the bitmap directory.
type BitmapInfo struct {
	Name        string
	InUse       bool  // not saved properly: may not be trusted
	Auto        bool  // enabled: QEMU records into it whenever the image is open for writing
	Granularity int64 // bytes per bit

	tableOff, tableEntries int64
	foreign                bool // of a kind whose bits mean something else
}

// Bitmaps returns the persistent dirty bitmaps of the image. When the image was written by
// something that does not know bitmaps, all of them are InUse.
func (m *Image) Bitmaps() ([]BitmapInfo, error) {
	b := m.h.bitmaps
	if b.count == 0 {
		return nil, nil
	}
	if b.bytes > maxDirectoryBytes || b.bytes < int64(b.count)*dirEntryBytes {
		return nil, corrupt("bitmap directory of %d bytes for %d bitmaps", b.bytes, b.count)
	}
	if b.off > m.fileSize-b.bytes {
		return nil, corrupt("bitmap directory at %d of %d bytes is beyond the end of the file at %d", b.off, b.bytes,
			m.fileSize)
	}
	dir := make([]byte, b.bytes)
	if err := m.readFull(dir, b.off, "bitmap directory"); err != nil {
		return nil, err
	}
	var list []BitmapInfo
	for range b.count {
		info, n, err := decodeDirEntry(dir)
		if err != nil {
			return nil, err
		}
		info.InUse = info.InUse || m.h.autoclear&autoclearBitmaps == 0
		list, dir = append(list, info), dir[n:]
	}
	return list, nil
}

// decodeDirEntry decodes the first entry of dir and returns its length.
func decodeDirEntry(dir []byte) (BitmapInfo, int, error) {
	be := binary.BigEndian
	if len(dir) < dirEntryBytes {
		return BitmapInfo{}, 0, corrupt("bitmap directory ends within an entry")
	}
	off, flags := be.Uint64(dir), be.Uint32(dir[12:])
	nameLen, extra := int64(be.Uint16(dir[18:])), int64(be.Uint32(dir[20:]))
	granular := dir[17]
	total := (dirEntryBytes + extra + nameLen + 7) &^ 7
	switch {
	case total > int64(len(dir)):
		return BitmapInfo{}, 0, corrupt("bitmap directory ends within an entry")
	case nameLen == 0 || nameLen > maxBitmapName:
		return BitmapInfo{}, 0, corrupt("bitmap name of %d bytes", nameLen)
	case granular < minGranularBits || granular > maxGranularBits:
		return BitmapInfo{}, 0, corrupt("bitmap granularity of 2^%d bytes", granular)
	}
	return BitmapInfo{
		Name:         string(dir[dirEntryBytes+extra : dirEntryBytes+extra+nameLen]),
		InUse:        flags&bitmapInUse != 0,
		Auto:         flags&bitmapAuto != 0,
		Granularity:  1 << granular,
		tableOff:     int64(off & offsetMask),
		tableEntries: int64(be.Uint32(dir[8:])),
		foreign:      dir[16] != dirtyBitmap || extra > 0 && flags&bitmapExtraSafe == 0,
	}, int(total), nil
}

// ReadBitmap returns the ranges that the dirty bitmap of that name has set, or ErrNoBitmap,
// ErrBitmapInconsistent.
func (m *Image) ReadBitmap(name string) (extent.Set, error) {
	list, err := m.Bitmaps()
	if err != nil {
		return nil, fmt.Errorf("read bitmap %q: %w", name, err)
	}
	for _, b := range list {
		if b.Name != name {
			continue
		}
		set, err := m.readBits(b)
		if err != nil {
			return nil, fmt.Errorf("read bitmap %q: %w", name, err)
		}
		return set, nil
	}
	return nil, fmt.Errorf("read bitmap %q: %w", name, ErrNoBitmap)
}

func (m *Image) readBits(b BitmapInfo) (extent.Set, error) {
	if b.InUse {
		return nil, ErrBitmapInconsistent
	}
	if b.foreign {
		return nil, unsupported("a bitmap of unknown type")
	}
	cs := int64(m.h.ClusterSize)
	if want := bitmapClusters(m.h.Size, b.Granularity, cs); b.tableEntries != want {
		return nil, corrupt("bitmap table has %d entries, the disk needs %d", b.tableEntries, want)
	}
	if b.tableOff > m.fileSize-b.tableEntries*8 {
		return nil, corrupt("bitmap table at %d is beyond the end of the file at %d", b.tableOff, m.fileSize)
	}
	table := make([]byte, b.tableEntries*8)
	if err := m.readFull(table, b.tableOff, "bitmap table"); err != nil {
		return nil, err
	}
	var set extent.Set
	span, left := cs*8*b.Granularity, m.fileSize/cs // no data cluster may be used twice
	buf := make([]byte, cs)
	for i := range b.tableEntries {
		e := entry(table, i)
		whole := extent.Extent{Off: i * span, Len: min(span, m.h.Size-i*span)}
		if e&offsetMask == 0 {
			if e&1 != 0 {
				set = set.Append(whole)
			}
			continue
		}
		if left--; left < 0 {
			return nil, corrupt("bitmap table names more clusters than the file has")
		}
		if err := m.readFull(buf, int64(e&offsetMask), "bitmap"); err != nil {
			return nil, err
		}
		set = appendBits(set, buf, whole, b.Granularity)
	}
	return set, nil
}

// appendBits adds to set the granules of window whose bits are set in buf.
func appendBits(set extent.Set, buf []byte, window extent.Extent, granule int64) extent.Set {
	n := min((window.Len+granule-1)/granule, int64(len(buf))*8)
	for i := int64(0); i < n; i++ {
		b := buf[i/8] >> (i % 8)
		if b == 0 {
			i |= 7
			continue
		}
		i += int64(bits.TrailingZeros8(b))
		if i < n {
			at := window.Off + i*granule
			set = set.Append(extent.Extent{Off: at, Len: min(granule, window.End()-at)})
		}
	}
	return set
}

// bitmapClusters returns how many clusters the bits of a disk fill.
func bitmapClusters(size, granule, clusterSize int64) int64 {
	n := (size + granule - 1) / granule
	n = (n + 7) / 8
	return (n + clusterSize - 1) / clusterSize
}
