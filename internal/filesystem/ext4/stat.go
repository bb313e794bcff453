package ext4

import (
	"io/fs"
	"time"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// Stat returns what is known of a file.
func (f *FS) Stat(id filesystem.ID) (filesystem.Attr, error) {
	in, err := f.named(id)
	if err != nil {
		return filesystem.Attr{}, err
	}
	a := filesystem.Attr{
		ID: id, Mode: fileMode(in.mode), Size: in.size, Links: uint32(in.links()),
		UID: uint32(le16(in.raw, 2)), GID: uint32(le16(in.raw, 0x18)),
		Accessed: in.time(0x8, 0x8C), Changed: in.time(0xC, 0x84), Modified: in.time(0x10, 0x88),
	}
	if f.sb.creator != creatorGNU {
		a.UID |= uint32(le16(in.raw, 0x78)) << 16
		a.GID |= uint32(le16(in.raw, 0x7A)) << 16
	}
	if in.fits(0x90, 4) {
		a.Born = in.time(0x90, 0x94)
	}
	switch in.kind() {
	case typeChar, typeBlock:
		a.Rdev = in.deviceNumber()
	case 0:
		return filesystem.Attr{}, in.damaged("it has no type")
	}
	return a, nil
}

// time returns the time whose seconds are at one offset and whose nanoseconds and later epochs are
// at another, if the inode has it.
func (in *inode) time(at, extraAt int) time.Time {
	sec, nsec := int64(int32(le32(in.raw, at))), int64(0)
	if in.fits(extraAt, 4) {
		extra := le32(in.raw, extraAt)
		sec += int64(extra&3) << 32
		nsec = int64(extra >> 2)
	}
	return time.Unix(sec, nsec)
}

func fileMode(mode uint16) fs.FileMode {
	m := fs.FileMode(mode&0o777) | kindMode(mode&typeMask)
	for bit, as := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= as
		}
	}
	return m
}

// kindMode returns the type bits for those of an inode.
func kindMode(kind uint16) fs.FileMode {
	switch kind {
	case typeRegular:
		return 0
	case typeDir:
		return fs.ModeDir
	case typeSymlink:
		return fs.ModeSymlink
	case typeChar:
		return fs.ModeDevice | fs.ModeCharDevice
	case typeBlock:
		return fs.ModeDevice
	case typeFIFO:
		return fs.ModeNamedPipe
	case typeSocket:
		return fs.ModeSocket
	}
	return fs.ModeIrregular
}
