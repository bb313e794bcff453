package ext4

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	journalMagic = 0xC03B3998

	journalDescriptor = 1
	journalCommit     = 2
	journalSuperV1    = 3
	journalSuperV2    = 4
	journalRevoke     = 5

	journalCompatChecksum = 0x1
	journalRevokes        = 0x1
	journal64bit          = 0x2
	journalAsyncCommit    = 0x4
	journalCsumV2         = 0x8
	journalCsumV3         = 0x10
	journalFastCommit     = 0x20
	journalKnown          = journalRevokes | journal64bit | journalAsyncCommit | journalCsumV2 | journalCsumV3 |
		journalFastCommit

	journalWindow       = 256 << 10 // read at once while the log is read
	defaultFastBlocks   = 256
	minJournalBlocks    = 1024
	journalHeader       = 12
	journalSuperblock   = 1024
	journalSuperSumAt   = 0xFC
	journalSuperUserAt  = 0x100
	maxJournalBlocks    = 10_240_000 // as mke2fs has it
	journalTailChecksum = 4          // bytes at the end of a block, with csum_v2 and csum_v3
)

var journalMagicBytes = binary.BigEndian.AppendUint32(nil, journalMagic)

func be32(b []byte, off int) uint32 { return binary.BigEndian.Uint32(b[off:]) }

// journal is the log of a file system, a ring of blocks in a file.
type journal struct {
	fs       *FS
	blocks   blockMap
	file     filesystem.File
	compat   uint32
	features uint32
	first    uint32 // first block of the ring
	end      uint32 // first block behind it
	max      uint32 // blocks of the file; fast commits are behind the ring
	start    uint32 // where the log begins; 0 when it is empty
	sequence uint32 // of the first transaction
	seed     uint32

	window   []byte // what was read last
	windowAt uint32 // block where it begins
}

func (j *journal) has(feature uint32) bool { return j.features&feature != 0 }
func (j *journal) hasSums() bool           { return j.has(journalCsumV2 | journalCsumV3) }

// openJournal reads the superblock of the journal.
func (f *FS) openJournal() (*journal, error) {
	in, err := f.inode(f.sb.journalInode)
	if err != nil {
		return nil, err
	}
	if in.kind() != typeRegular || in.links() == 0 {
		return nil, in.damaged("it is not a journal")
	}
	file, err := f.data(in)
	if err != nil {
		return nil, err
	}
	j := &journal{fs: f, file: file, blocks: blockMap{fs: f, in: in}}
	super := make([]byte, journalSuperblock)
	if _, err := file.ReadAt(super, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("read its superblock: %w", err)
	}
	return j, j.parse(super)
}

func (j *journal) parse(super []byte) error {
	kind := be32(super, 4)
	if be32(super, 0) != journalMagic || kind != journalSuperV1 && kind != journalSuperV2 {
		return damaged("the journal has no superblock")
	}
	if size := int64(be32(super, 0xC)); size != j.fs.sb.blockSize {
		return damaged("blocks of the journal have %d bytes", size)
	}
	j.max, j.first, j.sequence, j.start = be32(super, 0x10), be32(super, 0x14), be32(super, 0x18), be32(super, 0x1C)
	if kind == journalSuperV2 {
		j.compat, j.features = be32(super, 0x24), be32(super, 0x28)
	}
	if unknown := j.features &^ journalKnown; unknown != 0 {
		return unsupported("journal feature %#x", unknown)
	}
	if j.has(journalCsumV2) && j.has(journalCsumV3) || j.hasSums() && j.compat&journalCompatChecksum != 0 {
		return damaged("the journal has two kinds of checksums")
	}
	if err := j.checkSum(super); err != nil {
		return err
	}
	j.end = j.max
	if j.has(journalFastCommit) {
		n := be32(super, 0x54)
		if n == 0 {
			n = defaultFastBlocks
		}
		if j.max >= n && j.max-n >= minJournalBlocks {
			j.end = j.max - n
		}
	}
	inFile := j.fs.blocksOf(j.file.Size())
	if j.max > maxJournalBlocks || uint64(j.max) > inFile || j.first == 0 || j.first >= j.end || j.start >= j.end ||
		j.start != 0 && j.start < j.first {
		return damaged("a journal of blocks %d to %d that begins at %d, in a file of %d", j.first, j.max, j.start,
			inFile)
	}
	return nil
}

func (j *journal) checkSum(super []byte) error {
	if !j.hasSums() {
		return nil
	}
	sum := crc32c(crc32c(^uint32(0), super[:journalSuperSumAt]), make([]byte, 4))
	if crc32c(sum, super[journalSuperSumAt+4:]) != be32(super, journalSuperSumAt) {
		return damaged("checksum of the journal's superblock does not match")
	}
	j.seed = crc32c(^uint32(0), super[0x30:0x40])
	return nil
}

// block returns the content of one block of the journal. It is valid until the next call.
func (j *journal) block(n uint32) ([]byte, error) {
	bs := uint32(j.fs.sb.blockSize)
	if at := n - j.windowAt; n < j.windowAt || at >= uint32(len(j.window))/bs {
		count := min(max(journalWindow/bs, 1), j.max-n)
		if j.window == nil {
			j.window = make([]byte, max(journalWindow, bs))
		}
		j.window, j.windowAt = j.window[:count*bs], n
		if read, err := j.file.ReadAt(j.window, int64(n)*int64(bs)); read < len(j.window) {
			j.window = j.window[:0]
			return nil, fmt.Errorf("read its block %d: %w", n, err)
		}
	}
	at := (n - j.windowAt) * bs
	return j.window[at : at+bs], nil
}

// next returns the block of the ring that is n blocks behind another.
func (j *journal) next(block, n uint32) uint32 {
	return j.first + (block-j.first+n)%(j.end-j.first)
}

// where returns the block of the device that a block of the journal is in.
func (j *journal) where(n uint32) (uint64, error) {
	r, err := j.blocks.at(uint64(n))
	if err == nil && r.hole {
		err = damaged("block %d of the journal is missing", n)
	}
	return r.phys, err
}

// replayJournal makes the disk show what committed transactions wrote.
func (f *FS) replayJournal() error {
	j, err := f.openJournal()
	if err != nil {
		return err
	}
	if j.start == 0 {
		return nil
	}
	log, err := j.scan()
	if err != nil {
		return err
	}
	list, err := j.overlay(log)
	if err != nil {
		return err
	}
	f.disk.setOverlay(list)
	if err := f.reload(); err != nil {
		return err
	}
	f.note("the journal was replayed (transactions: %d, blocks: %d)", log.transactions, len(list))
	if j.has(journalFastCommit) {
		return j.replayFast(log.sequence)
	}
	return nil
}
