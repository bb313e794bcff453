package volume

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// finding is what identify learned from the first bytes of a volume.
type finding struct {
	kind        string // "" is nothing known
	label, uuid string
	open        func(io.ReaderAt, int64) (filesystem.FS, error) // nil where it cannot be read
	reason      error                                           // why not
}

// signature is how a kind of content is known.
type signature struct {
	off   int64
	magic string
	kind  string // as blkid calls it
	text  string // for people
}

// signatures of what is recognised and not read. Earlier ones win: what wraps a file system stands
// before what it wraps.
var signatures = []signature{
	{0, "LUKS\xba\xbe", "crypto_LUKS", "it is encrypted with LUKS"},
	{3, "-FVE-FS-", "BitLocker", "it is encrypted with BitLocker"},
	{0x1018, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcache", "it is a part of a bcache"},
	{3, "EXFAT   ", "exfat", "an exFAT file system"},
	{3, "ReFS\x00\x00\x00\x00", "ReFS", "a ReFS file system"},
	{0x10040, "_BHRfS_M", "btrfs", "a btrfs file system"},
	{0x8001, "CD001", "iso9660", "an ISO 9660 file system"},
	{0x8001, "BEA01", "udf", "a UDF file system"},
	{0x400, "\x10\x20\xf5\xf2", "f2fs", "an F2FS file system"},
	{0, "hsqs", "squashfs", "a squashfs file system"},
	{0x8000, "JFS1", "jfs", "a JFS file system"},
	{0x10034, "ReIsEr", "reiserfs", "a ReiserFS file system"},
	{0x1018, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "bcachefs", "a bcachefs file system"},
	{0x400, "H+\x00\x04", "hfsplus", "an HFS+ file system"},
	{0x400, "HX\x00\x05", "hfsplus", "an HFS+ file system"},
	{0x20, "NXSB", "apfs", "an APFS container"},
}

const (
	headSize = 0x11000 // bytes at the beginning that signatures are in
	mdMagic  = "\xfc\x4e\x2b\xa9"
)

// identify looks for what is known. Errors are of reading.
func identify(r io.ReaderAt, size int64) (finding, error) {
	head := make([]byte, min(size, headSize))
	if n, err := r.ReadAt(head, 0); n < len(head) {
		return finding{}, readError(0, err)
	}
	if f, err := identifyRAID(r, size, head); err != nil || f.kind != "" {
		return f, err
	}
	for _, s := range signatures {
		if has(head, s.off, s.magic) {
			f := finding{kind: s.kind, reason: fmt.Errorf("%w: %s", filesystem.ErrUnsupported, s.text)}
			f.describe(head)
			return f, nil
		}
	}
	if f := identifySwap(head); f.kind != "" {
		return f, nil
	}
	if f := identifyReadable(head); f.kind != "" {
		return f, nil
	}
	if f, err := identifyFAT(r, size); err != nil || f.kind != "" {
		return f, err
	}
	return identifyZFS(r, size)
}

func has(head []byte, off int64, magic string) bool {
	return off+int64(len(magic)) <= int64(len(head)) && string(head[off:off+int64(len(magic))]) == magic
}

// describe takes label and UUID from where the kind has them.
func (f *finding) describe(head []byte) {
	switch f.kind {
	case "crypto_LUKS":
		f.uuid = text(head, 168, 40)
		if has(head, 6, "\x00\x02") {
			f.label = text(head, 24, 48)
		}
	case "btrfs":
		f.uuid, f.label = dashed(head, 0x10020), text(head, 0x1012b, 256)
	case "iso9660":
		f.label = strings.TrimRight(text(head, 0x8028, 32), " ")
	}
}

func identifySwap(head []byte) finding {
	for page := int64(4096); page <= 65536; page *= 2 {
		if has(head, page-10, "SWAPSPACE2") || has(head, page-10, "SWAP-SPACE") {
			return finding{kind: "swap", uuid: dashed(head, 1036), label: text(head, 1052, 16),
				reason: fmt.Errorf("%w: it is swap space", ErrNoFiles)}
		}
	}
	return finding{}
}

// identifyRAID looks for a member of a Linux software RAID: its superblock is at the beginning or
// at the end.
func identifyRAID(r io.ReaderAt, size int64, head []byte) (finding, error) {
	member := finding{kind: "linux_raid_member",
		reason: fmt.Errorf("%w: it is a member of a Linux software RAID (md)", filesystem.ErrUnsupported)}
	for _, off := range []int64{0, 4096} {
		if has(head, off, mdMagic+"\x01\x00\x00\x00") &&
			has(head, off+144, string(binary.LittleEndian.AppendUint64(nil, uint64(off/512)))) {
			member.uuid, member.label = dashed(head, off+16), text(head, off+32, 32)
			return member, nil
		}
	}
	raw := make([]byte, 256)
	for version, off := range []int64{size&^0xffff - 0x10000, (size/512 - 16) &^ 7 * 512} {
		if off < 4096 || off+256 > size {
			continue
		}
		if n, err := r.ReadAt(raw, off); n < len(raw) {
			return finding{}, readError(off, err)
		}
		if !has(raw, 0, mdMagic) || binary.LittleEndian.Uint32(raw[4:]) != uint32(version) {
			continue
		}
		if version == 0 && binary.LittleEndian.Uint32(raw[8:]) >= 90 ||
			version == 1 && int64(binary.LittleEndian.Uint64(raw[144:])) == off/512 {
			return member, nil
		}
	}
	return finding{}, nil
}

// identifyZFS looks for an uberblock in the first label.
func identifyZFS(r io.ReaderAt, size int64) (finding, error) {
	const start, length = 128 << 10, 128 << 10
	if size < 4*(start+length) {
		return finding{}, nil
	}
	raw := make([]byte, length)
	if n, err := r.ReadAt(raw, start); n < len(raw) {
		return finding{}, readError(start, err)
	}
	for at := int64(0); at < length; at += 1024 {
		if has(raw, at, "\x0c\xb1\xba\x00\x00\x00\x00\x00") || has(raw, at, "\x00\x00\x00\x00\x00\xba\xb1\x0c") {
			return finding{kind: "zfs_member",
				reason: fmt.Errorf("%w: it is a part of a ZFS pool", filesystem.ErrUnsupported)}, nil
		}
	}
	return finding{}, nil
}

// identifyReadable recognises what there are readers for.
func identifyReadable(head []byte) finding {
	le := binary.LittleEndian
	switch {
	case has(head, 0, "XFSB"):
		return finding{kind: "xfs", uuid: dashed(head, 32), label: text(head, 108, 12), open: openXFS}
	case has(head, 3, "NTFS    "):
		return finding{kind: "ntfs", uuid: ntfsSerial(head), open: openNTFS}
	case has(head, 1024+56, "\x53\xef") && len(head) >= 2048:
		kind := "ext2"
		switch compat, incompat, ro := le.Uint32(head[1024+92:]), le.Uint32(head[1024+96:]),
			le.Uint32(head[1024+100:]); {
		case incompat&^0x16 != 0 || ro&^0x7 != 0:
			kind = "ext4"
		case compat&0x4 != 0:
			kind = "ext3"
		}
		return finding{kind: kind, uuid: dashed(head, 1024+104), label: text(head, 1024+120, 16), open: openExt}
	}
	return finding{}
}

func ntfsSerial(head []byte) string {
	if len(head) < 80 {
		return ""
	}
	return fmt.Sprintf("%016X", binary.LittleEndian.Uint64(head[72:]))
}

// text returns a string of at most n bytes that ends with a zero.
func text(head []byte, off int64, n int) string {
	if off+int64(n) > int64(len(head)) {
		return ""
	}
	b, _, _ := bytes.Cut(head[off:off+int64(n)], []byte{0})
	return string(b)
}

// dashed prints a UUID, "" where it is all zeros.
func dashed(head []byte, off int64) string {
	if off+16 > int64(len(head)) || [16]byte(head[off:]) == [16]byte{} {
		return ""
	}
	s := hex.EncodeToString(head[off : off+16])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}

func readError(off int64, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read at offset %d: %w", off, err)
}
