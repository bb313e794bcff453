package xfs

import (
	"fmt"
	"io/fs"
	"time"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// How a fork of an inode keeps its contents.
const (
	formatDevice  = 0
	formatLocal   = 1
	formatExtents = 2
	formatBtree   = 3
)

const (
	inodeMagic    = 0x494e
	inodeCRC      = 100
	inodeLSN      = 112
	flagRealtime  = 1 << 0 // of di_flags
	flag2Bigtime  = 1 << 3 // of di_flags2
	flag2Nrext64  = 1 << 4
	modeType      = 0xf000
	modeFIFO      = 0x1000
	modeChar      = 0x2000
	modeDir       = 0x4000
	modeBlock     = 0x6000
	modeRegular   = 0x8000
	modeLink      = 0xa000
	modeSocket    = 0xc000
	maxLinkTarget = 1024
)

// inode is one as it is on disk, checked.
type inode struct {
	num  uint64
	raw  []byte
	mode uint16
	size uint64

	version, format, attrFormat byte

	extents, attrExtents uint64 // records in the forks
	realtime, bigtime    bool
	data, attrs          []byte // the forks
}

func (i *inode) kind() uint16    { return i.mode & modeType }
func (i *inode) isDir() bool     { return i.kind() == modeDir }
func (i *inode) isRegular() bool { return i.kind() == modeRegular }

// inode reads an inode that is in use.
func (f *FS) inode(num uint64) (*inode, error) {
	ino, err := f.readInode(num)
	if err != nil {
		return nil, fmt.Errorf("read inode %d: %w", num, err)
	}
	return ino, nil
}

func (f *FS) readInode(num uint64) (*inode, error) {
	off, err := f.sb.inodeOffset(num)
	if err != nil {
		return nil, err
	}
	raw, err := f.dev.meta(off, f.sb.inodeSize)
	if err != nil {
		return nil, err
	}
	ino := &inode{
		num: num, raw: raw, mode: be.Uint16(raw[2:]), version: raw[4], format: raw[5], attrFormat: raw[83],
		size:     be.Uint64(raw[56:]),
		realtime: be.Uint16(raw[90:])&flagRealtime != 0,
	}
	if err := f.checkIdentity(ino, f.dev.replayed(off, int64(f.sb.inodeSize))); err != nil {
		return nil, err
	}
	if ino.mode == 0 {
		return nil, corrupt("it is not in use, but has a name")
	}
	return ino, f.parseForks(ino)
}

func (f *FS) checkIdentity(ino *inode, replayed bool) error {
	raw := ino.raw
	if be.Uint16(raw) != inodeMagic {
		return corrupt("no inode there")
	}
	if f.sb.version == 4 {
		if ino.version != 1 && ino.version != 2 {
			return corrupt("inode version %d", ino.version)
		}
		return nil
	}
	switch {
	case ino.version != 3:
		return corrupt("inode version %d", ino.version)
	case f.torn[ino.num]:
		return corrupt("it was written in part")
	case !f.lax && !replayed && !checksumOK(raw, inodeCRC):
		return corrupt("bad checksum")
	case be.Uint64(raw[152:]) != ino.num:
		return corrupt("says it is inode %d", be.Uint64(raw[152:]))
	case [16]byte(raw[160:176]) != f.sb.metaUUID:
		return corrupt("of another file system")
	}
	return nil
}

func (f *FS) parseForks(ino *inode) error {
	raw := ino.raw
	header := f.sb.inodeHeader()
	ino.extents, ino.attrExtents = uint64(be.Uint32(raw[76:])), uint64(be.Uint16(raw[80:]))
	if ino.version == 3 {
		flags := be.Uint64(raw[120:])
		ino.bigtime = flags&flag2Bigtime != 0
		if flags&flag2Nrext64 != 0 {
			ino.extents, ino.attrExtents = be.Uint64(raw[24:]), uint64(be.Uint32(raw[76:]))
		}
	}
	ino.data = raw[header:]
	if fork := int(raw[82]) * 8; fork != 0 {
		if fork >= len(ino.data) {
			return corrupt("its attributes begin at byte %d of %d", fork, len(ino.data))
		}
		ino.data, ino.attrs = ino.data[:fork], ino.data[fork:]
	}
	if ino.size > 1<<63-1 {
		return corrupt("size %d", ino.size)
	}
	return ino.checkFormat()
}

// checkFormat refuses ways of storing that a mount refuses for the kind of file.
func (ino *inode) checkFormat() error {
	ok := false
	switch ino.kind() {
	case modeRegular:
		ok = ino.format == formatExtents || ino.format == formatBtree
	case modeDir, modeLink:
		ok = ino.format >= formatLocal && ino.format <= formatBtree
		if ino.size == 0 {
			return corrupt("size 0 for mode %o", ino.mode)
		}
	case modeFIFO, modeChar, modeBlock, modeSocket:
		ok = ino.format == formatDevice
	}
	if !ok {
		return corrupt("data format %d for mode %o", ino.format, ino.mode)
	}
	return nil
}

func (ino *inode) attr() filesystem.Attr {
	raw := ino.raw
	a := filesystem.Attr{
		ID: filesystem.ID(ino.num), Mode: fileMode(ino.mode), Size: int64(ino.size),
		UID: be.Uint32(raw[8:]), GID: be.Uint32(raw[12:]), Links: be.Uint32(raw[16:]),
		Accessed: ino.time(32), Modified: ino.time(40), Changed: ino.time(48),
	}
	if ino.version == 1 {
		a.Links = uint32(be.Uint16(raw[6:]))
	}
	if ino.version == 3 {
		a.Born = ino.time(144)
	}
	if k := ino.kind(); k == modeChar || k == modeBlock {
		a.Rdev = linuxDevice(be.Uint32(ino.data))
	}
	return a
}

// time reads a timestamp: nanoseconds since 1901 with bigtime, else seconds and nanoseconds.
func (ino *inode) time(at int) time.Time {
	b := ino.raw[at:]
	if ino.bigtime {
		ns := be.Uint64(b)
		return time.Unix(int64(ns/1e9)-1<<31, int64(ns%1e9))
	}
	return time.Unix(int64(int32(be.Uint32(b))), int64(int32(be.Uint32(b[4:]))))
}

// linuxDevice turns a device number as System V packs it into what Linux's makedev makes.
func linuxDevice(dev uint32) uint64 {
	major, minor := uint64(dev>>18&0x3fff), uint64(dev&0x3ffff)
	return major&0xfff<<8 | major&^0xfff<<32 | minor&0xff | minor&^0xff<<12
}

func fileMode(mode uint16) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	if mode&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if mode&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if mode&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	switch mode & modeType {
	case modeFIFO:
		m |= fs.ModeNamedPipe
	case modeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case modeDir:
		m |= fs.ModeDir
	case modeBlock:
		m |= fs.ModeDevice
	case modeLink:
		m |= fs.ModeSymlink
	case modeSocket:
		m |= fs.ModeSocket
	}
	return m
}
