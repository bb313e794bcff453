package ext4

import (
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	typeMask    = 0xF000
	typeFIFO    = 0x1000
	typeChar    = 0x2000
	typeDir     = 0x4000
	typeBlock   = 0x6000
	typeRegular = 0x8000
	typeSymlink = 0xA000
	typeSocket  = 0xC000

	flagEncrypted  = 0x800
	flagIndex      = 0x1000
	flagExtents    = 0x80000
	flagEAInode    = 0x200000
	flagInlineData = 0x10000000
	flagCasefold   = 0x40000000

	inodeBlockOffset = 0x28 // of the 60 bytes that hold the mapping, a short link or the first inline data
	inodeBlockSize   = 60
)

// inode is one inode, its checksum verified.
type inode struct {
	number uint64
	raw    []byte // all of it, our own copy
	mode   uint16
	flags  uint32
	size   int64
	seed   uint32     // for the checksums of what belongs to it
	extra  int        // bytes behind the first 128 that hold fields
	edits  []fastEdit // what fast commits changed in its mapping
}

func (in *inode) kind() uint16      { return in.mode & typeMask }
func (in *inode) isDir() bool       { return in.kind() == typeDir }
func (in *inode) has(f uint32) bool { return in.flags&f != 0 }
func (in *inode) block() []byte     { return in.raw[inodeBlockOffset : inodeBlockOffset+inodeBlockSize] }
func (in *inode) links() uint16     { return le16(in.raw, 0x1A) }

// fits tells whether the inode holds the field of size bytes at an offset.
func (in *inode) fits(off, size int) bool { return off+size <= 128+in.extra }

// wrap adds to an error which inode it is about.
func (in *inode) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("inode %d: %w", in.number, err)
}

func (in *inode) damaged(format string, args ...any) error {
	return in.wrap(damaged(format, args...))
}

// named returns an inode that a name may lead to, in use.
func (f *FS) named(id filesystem.ID) (*inode, error) {
	n := uint64(id)
	if n != rootInode && n < f.sb.firstInode || slices.Contains(f.sb.ownInodes, n) {
		return nil, damaged("inode %d is the file system's own", n)
	}
	in, err := f.inode(n)
	if err != nil {
		return nil, err
	}
	switch {
	case in.mode == 0 || in.links() == 0:
		return nil, in.damaged("it is not in use")
	case in.has(flagEAInode):
		return nil, in.damaged("it holds an extended attribute")
	}
	return in, nil
}

// inode reads any inode, as fast commits left it.
func (f *FS) inode(n uint64) (*inode, error) {
	raw, err := f.inodeBytes(n)
	if err != nil {
		return nil, fmt.Errorf("read inode %d: %w", n, err)
	}
	changed := f.fast.inode(n)
	if changed == nil {
		return f.parseInode(n, raw, true)
	}
	if changed.raw == nil {
		if _, err := f.parseInode(n, raw, true); err != nil {
			return nil, err
		}
	}
	changed.apply(raw)
	in, err := f.parseInode(n, raw, false)
	if err != nil {
		return nil, err
	}
	in.edits = changed.edits
	return in, nil
}

// parseInode takes the fields of an inode that is stored in raw; summed tells whether its checksum
// must match.
func (f *FS) parseInode(n uint64, raw []byte, summed bool) (*inode, error) {
	in := &inode{number: n, raw: raw, mode: le16(raw, 0), flags: le32(raw, 0x20)}
	in.seed = crc32cNumber(crc32cNumber(f.sb.csumSeed, uint32(n)), le32(raw, 0x64))
	if len(raw) > 128 {
		in.extra = int(le16(raw, 0x80))
	}
	if in.extra > len(raw)-128 || in.extra%4 != 0 {
		return nil, in.damaged("%d bytes of extra fields in an inode of %d", in.extra, len(raw))
	}
	if summed && !f.sumMatches(in) {
		return nil, in.damaged("checksum does not match")
	}
	return in, in.setSize(f.sb)
}

// inodeBytes returns a copy of an inode as it is in its table.
func (f *FS) inodeBytes(n uint64) ([]byte, error) {
	sb := f.sb
	if n == 0 || n > sb.inodes {
		return nil, damaged("there are inodes 1 to %d", sb.inodes)
	}
	desc, err := f.descriptor((n - 1) / sb.inodesPerGroup)
	if err != nil {
		return nil, err
	}
	table := uint64(le32(desc, 8))
	if len(desc) >= 64 {
		table |= uint64(le32(desc, 0x28)) << 32
	}
	off := (n - 1) % sb.inodesPerGroup * sb.inodeSize
	block := table + off/uint64(sb.blockSize)
	if table >= sb.blocks || block >= sb.blocks {
		return nil, damaged("its table begins at block %d of %d", table, sb.blocks)
	}
	b, err := f.disk.block(block)
	if err != nil {
		return nil, err
	}
	at := off % uint64(sb.blockSize)
	return slices.Clone(b[at : at+sb.inodeSize]), nil
}

// sumMatches verifies an inode's checksum, whose high half is an extra field.
func (f *FS) sumMatches(in *inode) bool {
	if !f.sb.hasChecksums() {
		return true
	}
	const low, high = 0x7C, 0x82
	want, mask := uint32(le16(in.raw, low)), uint32(0xFFFF)
	sum := crc32c(crc32c(crc32c(in.seed, in.raw[:low]), []byte{0, 0}), in.raw[low+2:128])
	if len(in.raw) > 128 {
		sum = crc32c(sum, in.raw[128:high])
		rest := in.raw[high:]
		if in.fits(high, 2) {
			want, mask = want|uint32(le16(in.raw, high))<<16, ^uint32(0)
			sum, rest = crc32c(sum, []byte{0, 0}), in.raw[high+2:]
		}
		sum = crc32c(sum, rest)
	}
	return sum&mask == want
}

// setSize takes the size, which has a high half where the kernel looks for one.
func (in *inode) setSize(sb *superblock) error {
	in.size = int64(le32(in.raw, 4))
	if in.kind() == typeRegular || in.isDir() && sb.incompat&incompatLargedir != 0 {
		in.size |= int64(le32(in.raw, 0x6C)) << 32
	}
	if in.size < 0 {
		return in.damaged("size out of range")
	}
	return nil
}

// storedSectors returns how much of 512 bytes, or of a block in a huge file, the inode has taken.
func (in *inode) storedSectors(sb *superblock) uint64 {
	n := uint64(le32(in.raw, 0x1C))
	if sb.roCompat&roCompatHugeFile != 0 {
		n |= uint64(le16(in.raw, 0x74)) << 32
	}
	return n
}

// attrBlock returns the block that holds more extended attributes, or 0.
func (in *inode) attrBlock(sb *superblock) uint64 {
	n := uint64(le32(in.raw, 0x68))
	if sb.incompat&incompat64bit != 0 {
		n |= uint64(le16(in.raw, 0x76)) << 32
	}
	return n
}

// deviceNumber unpacks the two forms in which device numbers are stored, and packs them as makedev
// does.
func (in *inode) deviceNumber() uint64 {
	if old := le32(in.block(), 0); old != 0 {
		return makedev(old>>8&0xFF, old&0xFF)
	}
	dev := le32(in.block(), 4)
	return makedev(dev>>8&0xFFF, dev&0xFF|dev>>12&0xFFF00)
}

func makedev(major, minor uint32) uint64 {
	ma, mi := uint64(major), uint64(minor)
	return ma&0xFFF<<8 | ma&^0xFFF<<32 | mi&0xFF | mi&^0xFF<<12
}
