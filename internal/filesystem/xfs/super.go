package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

var be = binary.BigEndian

const (
	basicBlock     = 512 // the unit of disk addresses and of the log
	basicBlockLog  = 9
	superSize      = 512 // bytes of the superblock that are used; the rest of its sector counts for the checksum
	maxSectorSize  = 32 << 10
	maxBlockLog    = 16
	minInodeSize   = 256
	maxInodeSize   = 2048
	superCRC       = 224
	maxDirBlockLog = 16
)

// super is what the superblock says. Block numbers of its kind hold the allocation group in the
// bits above agBlockLog.
type super struct {
	blockSize  int64
	blocks     uint64 // of the whole file system
	uuid       [16]byte
	metaUUID   [16]byte // what metadata blocks carry
	logStart   uint64   // block number; 0 means another device
	root       uint64
	agBlocks   uint64
	agCount    uint64
	logBlocks  uint64
	version    int // 4 or 5
	sectorSize int
	inodeSize  int
	label      string
	free       uint64 // blocks

	blockLog, inodeLog, inodesPerBlockLog, agBlockLog, dirBlockLog uint

	inodeAlign  uint64 // blocks
	logSunit    int64  // bytes
	fileType    bool   // directory entries say what they name
	asciiCI     bool
	lazyCount   bool
	reflink     bool   // files may share blocks
	hasReadOnly uint32 // read-only compatible features that are not known
	logIncompat uint32
}

// Bits of versionnum, features2, and of the feature words of version 5.
const (
	verShared   = 0x0200
	verDirV2    = 0x2000
	verAsciiCI  = 0x4000
	verMore     = 0x8000
	more2Lazy   = 0x002
	more2Attr2  = 0x008
	more2Projid = 0x080
	more2CRC    = 0x100
	more2Ftype  = 0x200

	incompatFtype       = 1 << 0
	incompatMetaUUID    = 1 << 2
	incompatNeedsRepair = 1 << 4
	// ftype, sparse inodes, meta UUID, bigtime, needs repair, nrext64, exchange-range, parent,
	// metadir, zoned, zone gaps
	incompatKnown   = 1<<11 - 1
	roCompatReflink = 1 << 2
	roCompatKnown   = 1<<4 - 1 // free inode btree, reverse map, reflink, inode btree counters
)

// readSuper reads the primary superblock, with what the log laid over it if it was replayed.
func (f *FS) readSuper() error {
	if f.dev.size < superSize {
		return filesystem.ErrNotThis
	}
	b, err := f.dev.meta(0, superSize)
	if err != nil {
		return err
	}
	if string(b[:4]) != "XFSB" {
		return filesystem.ErrNotThis
	}
	sb, err := parseSuper(b)
	if err != nil {
		return err
	}
	if sb.blocks > uint64(f.dev.size)>>sb.blockLog {
		return corrupt("%d blocks of %d bytes do not fit in %d bytes", sb.blocks, sb.blockSize, f.dev.size)
	}
	if sb.version == 5 {
		sector, err := f.dev.meta(0, sb.sectorSize)
		if err != nil {
			return err
		}
		if !f.lax && !f.dev.replayed(0, int64(sb.sectorSize)) && !checksumOK(sector, superCRC) {
			return corrupt("bad checksum of the superblock")
		}
	}
	f.sb = sb
	return nil
}

func parseSuper(b []byte) (super, error) {
	sb := super{
		blockSize: int64(be.Uint32(b[4:])), blocks: be.Uint64(b[8:]),
		uuid: [16]byte(b[32:48]), metaUUID: [16]byte(b[32:48]),
		logStart: be.Uint64(b[48:]), root: be.Uint64(b[56:]),
		agBlocks: uint64(be.Uint32(b[84:])), agCount: uint64(be.Uint32(b[88:])), logBlocks: uint64(be.Uint32(b[96:])),
		version: int(be.Uint16(b[100:]) & 0xf), sectorSize: int(be.Uint16(b[102:])), inodeSize: int(be.Uint16(b[104:])),
		label:    string(bytes.TrimRight(b[108:120], "\x00")),
		blockLog: uint(b[120]), inodeLog: uint(b[122]), inodesPerBlockLog: uint(b[123]), agBlockLog: uint(b[124]),
		free: be.Uint64(b[144:]), inodeAlign: uint64(be.Uint32(b[180:])), dirBlockLog: uint(b[192]),
		logSunit: int64(be.Uint32(b[196:])),
	}
	if err := sb.readFeatures(b); err != nil {
		return sb, err
	}
	return sb, sb.checkGeometry(b)
}

