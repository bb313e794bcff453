package xfs

import (
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	attrLocal      = 1 << 0 // the value is beside the name
	attrRoot       = 1 << 1
	attrSecure     = 1 << 2
	attrParent     = 1 << 3
	attrIncomplete = 1 << 7
	maxAttrValue   = 64 << 10
	maxAttrTotal   = 64 << 20 // bytes of all attributes of an inode
)

// attribute is one as it is stored. Its name is kept with the bits that say of which kind it is.
type attribute struct {
	flags byte
	name  string
}

func (a attribute) key() attribute {
	return attribute{a.flags & (attrRoot | attrSecure | attrParent), a.name}
}

// attrs collects the attributes of one inode.
type attrs struct {
	fs    *FS
	ino   *inode
	found map[attribute][]byte
	total int
}

// Xattrs implements [filesystem.FS].
func (f *FS) Xattrs(id filesystem.ID) (map[string][]byte, error) {
	ino, err := f.inode(uint64(id))
	if err != nil {
		return nil, err
	}
	a := attrs{fs: f, ino: ino, found: map[attribute][]byte{}}
	if err := a.collect(); err != nil {
		return nil, fmt.Errorf("read attributes of inode %d: %w", id, err)
	}
	f.fixes.reattr(ino.num, a.found)
	named := make(map[string][]byte, len(a.found))
	for k, v := range a.found {
		name, value, err := kernelAttr(k, v)
		if err != nil {
			return nil, fmt.Errorf("read attribute %q of inode %d: %w", k.name, id, err)
		}
		named[name] = value
	}
	return named, nil
}

func (a *attrs) collect() error {
	if a.ino.attrs == nil {
		return nil
	}
	switch a.ino.attrFormat {
	case formatLocal:
		return a.short(a.ino.attrs)
	case formatExtents, formatBtree:
		return a.tree()
	}
	return corrupt("attribute format %d", a.ino.attrFormat)
}

func (a *attrs) add(flags byte, name, value []byte) error {
	if flags&(attrIncomplete|attrParent) != 0 {
		return nil
	}
	k := attribute{flags, string(name)}.key()
	if _, twice := a.found[k]; twice || len(name) == 0 {
		return corrupt("attribute %q is there twice or has no name", name)
	}
	a.total += len(name) + len(value)
	if a.total > maxAttrTotal {
		return unsupported("more than %d MiB of attributes", maxAttrTotal>>20)
	}
	a.found[k] = value
	return nil
}

// short reads attributes that are within the inode.
func (a *attrs) short(b []byte) error {
	if len(b) < 4 || int(be.Uint16(b)) > len(b) || be.Uint16(b) < 4 {
		return corrupt("attributes in a fork of %d bytes", len(b))
	}
	count := int(b[2])
	b = b[4:be.Uint16(b)]
	for range count {
		if len(b) < 3 || len(b) < 3+int(b[0])+int(b[1]) {
			return corrupt("the fork ends within an attribute")
		}
		name := b[3 : 3+int(b[0])]
		value := b[3+len(name):][:b[1]]
		if err := a.add(b[2], name, value); err != nil {
			return err
		}
		b = b[3+len(name)+len(value):]
	}
	return nil
}

// tree reads attributes that have blocks: it goes down to the first leaf and along the leaves.
func (a *attrs) tree() error {
	list, err := a.fs.attrMap(a.ino)
	if err != nil || len(list) == 0 {
		return err
	}
	limit := uint64(0)
	for _, m := range list {
		limit += m.count
	}
	block, seen := uint64(0), map[uint64]bool{}
	for level := -1; limit > 0 && !seen[block]; limit-- {
		seen[block] = true
		b, off, replayed, err := a.fs.readBlocks(list, block, 1)
		if err != nil {
			return err
		}
		if a.fs.is(&attrNodeLayout, b) {
			if block, level, err = a.down(b, off, replayed, level); err != nil {
				return err
			}
			continue
		}
		if level > 1 {
			return corrupt("attribute leaf below level %d", level)
		}
		level = 1 // what follows is leaves only
		if err := a.check(&attrLeafLayout, b, off, replayed); err != nil {
			return err
		}
		if err := a.leaf(b, list); err != nil {
			return err
		}
		if block = uint64(be.Uint32(b)); block == 0 {
			return nil
		}
	}
	return corrupt("attribute blocks go round in a circle")
}

