package xfs

// Fields of an inode that a log item has.
const (
	logData       = 1 << 1 // local contents
	logExtents    = 1 << 2
	logRoot       = 1 << 3 // of a btree
	logDevice     = 1 << 4
	logAttrData   = 1 << 6
	logAttrExt    = 1 << 7
	logAttrRoot   = 1 << 8
	logOwner      = 1 << 9 // blocks of the btree came from another inode
	logAttrOwner  = 1 << 10
	logDataFork   = logData | logExtents | logRoot
	logAttrFork   = logAttrData | logAttrExt | logAttrRoot
	inodeItem     = 56
	inodeItem32   = 52
	logCore4      = 96
	logCore5      = 176
	maxFlushes    = 0xffff
	flushesAt     = 30
	nextUnlinked  = 96
	inodeDeviceAt = 0
)

// inodeChange is a change of one inode.
type inodeChange struct {
	fields uint32
	num    uint64
	device uint32
	where  extentOfDisk
	off    int64 // bytes from the beginning of where
	core   []byte
	data   []byte // new data fork, nil if there is none
	attr   []byte
}

func parseInodeItem(i *logItem) (*inodeChange, error) {
	h := i.regions[0]
	shift := 0
	switch len(h) {
	case inodeItem:
	case inodeItem32: // without the padding
		shift = -4
	default:
		return nil, corrupt("inode item of %d bytes", len(h))
	}
	c := &inodeChange{
		fields: le.Uint32(h[4:]), num: le.Uint64(h[16+shift:]), device: le.Uint32(h[24+shift:]),
		where: extentOfDisk{int64(le.Uint64(h[40+shift:])), int64(int32(le.Uint32(h[48+shift:])))},
		off:   int64(int32(le.Uint32(h[52+shift:]))),
	}
	rest := i.regions[1:]
	if len(rest) == 0 {
		return nil, corrupt("inode item without a core")
	}
	c.core, rest = rest[0], rest[1:]
	if c.fields&logDataFork != 0 && len(rest) > 0 {
		c.data, rest = rest[0], rest[1:]
	}
	if c.fields&logAttrFork != 0 && len(rest) > 0 {
		c.attr = rest[0]
	}
	return c, nil
}

// inode makes the change of an inode item, unless its buffer was thrown away later or the disk has
// something newer.
func (r *replay) inode(i *logItem, lsn uint64) error {
	c, err := parseInodeItem(i)
	if err != nil {
		return err
	}
	if r.cancelled[c.where] > 0 {
		return nil
	}
	sb := &r.fs.sb
	off, err := sb.inodeOffset(c.num)
	if err != nil {
		return err
	}
	if off != c.where.block*basicBlock+c.off {
		return corrupt("inode %d at byte %d of the buffer at sector %d", c.num, c.off, c.where.block)
	}
	disk, err := r.fs.dev.now(off, sb.inodeSize)
	if err != nil {
		return err
	}
	if be.Uint16(disk) != inodeMagic && (be.Uint16(disk) != 0 || !r.fs.dev.replayed(off, int64(sb.inodeSize))) {
		return corrupt("no inode at byte %d, where the log changes inode %d", off, c.num)
	}
	if err := c.checkCore(sb); err != nil {
		return err
	}
	if c.fields&(logOwner|logAttrOwner) != 0 {
		r.intents.owner(c.num)
	}
	if c.older(disk, lsn) {
		r.fs.doubt(c.num, disk, off)
		return nil
	}
	if err := c.overlay(disk, sb, lsn); err != nil {
		return err
	}
	return r.fs.dev.write(disk, off)
}

// doubt takes note of an inode, newer than what the log has, of which only the beginning came to
// the disk.
func (f *FS) doubt(num uint64, disk []byte, off int64) {
	if f.sb.version != 5 || f.lax || f.dev.replayed(off, int64(len(disk))) || checksumOK(disk, inodeCRC) {
		return
	}
	if f.torn == nil {
		f.torn = map[uint64]bool{}
	}
	f.torn[num] = true
}

func (c *inodeChange) checkCore(sb *super) error {
	want := logCore4
	if sb.version == 5 {
		want = logCore5
	}
	if len(c.core) < want || le.Uint16(c.core) != inodeMagic {
		return corrupt("core of %d bytes for inode %d in the log", len(c.core), c.num)
	}
	if v := c.core[4]; sb.version == 5 && (v != 3 || le.Uint64(c.core[152:]) != c.num) ||
		sb.version == 4 && v != 1 && v != 2 {
		return corrupt("core of version %d for inode %d in the log", v, c.num)
	}
	return nil
}

