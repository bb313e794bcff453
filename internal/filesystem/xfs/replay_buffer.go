package xfs

const (
	bufferInodes = 1 << 0 // of inodes: only the list of unlinked ones changed
	bufferCancel = 1 << 1
	bufferDquots = 1<<2 | 1<<3 | 1<<4

	bufferHeader = 20
	bufferChunk  = 128 // bytes for each bit of the map
	maxBuffer    = 1 << 20
)

// bufferItem is a change of a range of the disk.
type bufferItem struct {
	flags uint16
	where extentOfDisk
	bits  []byte // a bit for each chunk that changed, in words of 32
	data  [][]byte
}

func (b *bufferItem) off() int64  { return b.where.block * basicBlock }
func (b *bufferItem) size() int64 { return b.where.count * basicBlock }

func parseBufferItem(i *logItem) (*bufferItem, error) {
	h := i.regions[0]
	if len(h) < bufferHeader {
		return nil, corrupt("buffer item of %d bytes", len(h))
	}
	b := &bufferItem{
		flags: le.Uint16(h[4:]), data: i.regions[1:],
		where: extentOfDisk{int64(le.Uint64(h[8:])), int64(le.Uint16(h[6:]))},
	}
	words := int64(le.Uint32(h[16:]))
	if words > int64(len(h)-bufferHeader)/4 {
		return nil, corrupt("buffer item of %d bytes with a map of %d words", len(h), words)
	}
	b.bits = h[bufferHeader:][:words*4]
	if b.where.count == 0 || b.where.block < 0 || b.where.block > maxDiskBlock {
		return nil, corrupt("buffer of %d sectors at %d", b.where.count, b.where.block)
	}
	return b, nil
}

const maxDiskBlock = (1<<63 - 1 - maxBuffer) / basicBlock / 2

// run returns the first run of set bits from bit at on.
func (b *bufferItem) run(at int) (first, count int) {
	set := func(i int) bool { return le.Uint32(b.bits[i/32*4:])>>(i%32)&1 != 0 }
	n := len(b.bits) * 8
	for at < n && !set(at) {
		if at%32 == 0 && le.Uint32(b.bits[at/8:]) == 0 {
			at += 31
		}
		at++
	}
	for first = at; at < n && set(at); at++ {
		count++
	}
	return first, count
}

// buffer makes the change of a buffer item, unless the buffer was thrown away later or the disk has
// something newer.
func (r *replay) buffer(i *logItem, lsn uint64) error {
	b, err := parseBufferItem(i)
	if err != nil {
		return err
	}
	if b.flags&bufferCancel != 0 {
		if r.cancelled[b.where]--; r.cancelled[b.where] <= 0 {
			delete(r.cancelled, b.where)
		}
		return nil
	}
	if r.cancelled[b.where] > 0 || b.flags&(bufferInodes|bufferDquots) != 0 {
		return nil
	}
	now, err := r.fs.dev.now(b.off(), basicBlock)
	if err != nil {
		return err
	}
	if disk := r.fs.bufferLSN(now); disk != 0 && disk != anyLSN && disk >= lsn {
		return r.newer(b)
	}
	return r.chunks(b)
}

// newer checks a buffer of which the disk has something newer. Where only the beginning of that
// came to the disk, what the log has of the rest is not made up for: the kernel refuses to mount
// it.
func (r *replay) newer(b *bufferItem) error {
	if r.fs.lax || r.fs.dev.replayed(b.off(), b.size()) {
		return nil
	}
	data, err := r.fs.dev.now(b.off(), int(b.size()))
	if err != nil {
		return err
	}
	at, ok := r.fs.checksumAt(data)
	if ok && !checksumOK(data, at) {
		return corrupt("metadata of %d bytes at byte %d was written in part", len(data), b.off())
	}
	return nil
}

// checksumAt returns where a whole block of metadata of version 5 keeps its checksum, if it is one.
func (f *FS) checksumAt(b []byte) (int, bool) {
	size := int(f.sb.blockSize)
	at, ok := checksumPlaces[string(b[:4])]
	switch magic := string(b[:4]); {
	case magic == "XAGF" || magic == "XAGI" || magic == "XAFL" || magic == "XFSB":
		size = f.sb.sectorSize
	case magic == "XDB3" || magic == "XDD3" || magic == "XDF3":
		size <<= f.sb.dirBlockLog
	case !ok:
		da := be.Uint16(b[8:])
		at, ok = daChecksum, daMagics[da]
		if da == 0x3df1 || da == 0x3dff {
			size <<= f.sb.dirBlockLog
		}
	}
	return at, ok && len(b) == size
}

