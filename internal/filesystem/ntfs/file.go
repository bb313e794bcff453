package ntfs

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// Attributes of a file, as Windows has them.
const (
	fileSystem       = 0x4
	fileReparse      = 0x400
	fileOffline      = 0x1000
	fileRecallOnOpen = 0x40000
	fileRecallOnRead = 0x400000
)

// Reparse points that are known: what makes a link or a special file, and what leaves the data
// where it is.
const (
	tagMountPoint = 0xa0000003
	tagSymlink    = 0xa000000c
	tagLxSymlink  = 0xa000001d
	tagSocket     = 0x80000023
	tagLxFIFO     = 0x80000024
	tagLxChar     = 0x80000025
	tagLxBlock    = 0x80000026
	tagAppLink    = 0x8000001b
	tagWOF        = 0x80000017
	tagDedup      = 0x80000013
)

const maxSmall = 64 << 10 // bytes of a reparse point, of extended attributes

// standard is what $STANDARD_INFORMATION says.
type standard struct {
	born, modified, changed, accessed time.Time
	attrs, security                   uint32
}

func (ino *inode) standard() (standard, error) {
	a := ino.find(attrStandard, "")
	if a == nil || len(a.value) < 48 {
		return standard{}, corrupt("record %d has no standard information", ino.ref&refMask)
	}
	s := standard{born: timeOf(a.value), modified: timeOf(a.value[8:]), changed: timeOf(a.value[16:]),
		accessed: timeOf(a.value[24:]), attrs: le.Uint32(a.value[32:])}
	if len(a.value) >= 72 {
		s.security = le.Uint32(a.value[52:])
	}
	return s, nil
}

// timeOf decodes hundreds of nanoseconds since 1601.
func timeOf(p []byte) time.Time {
	const epoch = 11644473600 // seconds from 1601 to 1970
	v := le.Uint64(p)
	if v == 0 {
		return time.Time{}
	}
	return time.Unix(int64(v/1e7)-epoch, int64(v%1e7)*100).UTC()
}

// Stat implements [filesystem.FS].
func (f *FS) Stat(id filesystem.ID) (filesystem.Attr, error) {
	ino, err := f.inode(uint64(id), true)
	if err != nil {
		return filesystem.Attr{}, err
	}
	std, err := ino.standard()
	if err != nil {
		return filesystem.Attr{}, err
	}
	a := filesystem.Attr{ID: filesystem.ID(ino.ref), Links: ino.names(), Modified: std.modified, Accessed: std.accessed,
		Changed: std.changed, Born: std.born}
	if a.Mode, err = ino.mode(); err != nil {
		return a, err
	}
	switch a.Mode.Type() {
	case 0:
		s, err := ino.stream(attrData, "")
		if err != nil {
			return a, err
		}
		a.Size = s.size
	case fs.ModeSymlink:
		target, err := f.ReadLink(id)
		if err != nil {
			return a, err
		}
		a.Size = int64(len(target))
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		a.Rdev = ino.rdev()
	}
	ino.applyLinux(&a)
	return a, nil
}

// names counts the names that a mount shows; a DOS name beside a long one does not count.
func (ino *inode) names() uint32 {
	n := uint32(0)
	for _, a := range ino.attrs {
		if a.kind == attrFileName && len(a.value) >= fileNameHead && a.value[65] != namespaceDOS {
			n++
		}
	}
	return max(n, 1)
}

// mode tells what a file is, and gives it the permissions of one that Linux has not seen.
func (ino *inode) mode() (fs.FileMode, error) {
	tag, _, err := ino.reparse()
	if err != nil {
		return 0, err
	}
	switch tag {
	case tagMountPoint, tagSymlink, tagLxSymlink:
		return fs.ModeSymlink | 0o777, nil
	case tagSocket:
		return fs.ModeSocket | 0o644, nil
	case tagLxFIFO:
		return fs.ModeNamedPipe | 0o644, nil
	case tagLxChar:
		return fs.ModeDevice | fs.ModeCharDevice | 0o644, nil
	case tagLxBlock:
		return fs.ModeDevice | 0o644, nil
	}
	if ino.dir {
		return fs.ModeDir | 0o755, nil
	}
	if kind, _, err := ino.interix(); err != nil || kind != 0 {
		return kind | 0o644, err
	}
	return 0o644, nil
}

