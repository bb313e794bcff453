package xfs

import (
	"sort"
)

// mapping says where count blocks of a fork from block off are: at block, or nowhere yet if
// unwritten.
type mapping struct {
	off, block, count uint64
	unwritten         bool
}

func (m mapping) end() uint64 { return m.off + m.count }

const (
	recordSize     = 16
	maxBtreeLevel  = 16
	maxFileBlock   = 1<<54 - 1
	maxMappings    = 8 << 20 // 256 MiB of them
	blockMask52    = 1<<52 - 1
	unwrittenBit   = 1 << 63
	lengthBits     = 21
	bmapHeader4    = 24
	bmapHeader5    = 72
	bmapRootHeader = 4
)

// mapper collects the mappings of one fork in order.
type mapper struct {
	fs       *FS
	inode    uint64
	owner    uint64 // of the btree's blocks
	realtime bool   // blocks are not of the data device
	list     []mapping
	records  uint64
	blocks   uint64 // that they have
	next     uint64 // the first block that is not mapped yet
}

// dataMap returns where the data of an inode is.
func (f *FS) dataMap(ino *inode) ([]mapping, error) {
	list, err := f.forkMap(ino, ino.data, ino.format, ino.extents, false)
	if err != nil {
		return nil, err
	}
	return f.fixes.remap(f, ino.num, false, list)
}

// attrMap returns where the attributes of an inode are.
func (f *FS) attrMap(ino *inode) ([]mapping, error) {
	list, err := f.forkMap(ino, ino.attrs, ino.attrFormat, ino.attrExtents, true)
	if err != nil {
		return nil, err
	}
	return f.fixes.remap(f, ino.num, true, list)
}

func (f *FS) forkMap(ino *inode, fork []byte, format byte, want uint64, attr bool) ([]mapping, error) {
	m := mapper{fs: f, inode: ino.num, owner: ino.num, realtime: ino.realtime && !attr}
	if f.fixes.owners[ino.num] {
		m.owner = anyOwner
	}
	var err error
	switch format {
	case formatExtents:
		if want > uint64(len(fork)/recordSize) {
			return nil, corrupt("%d extents in a fork of %d bytes", want, len(fork))
		}
		err = m.leaf(fork[:want*recordSize])
	case formatBtree:
		err = m.root(fork)
	default:
		return nil, corrupt("fork format %d has no extents", format)
	}
	if err != nil {
		return nil, err
	}
	if m.records != want {
		return nil, corrupt("%d extents where the inode counts %d", m.records, want)
	}
	return m.list, nil
}

// leaf adds records of 16 bytes.
func (m *mapper) leaf(records []byte) error {
	for ; len(records) >= recordSize; records = records[recordSize:] {
		hi, lo := be.Uint64(records), be.Uint64(records[8:])
		e := mapping{
			off: hi >> 9 & maxFileBlock, block: (hi<<43 | lo>>lengthBits) & blockMask52,
			count: lo & (1<<lengthBits - 1), unwritten: hi&unwrittenBit != 0,
		}
		if err := m.add(e); err != nil {
			return err
		}
	}
	return nil
}

func (m *mapper) add(e mapping) error {
	if e.count == 0 || e.off < m.next || e.end() > maxFileBlock+1 {
		return corrupt("extent of %d blocks at block %d follows one that ends at %d", e.count, e.off, m.next)
	}
	if !m.realtime && !m.fs.sb.validBlocks(e.block, e.count) {
		return corrupt("extent of %d blocks at block %d of the disk is outside the file system", e.count, e.block)
	}
	if m.blocks += e.count; m.blocks > m.fs.sb.blocks && !m.realtime && !m.fs.sb.reflink {
		return corrupt("it has more blocks than the file system")
	}
	m.next = e.end()
	m.records++
	if n := len(m.list); n > 0 {
		last := &m.list[n-1]
		if last.end() == e.off && last.block+last.count == e.block && last.unwritten == e.unwritten {
			last.count += e.count
			return nil
		}
	}
	if len(m.list) >= maxMappings {
		return unsupported("a file in more than %d pieces", maxMappings)
	}
	m.list = append(m.list, e)
	return nil
}

// root walks the btree whose root is in the inode.
func (m *mapper) root(fork []byte) error {
	if len(fork) < bmapRootHeader {
		return corrupt("btree root of %d bytes", len(fork))
	}
	level, n := int(be.Uint16(fork)), int(be.Uint16(fork[2:]))
	room := (len(fork) - bmapRootHeader) / recordSize
	if level == 0 || level > maxBtreeLevel || n == 0 || n > room {
		return corrupt("btree root of level %d with %d records of %d", level, n, room)
	}
	return m.children(fork[bmapRootHeader+room*8:][:n*8], level-1)
}

// children walks the blocks that pointers of 8 bytes name. It ends because every leaf must come
// after the one before.
func (m *mapper) children(pointers []byte, level int) error {
	for ; len(pointers) > 0; pointers = pointers[8:] {
		if err := m.block(be.Uint64(pointers), level); err != nil {
			return err
		}
	}
	return nil
}

func (m *mapper) block(num uint64, level int) error {
	if !m.fs.sb.validBlocks(num, 1) {
		return corrupt("btree block %d is outside the file system", num)
	}
	b, err := m.fs.readVerified(&bmapLayout, num, int(m.fs.sb.blockSize), m.owner)
	if err != nil {
		return err
	}
	header := bmapHeader4
	if m.fs.sb.version == 5 {
		header = bmapHeader5
	}
	n, room := int(be.Uint16(b[6:])), (len(b)-header)/recordSize
	if got := int(be.Uint16(b[4:])); got != level || n == 0 || n > room {
		return corrupt("btree block %d of level %d with %d records, where level %d and at most %d are due", num, got, n,
			level, room)
	}
	if level == 0 {
		return m.leaf(b[header : header+n*recordSize])
	}
	return m.children(b[header+room*8:][:n*8], level-1)
}

// find returns the index of the first mapping that ends after block.
func find(list []mapping, block uint64) int {
	return sort.Search(len(list), func(i int) bool { return list[i].end() > block })
}

// at returns the disk block that holds a block of the fork, and how many follow it on disk.
func at(list []mapping, block uint64) (disk, run uint64, ok bool) {
	i := find(list, block)
	if i == len(list) || list[i].off > block || list[i].unwritten {
		return 0, 0, false
	}
	skip := block - list[i].off
	return list[i].block + skip, list[i].count - skip, true
}

// readBlocks reads count blocks of a fork from block, and returns also where the first is, in
// bytes, and whether the log changed any.
func (f *FS) readBlocks(list []mapping, block, count uint64) (b []byte, off int64, replayed bool, err error) {
	for done := uint64(0); done < count; {
		disk, run, ok := at(list, block+done)
		if !ok {
			return nil, 0, false, corrupt("block %d is a hole", block+done)
		}
		n := int64(min(run, count-done)) << f.sb.blockLog
		pos := f.sb.offset(disk)
		part, err := f.dev.meta(pos, int(n))
		if err != nil {
			return nil, 0, false, err
		}
		if done == 0 {
			off = pos
		}
		b, replayed = append(b, part...), replayed || f.dev.replayed(pos, n)
		done += uint64(n >> f.sb.blockLog)
	}
	return b, off, replayed, nil
}
