package qcow2

import (
	"fmt"
	"math/bits"
	"sort"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/luks"
)

const (
	defaultClusterSize = 64 << 10
	maxBackingBytes    = 1023
	maxFormatBytes     = 15
)

// CreateOptions tunes a new image. The zero value of each field is its default.
type CreateOptions struct {
	ClusterSize int      // bytes, a power of two from 512 to 2 MiB; 0 means 64 KiB
	Bitmaps     []Bitmap // persistent dirty bitmaps, all disabled

	// BackingFile is what all that is not allocated reads as, a path or json: as QEMU has it, of up
	// to 1023 bytes; "" means zeros. BackingFormat is its format.
	BackingFile, BackingFormat string

	// Encryption has guest data encrypted with the key of this volume, LUKS inside qcow2, whose
	// secret opens the image; nil means plain.
	Encryption *luks.Volume
}

// Bitmap is a persistent dirty bitmap of a new image.
type Bitmap struct {
	Name        string     // 1 to 1023 bytes, unique in the image
	Granularity int64      // bytes per bit, a power of two from 512 to 2 GiB; 0 means 64 KiB
	Set         extent.Set // every granule that it touches is set
}

// layout says where everything of a new image lies. The order in the file is that of the fields.
type layout struct {
	size        int64 // of the disk, a multiple of 512
	clusterSize int64
	clusters    extent.Set // of the disk, allocated: aligned to clusters, the last one may end at size
	bitmaps     []bitmapLayout

	backing, backingFormat string
	encryption             *luks.Volume // nil if plain

	refTable, refTableClusters int64 // offset, count
	refBlocks, refBlockCount   int64
	l1, l1Entries              int64
	l2, l2Count                int64
	directory                  []byte
	directoryAt                int64
	crypto                     int64   // offset of the LUKS header
	data                       int64   // offset of the first data cluster
	dataAt                     []int64 // per member of clusters, the offset of its data
	fileSize                   int64
}

type bitmapLayout struct {
	Bitmap
	table    int64   // offset
	entries  []int64 // as stored: 0 zeros, 1 ones, else the offset of a cluster
	clusters int64   // of bits, stored
}

// plan lays out an image of size bytes in which data is allocated.
func plan(size int64, data extent.Set, o CreateOptions) (*layout, error) {
	if o.ClusterSize == 0 {
		o.ClusterSize = defaultClusterSize
	}
	cs := int64(o.ClusterSize)
	if bits.OnesCount64(uint64(cs)) != 1 || cs < 1<<minClusterBits || cs > 1<<maxClusterBits {
		return nil, fmt.Errorf("cluster size of %d bytes is not a power of two from 512 to 2 MiB", cs)
	}
	if size < 0 || size > maxDiskBytes {
		return nil, fmt.Errorf("disk size of %d bytes is out of range", size)
	}
	if n := len(data); n > 0 && (data[0].Off < 0 || data[n-1].End() > size) {
		return nil, fmt.Errorf("data %v ends outside the disk of %d bytes", data[n-1], size)
	}
	if n := int64(len(o.BackingFile)); n > maxBackingBytes || n > cs/2 || len(o.BackingFormat) > maxFormatBytes {
		return nil, fmt.Errorf("a name of %d bytes is too long for a backing file", n)
	}
	l := &layout{size: (size + 511) &^ 511, clusterSize: cs, backing: o.BackingFile, backingFormat: o.BackingFormat}
	l.clusters, l.encryption = data.Align(cs, l.size), o.Encryption
	if err := l.planBitmaps(o.Bitmaps); err != nil {
		return nil, err
	}
	return l, l.place()
}

// place gives everything its offset.
func (l *layout) place() error {
	cs := l.clusterSize
	span := cs / 8 * cs
	l.l1Entries = (l.size + span - 1) / span
	if l.l1Entries*8 > maxL1Bytes {
		return fmt.Errorf("a disk of %d bytes is too large for clusters of %d bytes", l.size, cs)
	}
	l.l2Count = countTables(l.clusters, span)
	dataBytes := int64(0)
	for _, e := range l.clusters {
		dataBytes += l.up(e.Len)
	}
	metadata := cs + l.up(l.l1Entries*8) + l.l2Count*cs + l.bitmapBytes() + l.up(l.cryptoBytes())
	if err := l.planRefcounts((metadata + dataBytes) / cs); err != nil {
		return err
	}
	at := cs
	take := func(n int64) int64 { was := at; at += l.up(n); return was }
	l.refTable, l.refBlocks = take(l.refTableClusters*cs), take(l.refBlockCount*cs)
	l.l1, l.l2 = take(l.l1Entries*8), take(l.l2Count*cs)
	l.placeBitmaps(take)
	l.crypto = take(l.cryptoBytes())
	l.data = at
	for _, e := range l.clusters {
		l.dataAt = append(l.dataAt, take(e.Len))
	}
	l.fileSize = at
	return nil
}

func (l *layout) cryptoBytes() int64 {
	if l.encryption == nil {
		return 0
	}
	return int64(len(l.encryption.Header))
}

// up rounds n up to whole clusters.
func (l *layout) up(n int64) int64 { return (n + l.clusterSize - 1) &^ (l.clusterSize - 1) }

// planRefcounts finds how many clusters count the references of others clusters and of themselves.
func (l *layout) planRefcounts(others int64) error {
	perBlock := l.clusterSize / 2
	for {
		total := others + l.refBlockCount + l.refTableClusters
		blocks := (total + perBlock - 1) / perBlock
		table := l.up(blocks*8) / l.clusterSize
		if blocks == l.refBlockCount && table == l.refTableClusters {
			break
		}
		l.refBlockCount, l.refTableClusters = blocks, table
	}
	if l.refTableClusters*l.clusterSize > maxRefTabBytes {
		return fmt.Errorf("%d clusters of %d bytes are more than an image can hold", others, l.clusterSize)
	}
	return nil
}

// countTables returns how many L2 tables, each for span bytes of disk, clusters touch.
func countTables(clusters extent.Set, span int64) int64 {
	n, last := int64(0), int64(-1)
	for _, e := range clusters {
		first, end := e.Off/span, (e.End()-1)/span
		n += end - max(first, last+1) + 1
		last = end
	}
	return n
}

// host returns where disk offset off lies in the file and how many bytes from there on are
// contiguous and allocated; 0 if none.
func (l *layout) host(off int64) (at, n int64) {
	i := sort.Search(len(l.clusters), func(i int) bool { return l.clusters[i].End() > off })
	if i == len(l.clusters) || l.clusters[i].Off > off {
		return 0, 0
	}
	e := l.clusters[i]
	return l.dataAt[i] + off - e.Off, e.End() - off
}
