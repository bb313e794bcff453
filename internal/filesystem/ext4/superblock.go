package ext4

import (
	"bytes"
	"fmt"
	"math/bits"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	superblockOffset = 1024
	superblockSize   = 1024
	superblockMagic  = 0xEF53

	stateClean  = 1
	stateErrors = 2
	creatorGNU  = 1 // the Hurd keeps other things where Linux keeps the high halves of owners
)

// superblock is what the file system says of itself, checked.
type superblock struct {
	compat, incompat, roCompat uint32

	blockSize      int64
	clusterBlocks  uint64 // blocks in a cluster; 1 without bigalloc
	blocks         uint64
	freeBlocks     uint64
	firstDataBlock uint64
	blocksPerGroup uint64
	groups         uint64
	descSize       uint64
	firstMetaBG    uint64
	backupGroups   [2]uint64

	inodes         uint64
	inodesPerGroup uint64
	inodeSize      uint64
	firstInode     uint64
	ownInodes      []uint64 // that no name may lead to: quota files and the orphan file
	journalInode   uint64

	state    uint16
	creator  uint32
	encoding uint16
	uuid     [16]byte
	label    string
	csumSeed uint32
}

func readSuperblock(d *disk) (*superblock, error) {
	if d.size < superblockOffset+superblockSize {
		return nil, filesystem.ErrNotThis
	}
	raw := make([]byte, superblockSize)
	if err := d.readAt(raw, superblockOffset); err != nil {
		return nil, fmt.Errorf("read the superblock: %w", err)
	}
	if le16(raw, 0x38) != superblockMagic {
		return nil, filesystem.ErrNotThis
	}
	sb := &superblock{compat: le32(raw, 0x5C), incompat: le32(raw, 0x60), roCompat: le32(raw, 0x64)}
	if le32(raw, 0x4C) == 0 { // revision 0 has no features and fixed sizes
		sb.compat, sb.incompat, sb.roCompat = 0, 0, 0
	}
	if err := checkIncompat(sb.incompat); err != nil {
		return nil, err
	}
	if err := sb.checkSum(raw); err != nil {
		return nil, err
	}
	sb.parse(raw)
	if err := sb.check(d.size); err != nil {
		return nil, err
	}
	return sb, nil
}

func (sb *superblock) hasChecksums() bool { return sb.roCompat&roCompatMetadataCsum != 0 }

func (sb *superblock) checkSum(raw []byte) error {
	if !sb.hasChecksums() {
		return nil
	}
	if kind := raw[0x175]; kind != 1 {
		return unsupported("checksums of type %d", kind)
	}
	if crc32c(^uint32(0), raw[:0x3FC]) != le32(raw, 0x3FC) {
		return damaged("checksum of the superblock does not match")
	}
	return nil
}

// parse takes the fields that are used. Sizes that make no sense become 0, for check to refuse.
func (sb *superblock) parse(raw []byte) {
	sb.inodes = uint64(le32(raw, 0))
	sb.blocks = uint64(le32(raw, 4))
	sb.freeBlocks = uint64(le32(raw, 0xC))
	sb.firstDataBlock = uint64(le32(raw, 0x14))
	if log := le32(raw, 0x18); log <= 6 {
		sb.blockSize = 1024 << log
	}
	sb.blocksPerGroup = uint64(le32(raw, 0x20))
	sb.inodesPerGroup = uint64(le32(raw, 0x28))
	sb.state = le16(raw, 0x3A)
	sb.creator = le32(raw, 0x48)
	sb.firstInode, sb.inodeSize = 11, 128
	if le32(raw, 0x4C) != 0 {
		sb.firstInode, sb.inodeSize = uint64(le32(raw, 0x54)), uint64(le16(raw, 0x58))
	}
	copy(sb.uuid[:], raw[0x68:0x78])
	label, _, _ := bytes.Cut(raw[0x78:0x88], []byte{0})
	sb.label = string(label)
	sb.journalInode = uint64(le32(raw, 0xE0))
	sb.firstMetaBG = uint64(le32(raw, 0x104))
	sb.descSize = 32
	if sb.incompat&incompat64bit != 0 {
		sb.descSize = uint64(le16(raw, 0xFE))
		sb.blocks |= uint64(le32(raw, 0x150)) << 32
		sb.freeBlocks |= uint64(le32(raw, 0x158)) << 32
	}
	sb.clusterBlocks = 1
	if log, clusterLog := le32(raw, 0x18), le32(raw, 0x1C); sb.roCompat&roCompatBigalloc != 0 && clusterLog >= log &&
		clusterLog-log < 32 {
		sb.clusterBlocks = 1 << (clusterLog - log)
	}
	sb.backupGroups = [2]uint64{uint64(le32(raw, 0x24C)), uint64(le32(raw, 0x250))}
	for _, at := range []int{0x240, 0x244, 0x26C, 0x280} {
		if n := le32(raw, at); n != 0 {
			sb.ownInodes = append(sb.ownInodes, uint64(n))
		}
	}
	sb.encoding = le16(raw, 0x27C)
	sb.csumSeed = crc32c(^uint32(0), sb.uuid[:])
	if sb.incompat&incompatCsumSeed != 0 {
		sb.csumSeed = le32(raw, 0x270)
	}
}

// check refuses a geometry that a mount refuses, so that what follows may divide and multiply.
func (sb *superblock) check(size int64) error {
	bs := uint64(sb.blockSize)
	switch {
	case bs == 0:
		return damaged("block size out of range")
	case sb.inodeSize < 128 || sb.inodeSize > bs || bits.OnesCount64(sb.inodeSize) != 1:
		return damaged("inode size %d", sb.inodeSize)
	case sb.descSize < 32 || sb.descSize > 1024 || bits.OnesCount64(sb.descSize) != 1 ||
		sb.incompat&incompat64bit != 0 && sb.descSize < 64:
		return damaged("group descriptor size %d", sb.descSize)
	case sb.inodesPerGroup == 0 || sb.inodesPerGroup > 8*bs:
		return damaged("%d inodes in a group", sb.inodesPerGroup)
	case sb.blocksPerGroup == 0 || sb.blocksPerGroup > 8*bs*sb.clusterBlocks:
		return damaged("%d blocks in a group", sb.blocksPerGroup)
	case sb.blocks <= sb.firstDataBlock || sb.firstDataBlock > 1:
		return damaged("%d blocks from block %d on", sb.blocks, sb.firstDataBlock)
	case sb.blocks > uint64(size)/bs:
		return damaged("%d blocks of %d bytes do not fit on a device of %d bytes: it is cut off", sb.blocks, bs, size)
	}
	sb.groups = (sb.blocks - sb.firstDataBlock + sb.blocksPerGroup - 1) / sb.blocksPerGroup
	if sb.inodes > sb.groups*sb.inodesPerGroup || sb.inodes < sb.firstInode {
		return damaged("%d inodes in %d groups of %d", sb.inodes, sb.groups, sb.inodesPerGroup)
	}
	return nil
}

// kind is the name that blkid gives it, which tells the three apart by their features.
func (sb *superblock) kind() string {
	switch {
	case sb.incompat&^ext3Incompat != 0 || sb.roCompat&^ext3RoCompat != 0:
		return "ext4"
	case sb.compat&compatHasJournal != 0:
		return "ext3"
	}
	return "ext2"
}

func formatUUID(u [16]byte) string {
	if u == [16]byte{} {
		return ""
	}
	s := fmt.Sprintf("%x", u[:])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}
