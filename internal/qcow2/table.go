package qcow2

import (
	"container/list"
	"encoding/binary"
	"sync"
)

const cacheBytes = 4 << 20 // of L2 tables

type clusterKind int

const (
	clusterUnallocated clusterKind = iota
	clusterZero
	clusterData
)

// decodeEntry says what the L2 entry e of the guest cluster at off means; host is the place of its
// data.
func (m *Image) decodeEntry(e uint64, off int64) (kind clusterKind, host int64, err error) {
	if e&flagCompressd != 0 {
		return 0, 0, unsupported("compressed clusters")
	}
	host = int64(e & offsetMask)
	switch {
	case host%int64(m.h.ClusterSize) != 0:
		return 0, 0, corrupt("disk offset %d lies at %d of the file, which is not on a cluster boundary", off, host)
	case e&flagZero != 0 && m.h.Version < 3:
		return 0, 0, corrupt("disk offset %d is flagged zero in a version 2 image", off)
	case e&flagZero != 0:
		return clusterZero, 0, nil
	case host == 0 && e&flagCopied != 0:
		return 0, 0, corrupt("disk offset %d lies in the header", off)
	case host == 0:
		return clusterUnallocated, 0, nil
	case host > m.fileSize-min(int64(m.h.ClusterSize), m.h.Size-off):
		return 0, 0, corrupt("disk offset %d lies at %d of the file, beyond its end at %d", off, host, m.fileSize)
	}
	return clusterData, host, nil
}

// lookup says what the disk holds at off, and for how many of the next want bytes that goes on in
// one piece.
func (m *Image) lookup(off, want int64) (kind clusterKind, host, n int64, err error) {
	span := m.h.l2Entries() << m.h.clusterBits
	index, within := off/span, off%span
	want = min(want, span-within)
	if m.l1[index] == 0 {
		return clusterUnallocated, 0, want, nil
	}
	table, err := m.l2(index)
	if err != nil {
		return 0, 0, 0, err
	}
	cs := int64(m.h.ClusterSize)
	first := off - off%cs
	if kind, host, err = m.decodeEntry(entry(table, within/cs), first); err != nil {
		return 0, 0, 0, err
	}
	for n = cs - off%cs; n < want; n += cs {
		k, h, err := m.decodeEntry(entry(table, (within+n)/cs), off+n)
		if err != nil || k != kind || kind == clusterData && h != host+off+n-first {
			break // an error is met again when its own turn comes
		}
	}
	return kind, host + off%cs, min(n, want), nil
}

func entry(table []byte, i int64) uint64 { return binary.BigEndian.Uint64(table[i*8:]) }

// l2 returns the L2 table of an L1 entry that is not 0.
func (m *Image) l2(index int64) ([]byte, error) {
	if t := m.cache.get(index); t != nil {
		return t, nil
	}
	t := make([]byte, m.h.ClusterSize)
	if err := m.readL2(t, index); err != nil {
		return nil, err
	}
	m.cache.put(index, t)
	return t, nil
}

func (m *Image) readL2(buf []byte, index int64) error {
	off := int64(m.l1[index])
	if off%int64(m.h.ClusterSize) != 0 {
		return corrupt("L2 table %d at %d is not on a cluster boundary", index, off)
	}
	return m.readFull(buf, off, "L2 table")
}

// tableCache keeps the L2 tables used last.
type tableCache struct {
	limit int

	mu     sync.Mutex
	tables map[int64]*list.Element // of cached
	recent list.List               // most recent first
}

type cached struct {
	index int64
	table []byte
}

func (c *tableCache) get(index int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.tables[index]
	if e == nil {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(cached).table
}

func (c *tableCache) put(index int64, table []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tables == nil {
		c.tables = make(map[int64]*list.Element)
	}
	if c.tables[index] != nil {
		return
	}
	c.tables[index] = c.recent.PushFront(cached{index, table})
	if c.recent.Len() > c.limit {
		old := c.recent.Remove(c.recent.Back()).(cached)
		delete(c.tables, old.index)
	}
}