// interix reads what Interix, and ntfs-3g after it, makes of links and devices: a system file that
// says so in its first bytes.
func (ino *inode) interix() (kind fs.FileMode, rest []byte, err error) {
	std, err := ino.standard()
	if err != nil || std.attrs&fileSystem == 0 {
		return 0, nil, err
	}
	a := ino.find(attrData, "")
	if a == nil || a.size < 8 || a.size > maxSmall || a.flags&flagEncrypted != 0 {
		return 0, nil, nil
	}
	p, err := ino.value(attrData, maxSmall)
	if err != nil {
		return 0, nil, err
	}
	switch string(p[:8]) {
	case "IntxLNK\x01":
		kind = fs.ModeSymlink
	case "IntxCHR\x00":
		kind = fs.ModeDevice | fs.ModeCharDevice
	case "IntxBLK\x00":
		kind = fs.ModeDevice
	}
	return kind, p[8:], nil
}

func (ino *inode) rdev() uint64 {
	if _, rest, err := ino.interix(); err == nil && len(rest) >= 16 {
		return makedev(uint32(le.Uint64(rest)), uint32(le.Uint64(rest[8:])))
	}
	if v := ino.linux("$LXDEV"); len(v) == 8 {
		return makedev(le.Uint32(v), le.Uint32(v[4:]))
	}
	return 0
}

func makedev(major, minor uint32) uint64 {
	return uint64(minor&0xff) | uint64(major&0xfff)<<8 | uint64(minor&^0xff)<<12 | uint64(major&^0xfff)<<32
}

// applyLinux takes the owner and mode that WSL has stored.
func (ino *inode) applyLinux(a *filesystem.Attr) {
	if v := ino.linux("$LXUID"); len(v) == 4 {
		a.UID = le.Uint32(v)
	}
	if v := ino.linux("$LXGID"); len(v) == 4 {
		a.GID = le.Uint32(v)
	}
	if v := ino.linux("$LXMOD"); len(v) == 4 {
		m := le.Uint32(v)
		a.Mode = a.Mode.Type() | fs.FileMode(m&0o777)
		for bit, mode := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid,
			0o1000: fs.ModeSticky} {
			if m&bit != 0 {
				a.Mode |= mode
			}
		}
	}
}

// linux returns an extended attribute of WSL; nil if there is none that can be read.
func (ino *inode) linux(name string) []byte {
	p, err := ino.value(attrEA, maxSmall)
	if err != nil {
		return nil
	}
	for len(p) >= 8 {
		next, n, v := int(le.Uint32(p)), int(p[5]), int(le.Uint16(p[6:]))
		if 8+n+1+v > len(p) {
			return nil
		}
		if strings.EqualFold(string(p[8:8+n]), name) {
			return p[9+n : 9+n+v]
		}
		if next < 8 || next > len(p) {
			return nil
		}
		p = p[next:]
	}
	return nil
}

// reparse returns the tag and the data of a reparse point; 0 if the file is not one.
func (ino *inode) reparse() (tag uint32, data []byte, err error) {
	p, err := ino.value(attrReparse, maxSmall)
	if err != nil || p == nil {
		return 0, nil, err
	}
	if len(p) < 8 || 8+int(le.Uint16(p[4:])) > len(p) {
		return 0, nil, corrupt("the reparse point of record %d is cut off", ino.ref&refMask)
	}
	return le.Uint32(p), p[8 : 8+int(le.Uint16(p[4:]))], nil
}

// ReadLink implements [filesystem.FS].
func (f *FS) ReadLink(id filesystem.ID) (string, error) {
	ino, err := f.inode(uint64(id), true)
	if err != nil {
		return "", err
	}
	tag, p, err := ino.reparse()
	if err != nil {
		return "", err
	}
	switch tag {
	case tagSymlink:
		return linkTarget(p, 12)
	case tagMountPoint:
		return linkTarget(p, 8)
	case tagLxSymlink:
		if len(p) < 4 {
			return "", corrupt("a link of %d bytes", len(p))
		}
		return string(p[4:]), nil
	}
	kind, rest, err := ino.interix()
	if err != nil {
		return "", err
	}
	if kind != fs.ModeSymlink {
		return "", fmt.Errorf("record %d is not a link", ino.ref&refMask)
	}
	return decodeName(rest), nil
}

