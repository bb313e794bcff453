package ext4

import (
	"bytes"
	"iter"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	attrMagic      = 0xEA020000
	attrHeader     = 32 // of a block; that in an inode is only the magic
	attrEntry      = 16 // and the name behind it
	maxAttrValue   = 64 << 10
	maxAttrTotal   = 16 << 20 // bytes of all values of an inode; Linux lists 64 KiB of names
	attrIndexACL   = 2
	attrIndexDefer = 3 // the default ACL
)

// attrPrefixes are the names that a mount shows, by index; others are not for anyone to see.
var attrPrefixes = map[byte]string{
	1: "user.", attrIndexACL: "system.posix_acl_access", attrIndexDefer: "system.posix_acl_default", 4: "trusted.",
	6: "security.", 10: "gnu.",
}

// attr is one extended attribute; its value is in the region that the entry is in, or in an inode
// of its own.
type attr struct {
	index      byte
	name       string
	off        int
	size       uint32
	valueInode uint32
	hash       uint32
}

// Xattrs returns the extended attributes.
func (f *FS) Xattrs(id filesystem.ID) (map[string][]byte, error) {
	in, err := f.named(id)
	if err != nil {
		return nil, err
	}
	all, left := map[string][]byte{}, maxAttrTotal
	if body := in.attrBody(); body != nil {
		if err := f.collectAttrs(in, all, &left, body, 0); err != nil {
			return nil, in.wrap(err)
		}
	}
	block := in.attrBlock(f.sb)
	if block == 0 {
		return all, nil
	}
	b, err := f.attrBlock(block)
	if err == nil {
		err = f.collectAttrs(in, all, &left, b, attrHeader)
	}
	if err != nil {
		return nil, in.wrap(err)
	}
	return all, nil
}

// attrBody returns the entries and values that are in the inode itself, or nil.
func (in *inode) attrBody() []byte {
	at := 128 + in.extra
	if in.extra == 0 || at+4 > len(in.raw) || le32(in.raw, at) != attrMagic {
		return nil
	}
	return in.raw[at+4:]
}

// attrBlock returns a block of attributes, verified.
func (f *FS) attrBlock(n uint64) ([]byte, error) {
	if err := f.checkBlocks(n, 1); err != nil {
		return nil, err
	}
	b, err := f.disk.block(n)
	if err != nil {
		return nil, err
	}
	if le32(b, 0) != attrMagic || le32(b, 8) != 1 {
		return nil, damaged("attribute block %d has a wrong header", n)
	}
	if !f.sb.hasChecksums() {
		return b, nil
	}
	const sumAt = 16
	sum := crc32cNumber(crc32cNumber(f.sb.csumSeed, uint32(n)), uint32(n>>32))
	sum = crc32c(crc32c(crc32c(sum, b[:sumAt]), make([]byte, 4)), b[sumAt+4:])
	if sum != le32(b, sumAt) {
		return nil, damaged("checksum of attribute block %d does not match", n)
	}
	return b, nil
}

// attrEntries yields the entries of a region, which begin at an offset.
func attrEntries(b []byte, at int) iter.Seq2[attr, error] {
	return func(yield func(attr, error) bool) {
		for {
			if at+4 > len(b) {
				yield(attr{}, damaged("attributes without an end"))
				return
			}
			if le32(b, at) == 0 {
				return
			}
			name := at + attrEntry
			if name > len(b) || name+int(b[at]) > len(b) {
				yield(attr{}, damaged("an attribute's name is cut off"))
				return
			}
			a := attr{
				index: b[at+1], name: string(b[name : name+int(b[at])]), off: int(le16(b, at+2)),
				valueInode: le32(b, at+4), size: le32(b, at+8), hash: le32(b, at+12),
			}
			if !yield(a, nil) {
				return
			}
			at = (name + int(b[at]) + 3) &^ 3
		}
	}
}

// value returns the value of an attribute in its own region.
func (a attr) value(b []byte) ([]byte, error) {
	if uint64(a.off)+uint64(a.size) > uint64(len(b)) {
		return nil, damaged("the value of attribute %q is cut off", a.name)
	}
	return b[a.off : a.off+int(a.size)], nil
}

func (f *FS) collectAttrs(in *inode, all map[string][]byte, left *int, b []byte, at int) error {
	for a, err := range attrEntries(b, at) {
		if err != nil {
			return err
		}
		prefix, shown := attrPrefixes[a.index]
		name := prefix + a.name
		if _, twice := all[name]; !shown || twice {
			continue
		}
		if bytes.IndexByte([]byte(name), 0) >= 0 {
			return damaged("an attribute with the name %q", name)
		}
		value, err := f.attrValue(in, a, b)
		if err != nil {
			return err
		}
		if a.index == attrIndexACL || a.index == attrIndexDefer {
			if value, err = kernelACL(value); err != nil {
				return err
			}
		}
		if *left -= len(value); *left < 0 {
			return unsupported("attributes of more than %d bytes", maxAttrTotal)
		}
		all[name] = bytes.Clone(value)
	}
	return nil
}

// attrValue returns the value of an attribute, wherever it is.
func (f *FS) attrValue(in *inode, a attr, b []byte) ([]byte, error) {
	if a.valueInode == 0 {
		if a.size == 0 {
			return []byte{}, nil
		}
		return a.value(b)
	}
	if f.sb.incompat&incompatEAInode == 0 || a.size > maxAttrValue {
		return nil, damaged("attribute %q of %d bytes in inode %d", a.name, a.size, a.valueInode)
	}
	holder, err := f.inode(uint64(a.valueInode))
	if err != nil {
		return nil, err
	}
	holder.size |= int64(le32(holder.raw, 0x6C)) << 32
	if !holder.has(flagEAInode) || holder.kind() != typeRegular || holder.size != int64(a.size) {
		return nil, holder.damaged("it does not hold the attribute %q of %d bytes", a.name, a.size)
	}
	file, err := f.data(holder)
	if err != nil {
		return nil, err
	}
	value := make([]byte, a.size)
	if n, err := file.ReadAt(value, 0); n < len(value) {
		return nil, err
	}
	// The time of last access holds the checksum; Lustre put the owner into the time of change
	// instead.
	if sum := crc32c(f.sb.csumSeed, value); sum != le32(holder.raw, 8) && !in.ownsValue(holder) {
		return nil, holder.damaged("checksum of attribute %q does not match", a.name)
	}
	return value, nil
}

// ownsValue tells whether an inode with a value says that it belongs to in, as Lustre made them.
func (in *inode) ownsValue(holder *inode) bool {
	return uint64(le32(holder.raw, 0x10)) == in.number && le32(holder.raw, 0x64) == le32(in.raw, 0x64)
}