func (r *replay) chunks(b *bufferItem) error {
	data := b.data
	for at, count := b.run(0); count > 0; at, count = b.run(at + count) {
		if len(data) == 0 {
			return corrupt("buffer item with fewer regions than its map")
		}
		count = min(count, len(data[0])/bufferChunk)
		if count == 0 || int64(at+count)*bufferChunk > b.size() {
			return corrupt("region of %d bytes at %d of a buffer of %d", len(data[0]), at*bufferChunk, b.size())
		}
		if err := r.fs.dev.write(data[0][:count*bufferChunk], b.off()+int64(at)*bufferChunk); err != nil {
			return err
		}
		data = data[1:]
	}
	return nil
}

// anyLSN is of what has to be replayed whatever is on disk.
const anyLSN = ^uint64(0)

// lsnPlace says where blocks that begin with a magic number keep when they were last written, and
// of which file system they are.
type lsnPlace struct{ lsn, uuid int }

var (
	shortBtree = lsnPlace{24, 32}
	longBtree  = lsnPlace{32, 40}
	dirPlace   = lsnPlace{16, 24}
	daPlace    = lsnPlace{24, 32}
)

var lsnPlaces = map[string]lsnPlace{
	"AB3B": shortBtree, "AB3C": shortBtree, "ABTB": shortBtree, "ABTC": shortBtree, "RMB3": shortBtree,
	"R3FC": shortBtree,
	"FIB3": shortBtree, "FIBT": shortBtree, "IAB3": shortBtree, "IABT": shortBtree,
	"BMA3": longBtree, "BMAP": longBtree, "MAPR": longBtree, "RCNT": longBtree,
	"XAGF": {208, 64}, "XAFL": {24, 8}, "XAGI": {320, 296}, "XSLM": {48, 16}, "XFSB": {240, 32},
	"XDB3": dirPlace, "XDD3": dirPlace, "XDF3": dirPlace,
}

// Where they keep their checksums.
const (
	shortBtreeChecksum = 52
	daChecksum         = 12
)

var checksumPlaces = map[string]int{
	"AB3B": shortBtreeChecksum, "AB3C": shortBtreeChecksum, "RMB3": shortBtreeChecksum, "R3FC": shortBtreeChecksum,
	"FIB3": shortBtreeChecksum, "IAB3": shortBtreeChecksum, "BMA3": 64,
	"XAGF": 216, "XAFL": 32, "XAGI": 312, "XFSB": 224, "XDB3": 4, "XDD3": 4, "XDF3": 4,
}

// daMagics are of blocks that begin as those of directory indexes and attributes do.
var daMagics = map[uint16]bool{0x3df1: true, 0x3dff: true, 0x3bee: true, 0x3ebe: true}

// bufferLSN returns when a buffer was last written, or anyLSN if it does not say.
func (f *FS) bufferLSN(b []byte) uint64 {
	if f.sb.version != 5 {
		return anyLSN
	}
	p, ok := lsnPlaces[string(b[:4])]
	if !ok {
		if !daMagics[be.Uint16(b[8:])] {
			return anyLSN
		}
		p = daPlace
	}
	uuid := [16]byte(b[p.uuid : p.uuid+16])
	if uuid != f.sb.metaUUID && (string(b[:4]) != "XFSB" || uuid != f.sb.uuid) {
		return anyLSN
	}
	return be.Uint64(b[p.lsn:])
}

// icreate makes a chunk of inodes that are not in use.
func (r *replay) icreate(i *logItem) error {
	b := i.regions[0]
	if len(b) < 28 || len(i.regions) != 1 {
		return corrupt("%d bytes for new inodes", len(b))
	}
	sb := &r.fs.sb
	ag, block, count := uint64(be.Uint32(b[4:])), uint64(be.Uint32(b[8:])), uint64(be.Uint32(b[12:]))
	size, length := be.Uint32(b[16:]), uint64(be.Uint32(b[20:]))
	first := ag<<sb.agBlockLog | block
	if block >= sb.agBlocks || !sb.validBlocks(first, length) || size != uint32(sb.inodeSize) || count == 0 ||
		count != length<<sb.inodesPerBlockLog || count > inodeChunk && length != 1 {
		return corrupt("%d new inodes of %d bytes in %d blocks at block %d of group %d", count, size, length, block, ag)
	}
	off, n := sb.offset(first), int64(length)<<sb.blockLog
	cluster := sb.clusterSize()
	for at := off; at < off+n; at += cluster {
		if r.cancelled[extentOfDisk{at / basicBlock, cluster / basicBlock}] > 0 {
			return nil
		}
	}
	return r.fs.dev.zero(off, n)
}

const (
	inodeChunk      = 64
	baseClusterSize = 8 << 10
)

// clusterSize returns the bytes of inodes that the kernel keeps in one buffer.
func (sb *super) clusterSize() int64 {
	size := int64(baseClusterSize)
	if sb.version == 5 {
		if scaled := size * int64(sb.inodeSize) / minInodeSize; int64(sb.inodeAlign) >= scaled>>sb.blockLog {
			size = scaled
		}
	}
	return max(size, sb.blockSize)
}