// older says whether the inode on disk is newer than the change.
func (c *inodeChange) older(disk []byte, lsn uint64) bool {
	if c.core[4] == 3 {
		got := be.Uint64(disk[inodeLSN:])
		return got != 0 && got != anyLSN && got > lsn
	}
	mine, got := le.Uint16(c.core[flushesAt:]), be.Uint16(disk[flushesAt:])
	wrapped := got == maxFlushes && mine < maxFlushes/2
	return mine < got && !wrapped
}

// overlay changes disk, an inode, to what the log has of it.
func (c *inodeChange) overlay(disk []byte, sb *super, lsn uint64) error {
	c.putCore(disk, lsn)
	header := sb.inodeHeader()
	data, attr := disk[header:], []byte(nil)
	if fork := int(disk[82]) * 8; fork != 0 {
		if fork > len(data) {
			return corrupt("attributes of inode %d begin at byte %d of %d", c.num, fork, len(data))
		}
		data, attr = data[:fork], data[fork:]
	}
	if c.fields&logDevice != 0 {
		if len(data) < 4 {
			return corrupt("device number in a fork of %d bytes of inode %d", len(data), c.num)
		}
		be.PutUint32(data[inodeDeviceAt:], c.device)
	}
	if err := c.putFork(data, c.data, c.fields&logRoot != 0, sb); err != nil {
		return err
	}
	return c.putFork(attr, c.attr, c.fields&logAttrRoot != 0, sb)
}

func (c *inodeChange) putFork(fork, src []byte, root bool, sb *super) error {
	if src == nil {
		return nil
	}
	if root {
		return putRoot(fork, src, sb)
	}
	if len(src) > len(fork) {
		return corrupt("%d bytes for a fork of %d of inode %d", len(src), len(fork), c.num)
	}
	copy(fork, src)
	return nil
}

// putRoot turns the root of a btree as it is in memory, a whole block, into what an inode has.
func putRoot(fork, src []byte, sb *super) error {
	header := bmapHeader4
	if sb.version == 5 {
		header = bmapHeader5
	}
	if len(src) < header || len(fork) < bmapRootHeader {
		return corrupt("btree root of %d bytes for a fork of %d", len(src), len(fork))
	}
	n, from, to := int(be.Uint16(src[6:])), (len(src)-header)/recordSize, (len(fork)-bmapRootHeader)/recordSize
	if n > from || n > to {
		return corrupt("btree root of %d records where %d and %d fit", n, from, to)
	}
	copy(fork[:bmapRootHeader], src[4:8]) // level and records
	copy(fork[bmapRootHeader:], src[header:][:n*8])
	copy(fork[bmapRootHeader+to*8:], src[header+from*8:][:n*8])
	return nil
}

// putCore writes the core, which the log has in its own byte order, but not the link in the list of
// unlinked inodes.
func (c *inodeChange) putCore(disk []byte, lsn uint64) {
	src := c.core
	for _, at := range []int{0, 2, 6, 20, 22, 80, 88, 90} {
		be.PutUint16(disk[at:], le.Uint16(src[at:]))
	}
	for _, at := range []int{8, 12, 16, 72, 76, 84, 92} {
		be.PutUint32(disk[at:], le.Uint32(src[at:]))
	}
	for _, at := range []int{4, 5, 82, 83} {
		disk[at] = src[at]
	}
	for _, at := range []int{56, 64} {
		be.PutUint64(disk[at:], le.Uint64(src[at:]))
	}
	times := []int{32, 40, 48}
	big := false
	if src[4] == 3 {
		for _, at := range []int{24, 104, 120, 152} {
			be.PutUint64(disk[at:], le.Uint64(src[at:]))
		}
		be.PutUint64(disk[inodeLSN:], lsn)
		be.PutUint32(disk[128:], le.Uint32(src[128:]))
		copy(disk[132:144], src[132:144])
		copy(disk[160:176], src[160:176])
		times = append(times, 144)
		big = le.Uint64(src[120:])&flag2Bigtime != 0
	} else {
		clear(disk[24:32]) // as the kernel resets the count of flushes
	}
	for _, at := range times {
		putTime(disk[at:], src[at:], big)
	}
}

func putTime(dst, src []byte, big bool) {
	if big {
		be.PutUint64(dst, le.Uint64(src))
		return
	}
	be.PutUint32(dst, le.Uint32(src))
	be.PutUint32(dst[4:], le.Uint32(src[4:]))
}
