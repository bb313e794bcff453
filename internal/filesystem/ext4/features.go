package ext4

import (
	"fmt"
	"strings"
)

const (
	compatHasJournal = 0x4
	compatDirIndex   = 0x20
	compatSparse2    = 0x200

	incompatCompression = 0x1
	incompatFiletype    = 0x2
	incompatRecover     = 0x4
	incompatJournalDev  = 0x8
	incompatMetaBG      = 0x10
	incompatExtents     = 0x40
	incompat64bit       = 0x80
	incompatMMP         = 0x100
	incompatFlexBG      = 0x200
	incompatEAInode     = 0x400
	incompatDirdata     = 0x1000
	incompatCsumSeed    = 0x2000
	incompatLargedir    = 0x4000
	incompatInlineData  = 0x8000
	incompatEncrypt     = 0x10000
	incompatCasefold    = 0x20000

	roCompatSparseSuper  = 0x1
	roCompatLargeFile    = 0x2
	roCompatBtreeDir     = 0x4
	roCompatHugeFile     = 0x8
	roCompatGDTCsum      = 0x10
	roCompatBigalloc     = 0x200
	roCompatMetadataCsum = 0x400
	roCompatSharedBlocks = 0x4000

	// readIncompat are the incompatible features that this package reads.
	readIncompat = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents | incompat64bit | incompatMMP |
		incompatFlexBG |
		incompatEAInode | incompatCsumSeed | incompatLargedir | incompatInlineData | incompatEncrypt | incompatCasefold
	// knownRoCompat are those that change nothing for who only reads, or that are read: up to
	// orphan_present, without has_snapshot.
	knownRoCompat = 0x1ff7f

	// ext3Incompat and ext3RoCompat are what a file system may have and still be called ext2 or
	// ext3.
	ext3Incompat = incompatFiletype | incompatRecover | incompatMetaBG
	ext3RoCompat = roCompatSparseSuper | roCompatLargeFile | roCompatBtreeDir
)

var incompatNames = map[uint32]string{
	incompatCompression: "compression",
	incompatJournalDev:  "journal_dev (this is a journal, not a file system)",
	incompatDirdata:     "dirdata",
}

// checkIncompat refuses features that reading would go wrong with, and names them.
func checkIncompat(incompat uint32) error {
	unknown := incompat &^ readIncompat
	if unknown == 0 {
		return nil
	}
	var names []string
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if unknown&bit == 0 {
			continue
		}
		name := incompatNames[bit]
		if name == "" {
			name = fmt.Sprintf("FEATURE_I%#x", bit)
		}
		names = append(names, name)
	}
	return unsupported("ext4 feature %s", strings.Join(names, ", "))
}