func (sb *super) readFeatures(b []byte) error {
	flags := be.Uint16(b[100:])
	features2 := uint32(0)
	if flags&verMore != 0 {
		features2 = be.Uint32(b[200:]) | be.Uint32(b[204:])
	}
	sb.asciiCI = flags&verAsciiCI != 0
	sb.lazyCount = features2&more2Lazy != 0
	switch sb.version {
	case 4:
		if unknown := features2 &^ (more2Lazy | more2Attr2 | more2Projid | more2CRC | more2Ftype); unknown != 0 {
			return unsupported("feature2 %#x", unknown)
		}
		if flags&verShared != 0 {
			return unsupported("a shared read-only file system")
		}
		if flags&verDirV2 == 0 {
			return unsupported("directory format 1")
		}
		sb.fileType = features2&more2Ftype != 0
	case 5:
		return sb.readFeatures5(b)
	default:
		return unsupported("XFS version %d", sb.version)
	}
	return nil
}

func (sb *super) readFeatures5(b []byte) error {
	incompat := be.Uint32(b[216:])
	if unknown := incompat &^ incompatKnown; unknown != 0 {
		return unsupported("incompatible feature %#x", unknown)
	}
	if incompat&incompatNeedsRepair != 0 {
		return corrupt("marked as in need of xfs_repair")
	}
	if incompat&incompatMetaUUID != 0 {
		sb.metaUUID = [16]byte(b[248:264])
	}
	sb.fileType = incompat&incompatFtype != 0
	sb.lazyCount = true
	sb.hasReadOnly = be.Uint32(b[212:]) &^ roCompatKnown
	sb.reflink = be.Uint32(b[212:])&roCompatReflink != 0
	sb.logIncompat = be.Uint32(b[220:])
	return nil
}

func (sb *super) checkGeometry(b []byte) error {
	pow2 := func(n int64, log uint) bool { return log < 32 && n == 1<<log }
	switch {
	case !pow2(sb.blockSize, sb.blockLog) || sb.blockLog < basicBlockLog || sb.blockLog > maxBlockLog:
		return corrupt("block size %d", sb.blockSize)
	case sb.sectorSize < basicBlock || sb.sectorSize > maxSectorSize || bits.OnesCount(uint(sb.sectorSize)) != 1:
		return corrupt("sector size %d", sb.sectorSize)
	case !pow2(int64(sb.inodeSize), sb.inodeLog) || sb.inodeSize < minInodeSize || sb.inodeSize > maxInodeSize ||
		int64(sb.inodeSize) > sb.blockSize || sb.inodesPerBlockLog != sb.blockLog-sb.inodeLog:
		return corrupt("inode size %d", sb.inodeSize)
	case sb.version == 5 && sb.inodeSize < 2*minInodeSize:
		return corrupt("inode size %d in version 5", sb.inodeSize)
	case sb.blockLog+sb.dirBlockLog > maxDirBlockLog || b[192] > maxDirBlockLog:
		return corrupt("directory blocks of %d times %d bytes", 1<<min(sb.dirBlockLog, 63), sb.blockSize)
	case sb.agBlocks == 0 || sb.agCount == 0 || sb.agBlockLog > 31 || sb.agBlocks > 1<<sb.agBlockLog:
		return corrupt("%d allocation groups of %d blocks", sb.agCount, sb.agBlocks)
	case sb.blocks > sb.agBlocks*sb.agCount || sb.blocks <= sb.agBlocks*(sb.agCount-1):
		return corrupt("%d blocks in %d allocation groups of %d", sb.blocks, sb.agCount, sb.agBlocks)
	}
	return nil
}

// validBlocks says whether count blocks from block are in one allocation group and in the file
// system.
func (sb *super) validBlocks(block, count uint64) bool {
	ag, in := block>>sb.agBlockLog, block&(1<<sb.agBlockLog-1)
	return ag < sb.agCount && count <= sb.agBlocks && in+count <= sb.agBlocks && ag*sb.agBlocks+in+count <= sb.blocks
}

// offset returns where a valid block is, in bytes.
func (sb *super) offset(block uint64) int64 {
	ag, in := block>>sb.agBlockLog, block&(1<<sb.agBlockLog-1)
	return int64(ag*sb.agBlocks+in) << sb.blockLog
}

// inodeOffset returns where an inode is, in bytes.
func (sb *super) inodeOffset(num uint64) (int64, error) {
	block := num >> sb.inodesPerBlockLog
	if !sb.validBlocks(block, 1) {
		return 0, corrupt("inode number %d is outside the file system", num)
	}
	in := num & (1<<sb.inodesPerBlockLog - 1)
	return sb.offset(block) + int64(in)<<sb.inodeLog, nil
}

// inodeHeader is where an inode's forks begin, in bytes.
func (sb *super) inodeHeader() int {
	if sb.version == 5 {
		return 176
	}
	return 100
}

func formatUUID(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