func (a *attrs) check(l *layout, b []byte, off int64, replayed bool) error {
	if err := a.fs.verify(l, b, off, a.ino.num); err != nil {
		return err
	}
	return a.fs.sum(l, b, off, replayed)
}

// down returns the first child of a node, and the node's level, which must be one less than that
// above.
func (a *attrs) down(b []byte, off int64, replayed bool, above int) (uint64, int, error) {
	if err := a.check(&attrNodeLayout, b, off, replayed); err != nil {
		return 0, 0, err
	}
	at, header := 12, 16
	if a.fs.sb.version == 5 {
		at, header = 56, 64
	}
	count, level := int(be.Uint16(b[at:])), int(be.Uint16(b[at+2:]))
	if count == 0 || level == 0 || above >= 0 && level != above-1 {
		return 0, 0, corrupt("attribute node of level %d with %d entries below level %d", level, count, above)
	}
	return uint64(be.Uint32(b[header+4:])), level, nil
}

// leaf reads the attributes of one block.
func (a *attrs) leaf(b []byte, list []mapping) error {
	at, header := 12, 32
	if a.fs.sb.version == 5 {
		at, header = 56, 80
	}
	count := int(be.Uint16(b[at:]))
	if header+count*8 > len(b) {
		return corrupt("%d attributes in a block of %d bytes", count, len(b))
	}
	for i := range count {
		e := b[header+i*8:][:8]
		pos, flags := int(be.Uint16(e[4:])), e[6]
		if flags&(attrIncomplete|attrParent) != 0 {
			continue
		}
		if pos < header+count*8 || pos+4 > len(b) {
			return corrupt("attribute at byte %d of a block of %d", pos, len(b))
		}
		read := a.remote
		if flags&attrLocal != 0 {
			read = a.local
		}
		if err := read(flags, b[pos:], list); err != nil {
			return err
		}
	}
	return nil
}

// local reads a name with its value beside it.
func (a *attrs) local(flags byte, b []byte, _ []mapping) error {
	size, name := int(be.Uint16(b)), int(b[2])
	if 3+name+size > len(b) {
		return corrupt("attribute of %d and %d bytes goes over the end of its block", name, size)
	}
	return a.add(flags, b[3:3+name], b[3+name:][:size])
}

// remote reads a name whose value has blocks of its own.
func (a *attrs) remote(flags byte, b []byte, list []mapping) error {
	if len(b) < 9 {
		return corrupt("attribute goes over the end of its block")
	}
	block, size, name := uint64(be.Uint32(b)), int64(be.Uint32(b[4:])), int(b[8])
	if 9+name > len(b) {
		return corrupt("attribute name of %d bytes goes over the end of its block", name)
	}
	if size > maxAttrValue || block == 0 {
		return corrupt("attribute value of %d bytes at block %d", size, block)
	}
	value, err := a.value(list, block, int(size))
	if err != nil {
		return fmt.Errorf("value of %q: %w", b[9:9+name], err)
	}
	return a.add(flags, b[9:9+name], value)
}

func (a *attrs) value(list []mapping, block uint64, size int) ([]byte, error) {
	value := make([]byte, 0, size)
	for ; len(value) < size; block++ {
		b, off, replayed, err := a.fs.readBlocks(list, block, 1)
		if err != nil {
			return nil, err
		}
		if a.fs.sb.version == 5 {
			if err := a.check(&attrValueLayout, b, off, replayed); err != nil {
				return nil, err
			}
			at, n := int64(be.Uint32(b[4:])), int64(be.Uint32(b[8:]))
			if at != int64(len(value)) || n != int64(min(size-len(value), len(b)-remoteHeader)) {
				return nil, corrupt("%d bytes from %d where %d are there", n, at, len(value))
			}
			b = b[remoteHeader:][:n]
		}
		value = append(value, b[:min(len(b), size-len(value))]...)
	}
	return value, nil
}
