package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sort"

	"github.com/holdfast-vm/holdfast/internal/extent"
)

// planBitmaps checks the bitmaps and finds which of their clusters must be stored: all but those of
// only zeros or only ones.
func (l *layout) planBitmaps(list []Bitmap) error {
	if len(list) > maxBitmaps {
		return fmt.Errorf("%d bitmaps are more than an image can hold", len(list))
	}
	seen := make(map[string]bool)
	for _, b := range list {
		if b.Granularity == 0 {
			b.Granularity = defaultClusterSize
		}
		g := bits.TrailingZeros64(uint64(b.Granularity))
		switch {
		case b.Name == "" || len(b.Name) > maxBitmapName:
			return fmt.Errorf("bitmap name of %d bytes", len(b.Name))
		case seen[b.Name]:
			return fmt.Errorf("two bitmaps are named %q", b.Name)
		case b.Granularity != 1<<g || g < minGranularBits || g > maxGranularBits:
			return fmt.Errorf("bitmap %q: granularity of %d bytes is not a power of two from 512 to 2 GiB", b.Name,
				b.Granularity)
		}
		seen[b.Name] = true
		b.Set = b.Set.Clip(extent.Extent{Len: l.size}).Align(b.Granularity, l.size)
		l.bitmaps = append(l.bitmaps, l.planBitmap(b))
	}
	return nil
}

const toStore = -1 // entry of a cluster that has no place yet

func (l *layout) planBitmap(b Bitmap) bitmapLayout {
	bl := bitmapLayout{Bitmap: b, entries: make([]int64, bitmapClusters(l.size, b.Granularity, l.clusterSize))}
	span := bl.span(l)
	for _, e := range b.Set {
		for i := e.Off / span; i*span < e.End(); i++ {
			whole := e.Off <= i*span && e.End() >= min((i+1)*span, l.size)
			switch {
			case whole:
				bl.entries[i] = 1
			case bl.entries[i] == 0:
				bl.entries[i] = toStore
				bl.clusters++
			}
		}
	}
	return bl
}

// span returns how much of the disk one cluster of bits describes.
func (b *bitmapLayout) span(l *layout) int64 { return l.clusterSize * 8 * b.Granularity }

// bitmapBytes returns how much of the file the bitmaps fill.
func (l *layout) bitmapBytes() int64 {
	n := l.up(l.directoryBytes())
	for _, b := range l.bitmaps {
		n += l.up(int64(len(b.entries))*8) + b.clusters*l.clusterSize
	}
	return n
}

func (l *layout) directoryBytes() int64 {
	n := int64(0)
	for _, b := range l.bitmaps {
		n += int64(dirEntryBytes+len(b.Name)+7) &^ 7
	}
	return n
}

// placeBitmaps gives directory, tables and bits their offsets and builds the directory.
func (l *layout) placeBitmaps(take func(int64) int64) {
	l.directoryAt = take(l.directoryBytes())
	for i := range l.bitmaps {
		b := &l.bitmaps[i]
		b.table = take(int64(len(b.entries)) * 8)
		for k := range b.entries {
			if b.entries[k] == toStore {
				b.entries[k] = take(l.clusterSize)
			}
		}
		l.directory = append(l.directory, b.dirEntry()...)
	}
}

func (b *bitmapLayout) dirEntry() []byte {
	be := binary.BigEndian
	e := make([]byte, (dirEntryBytes+len(b.Name)+7)&^7)
	be.PutUint64(e, uint64(b.table))
	be.PutUint32(e[8:], uint32(len(b.entries)))
	e[16], e[17] = dirtyBitmap, byte(bits.TrailingZeros64(uint64(b.Granularity)))
	be.PutUint16(e[18:], uint16(len(b.Name)))
	copy(e[dirEntryBytes:], b.Name)
	return e
}

// render fills buf with the bits of entry i.
func (b *bitmapLayout) render(buf []byte, i, span int64) {
	clear(buf)
	from, to := i*span, (i+1)*span
	k := sort.Search(len(b.Set), func(k int) bool { return b.Set[k].End() > from })
	for ; k < len(b.Set) && b.Set[k].Off < to; k++ {
		e := b.Set[k]
		first := (max(e.Off, from) - from) / b.Granularity
		end := (min(e.End(), to) - from + b.Granularity - 1) / b.Granularity
		setBits(buf, first, end)
	}
}

func setBits(buf []byte, from, to int64) {
	for from < to {
		if from%8 == 0 && to-from >= 8 {
			buf[from/8] = 0xff
			from += 8
			continue
		}
		buf[from/8] |= 1 << (from % 8)
		from++
	}
}
