package qcow2

import (
	"fmt"
	"math/bits"

	"github.com/holdfast-vm/holdfast/internal/extent"
)

// Map returns which bytes of the disk the image itself stores (data) and which it flags as zeros
// (zero). What is in neither is not allocated: zeros, or the backing file's. It reads every L2
// table once, and so finds every data cluster that lies beyond the end of the file (ErrCorrupt) and
// any compressed one (ErrUnsupported): after a Map without error, ReadAt meets neither.
func (m *Image) Map() (data, zero extent.Set, err error) {
	if err := m.dataSupported(); err != nil {
		return nil, nil, err
	}
	cs := int64(m.h.ClusterSize)
	err = m.eachEntry(func(e, _ uint64, at, n int64) error {
		kind, _, err := m.decodeEntry(e, at)
		piece := extent.Extent{Off: at, Len: min(n*cs, m.h.Size-at)}
		switch {
		case err != nil:
			return err
		case kind == clusterData:
			data = data.Append(piece)
		case kind == clusterZero:
			zero = zero.Append(piece)
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("map qcow2 image: %w", err)
	}
	return data, zero, nil
}

// Check goes through all tables, of images too whose data this package cannot read, and returns
// ErrCorrupt if the file is shorter than they say. QEMU would read zeros there. What an external
// data file or a backing file holds is not looked at.
func (m *Image) Check() error {
	err := m.eachEntry(func(e, sub uint64, at, _ int64) error {
		switch {
		case e&flagCompressd != 0:
			return m.checkCompressed(e, at)
		case m.h.HasDataFile:
			return nil
		case m.h.Incompatible&incompatExtendedL2 != 0:
			return m.checkSubclusters(e, sub, at)
		}
		_, _, err := m.decodeEntry(e, at)
		return err
	})
	if err != nil {
		return fmt.Errorf("check qcow2 image: %w", err)
	}
	return nil
}

// checkCompressed holds the place of a compressed cluster against the file's end, which may cut its
// last sector short.
func (m *Image) checkCompressed(e uint64, at int64) error {
	x := 62 - (m.h.clusterBits - 8)
	off := int64(e & (1<<x - 1) & (1<<56 - 1))
	more := int64(e &^ (3 << 62) >> x)
	if last := off&^511 + more*512; last >= m.fileSize || off >= m.fileSize {
		return corrupt("disk offset %d lies compressed at %d of the file, beyond its end at %d", at, off, m.fileSize)
	}
	return nil
}

// checkSubclusters holds the last allocated of the 32 parts of a cluster against the file's end.
func (m *Image) checkSubclusters(e, sub uint64, at int64) error {
	part, off := int64(m.h.ClusterSize/32), int64(e&offsetMask)
	count := min(int64(bits.Len32(uint32(sub))), (m.h.Size-at+part-1)/part)
	if off+count*part > m.fileSize {
		return corrupt("disk offset %d lies at %d of the file, beyond its end at %d", at, off, m.fileSize)
	}
	return nil
}

// eachEntry calls do with every L2 entry within the disk, the subclusters of that entry, and the
// disk offset of its cluster, in the disk's order. Neighbours that say nothing but that there is
// nothing, or zeros, are told of at once: n is how many clusters the call is about.
func (m *Image) eachEntry(do func(e, sub uint64, at, n int64) error) error {
	table := make([]byte, m.h.ClusterSize)
	span, cs := m.h.l2Entries()<<m.h.clusterBits, int64(m.h.ClusterSize)
	stride := cs / 8 / m.h.l2Entries()
	for index, off := range m.l1 {
		if off == 0 {
			continue
		}
		if err := m.readL2(table, int64(index)); err != nil {
			return err
		}
		start := int64(index) * span
		last := (min(span, m.h.Size-start) + cs - 1) / cs
		for i, n := int64(0), int64(0); i < last; i += n {
			n = 1
			if stride == 1 {
				n = emptyRun(table[i*8 : last*8])
			}
			e, sub := entry(table, i*stride), entry(table, i*stride+stride-1)
			if err := do(e, sub, start+i*cs, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// emptyRun returns how many entries from the first of table on are alike and have no place in the
// file, at least 1.
func emptyRun(table []byte) int64 {
	first := entry(table, 0)
	n := int64(1)
	if first == 0 || first == flagZero {
		for n < int64(len(table)/8) && entry(table, n) == first {
			n++
		}
	}
	return n
}
