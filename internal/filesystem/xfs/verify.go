package xfs

import (
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns the CRC-32C of b as if the four bytes at at were zero.
func checksum(b []byte, at int) uint32 {
	var zero [4]byte
	c := crc32.Update(0, castagnoli, b[:at])
	c = crc32.Update(c, castagnoli, zero[:])
	return crc32.Update(c, castagnoli, b[at+4:])
}

// checksumOK says whether the checksum stored at at is that of b.
func checksumOK(b []byte, at int) bool {
	return binary.LittleEndian.Uint32(b[at:]) == checksum(b, at)
}

// layout says where a kind of metadata block of version 5 keeps what describes itself.
type layout struct {
	kind                             string
	magic4, magic5                   uint32 // in version 4 and 5
	magicAt, crc, blkno, uuid, owner int
	lsn                              int
}

var (
	bmapLayout      = layout{"block map btree block", 0x424d4150, 0x424d4133, 0, 64, 24, 40, 56, 32}
	dirBlockLayout  = layout{"directory block", 0x58443242, 0x58444233, 0, 4, 8, 24, 40, 16}
	dirDataLayout   = layout{"directory data block", 0x58443244, 0x58444433, 0, 4, 8, 24, 40, 16}
	attrLeafLayout  = layout{"attribute leaf", 0xfbee0000, 0x3bee0000, 8, 12, 16, 32, 48, 24}
	attrNodeLayout  = layout{"attribute node", 0xfebe0000, 0x3ebe0000, 8, 12, 16, 32, 48, 24}
	attrValueLayout = layout{"attribute value", 0, 0x5841524d, 0, 12, 40, 16, 32, 48}
	symlinkLayout   = layout{"symbolic link", 0, 0x58534c4d, 0, 12, 40, 16, 32, 48}
)

// is says whether b begins as such a block does.
func (f *FS) is(l *layout, b []byte) bool {
	magic := l.magic4
	if f.sb.version == 5 {
		magic = l.magic5
	}
	got := be.Uint32(b[l.magicAt:])
	if magic&0xffff == 0 {
		got &= 0xffff0000
	}
	return got == magic
}

// anyOwner is for blocks whose owner changed without them.
const anyOwner = ^uint64(0)

// verify checks that b, read from byte off, is what it should be and whose.
func (f *FS) verify(l *layout, b []byte, off int64, owner uint64) error {
	if !f.is(l, b) {
		return corrupt("no %s at byte %d", l.kind, off)
	}
	if f.sb.version != 5 {
		return nil
	}
	if got := be.Uint64(b[l.blkno:]); got != uint64(off)>>basicBlockLog {
		return corrupt("%s at byte %d says it is at sector %d", l.kind, off, got)
	}
	if got := be.Uint64(b[l.owner:]); got != owner && owner != anyOwner {
		return corrupt("%s at byte %d belongs to inode %d, not %d", l.kind, off, got, owner)
	}
	if [16]byte(b[l.uuid:l.uuid+16]) != f.sb.metaUUID {
		return corrupt("%s at byte %d is of another file system", l.kind, off)
	}
	return nil
}

// sum checks the checksum of b and that it is not newer than the log, unless the log changed a part
// of it.
func (f *FS) sum(l *layout, b []byte, off int64, replayed bool) error {
	if f.sb.version != 5 || f.lax || replayed {
		return nil
	}
	if !checksumOK(b, l.crc) {
		return corrupt("bad checksum of %s at byte %d", l.kind, off)
	}
	if lsn := be.Uint64(b[l.lsn:]); f.logEnd != 0 && lsn != anyLSN && lsn > f.logEnd {
		return corrupt("%s at byte %d was written after the end of the log: the disk lost a part of the log", l.kind,
			off)
	}
	return nil
}

// readVerified reads n bytes of metadata at a valid block.
func (f *FS) readVerified(l *layout, block uint64, n int, owner uint64) ([]byte, error) {
	off := f.sb.offset(block)
	b, err := f.dev.meta(off, n)
	if err != nil {
		return nil, err
	}
	if err := f.verify(l, b, off, owner); err != nil {
		return nil, err
	}
	return b, f.sum(l, b, off, f.dev.replayed(off, int64(n)))
}
