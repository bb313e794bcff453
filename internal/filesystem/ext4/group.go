package ext4

import (
	"encoding/binary"
)

// descriptor returns the descriptor of a block group, checked.
func (f *FS) descriptor(group uint64) ([]byte, error) {
	sb := f.sb
	if group >= sb.groups {
		return nil, damaged("block group %d of %d", group, sb.groups)
	}
	perBlock := uint64(sb.blockSize) / sb.descSize
	b, err := f.disk.block(f.descriptorBlock(group / perBlock))
	if err != nil {
		return nil, err
	}
	at := group % perBlock * sb.descSize
	desc := b[at : at+sb.descSize]
	if !sb.descriptorSumMatches(group, desc) {
		return nil, damaged("checksum of block group %d does not match", group)
	}
	return desc, nil
}

// descriptorBlock returns where the n-th block of descriptors is: behind the superblock, or with
// meta_bg in the group it describes.
func (f *FS) descriptorBlock(n uint64) uint64 {
	sb := f.sb
	if sb.incompat&incompatMetaBG == 0 || n < sb.firstMetaBG {
		return uint64(superblockOffset/sb.blockSize) + 1 + n
	}
	group := n * (uint64(sb.blockSize) / sb.descSize)
	block := group*sb.blocksPerGroup + sb.firstDataBlock
	if sb.hasSuperblock(group) {
		block++
	}
	if sb.blockSize == 1024 && n == 0 && sb.firstDataBlock == 0 {
		block++ // the superblock is in block 1, and block 0 belongs to the group
	}
	return block
}

// hasSuperblock tells whether a group begins with a copy of the superblock.
func (sb *superblock) hasSuperblock(group uint64) bool {
	switch {
	case group == 0:
		return true
	case sb.compat&compatSparse2 != 0:
		return group == sb.backupGroups[0] || group == sb.backupGroups[1]
	case group == 1 || sb.roCompat&roCompatSparseSuper == 0:
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		power := base
		for power < group {
			power *= base
		}
		if power == group {
			return true
		}
	}
	return false
}

func (sb *superblock) descriptorSumMatches(group uint64, desc []byte) bool {
	number := binary.LittleEndian.AppendUint32(nil, uint32(group))
	want := le16(desc, 0x1E)
	switch {
	case sb.hasChecksums():
		sum := crc32c(crc32c(sb.csumSeed, number), desc[:0x1E])
		return uint16(crc32c(crc32c(sum, []byte{0, 0}), desc[0x20:])) == want
	case sb.roCompat&roCompatGDTCsum != 0:
		sum := crc16(crc16(crc16(^uint16(0), sb.uuid[:]), number), desc[:0x1E])
		return crc16(sum, desc[0x20:]) == want
	}
	return true
}

// maxGroupsSummed are half a pebibyte of blocks of 4 KiB; a guest may say that a block is a group.
const maxGroupsSummed = 1 << 22

// countFree adds up the free blocks of all groups.
func (f *FS) countFree() (uint64, error) {
	if f.sb.groups > maxGroupsSummed {
		return 0, unsupported("adding up %d groups", f.sb.groups)
	}
	var clusters uint64
	for g := range f.sb.groups {
		desc, err := f.descriptor(g)
		if err != nil {
			return 0, err
		}
		clusters += uint64(le16(desc, 0xC))
		if len(desc) >= 64 {
			clusters += uint64(le16(desc, 0x2C)) << 16
		}
	}
	return clusters * f.sb.clusterBlocks, nil
}