// linkTarget decodes a symbolic link or junction: the name for people, else the one for the system;
// names begin at head.
func linkTarget(p []byte, head int) (string, error) {
	if len(p) < head {
		return "", corrupt("a link of %d bytes", len(p))
	}
	name := func(at int) (string, error) {
		off, n := head+int(le.Uint16(p[at:])), int(le.Uint16(p[at+2:]))
		if off+n > len(p) {
			return "", corrupt("the target of a link leaves it")
		}
		return decodeName(p[off : off+n]), nil
	}
	target, err := name(4)
	if err == nil && target == "" {
		target, err = name(0)
		target = strings.TrimPrefix(target, `\??\`)
	}
	return strings.ReplaceAll(target, `\`, "/"), err
}

// Open implements [filesystem.FS].
func (f *FS) Open(id filesystem.ID) (filesystem.File, error) {
	ino, err := f.inode(uint64(id), true)
	if err != nil {
		return nil, err
	}
	mode, err := ino.mode()
	if err != nil {
		return nil, err
	}
	if !mode.IsRegular() {
		return nil, fmt.Errorf("record %d is not a regular file", ino.ref&refMask)
	}
	if err := ino.elsewhere(); err != nil {
		return nil, err
	}
	return ino.open("")
}

// elsewhere returns why the data of a file is not what its stream has.
func (ino *inode) elsewhere() error {
	std, err := ino.standard()
	if err != nil {
		return err
	}
	if std.attrs&(fileOffline|fileRecallOnOpen|fileRecallOnRead) != 0 {
		return unsupported("the content of the file is not on this disk (offline or in a cloud)")
	}
	tag, _, err := ino.reparse()
	switch {
	case err != nil:
		return err
	case tag == 0 || tag == tagAppLink:
		return nil
	case tag == tagWOF:
		return unsupported("file compressed by Windows (WOF)")
	case tag == tagDedup:
		return unsupported("deduplicated file")
	}
	return unsupported(fmt.Sprintf("content behind a reparse point of tag %#x", tag))
}

func (ino *inode) open(name string) (filesystem.File, error) {
	s, err := ino.stream(attrData, name)
	if err != nil {
		return nil, err
	}
	if s.encrypted {
		return nil, unsupported("encrypted file")
	}
	return s, nil
}

// Streams implements [filesystem.FS].
func (f *FS) Streams(id filesystem.ID) ([]filesystem.Stream, error) {
	ino, err := f.inode(uint64(id), true)
	if err != nil {
		return nil, err
	}
	var out []filesystem.Stream
	for _, a := range ino.attrs {
		if a.kind == attrData && a.name != "" && a.firstVCN == 0 {
			out = append(out, filesystem.Stream{Name: a.name, Size: a.size})
		}
	}
	return out, nil
}

// OpenStream implements [filesystem.FS].
func (f *FS) OpenStream(id filesystem.ID, name string) (filesystem.File, error) {
	ino, err := f.inode(uint64(id), true)
	if err != nil {
		return nil, err
	}
	if name == "" || ino.find(attrData, name) == nil {
		return nil, fmt.Errorf("stream %q: %w", name, filesystem.ErrNotExist)
	}
	return ino.open(name)
}

// Xattrs implements [filesystem.FS].
func (f *FS) Xattrs(id filesystem.ID) (map[string][]byte, error) {
	ino, err := f.inode(uint64(id), true)
	if err != nil {
		return nil, err
	}
	std, err := ino.standard()
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{"system.ntfs_attrib": binary.LittleEndian.AppendUint32(nil, std.attrs)}
	for name, kind := range map[string]uint32{"system.ntfs_reparse_data": attrReparse, "system.ntfs_ea": attrEA,
		"system.ntfs_acl": attrSecurity} {
		p, err := ino.value(kind, maxSmall)
		if err != nil {
			return nil, err
		}
		if p != nil {
			out[name] = p
		}
	}
	if out["system.ntfs_acl"] == nil && std.security != 0 {
		acl, err := f.descriptor(std.security)
		if err != nil {
			return nil, err
		}
		if acl != nil {
			out["system.ntfs_acl"] = acl
		}
	}
	return out, nil
}
