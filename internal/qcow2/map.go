package qcow2

import (
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/extent"
)

// Map returns which bytes of the disk the image itself stores (data) and which it flags as zeros (zero). What is in neither is
// not allocated: zeros, or the backing file's. It reads every L2 table once, and so finds every data cluster that lies beyond
// the end of the file (ErrCorrupt) and any compressed one (ErrUnsupported): after a Map without error, ReadAt meets neither.
func (m *Image) Map() (data, zero extent.Set, err error) {
	if err := m.dataSupported(); err != nil {
		return nil, nil, err
	}
	table := make([]byte, m.h.ClusterSize)
	span, cs := m.h.l2Entries()<<m.h.clusterBits, int64(m.h.ClusterSize)
	for index, off := range m.l1 {
		if off == 0 {
			continue
		}
		if err := m.readL2(table, int64(index)); err != nil {
			return nil, nil, fmt.Errorf("map qcow2 image: %w", err)
		}
		start := int64(index) * span
		for at := start; at < min(start+span, m.h.Size); at += cs {
			kind, _, err := m.decodeEntry(entry(table, (at-start)/cs), at)
			if err != nil {
				return nil, nil, fmt.Errorf("map qcow2 image: %w", err)
			}
			piece := extent.Extent{Off: at, Len: min(cs, m.h.Size-at)}
			switch kind {
			case clusterData:
				data = data.Append(piece)
			case clusterZero:
				zero = zero.Append(piece)
			}
		}
	}
	return data, zero, nil
}
