package ext4

import (
	"fmt"
	"io/fs"
	"iter"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	direntHeader = 8
	direntDir    = 2
)

// direntKinds are the type bits for the types in directory entries; 0 means that the inode knows.
var direntKinds = []uint16{0, typeRegular, typeDir, typeChar, typeBlock, typeFIFO, typeSocket, typeSymlink}

// dirent is one entry as it is stored, . and .. too.
type dirent struct {
	name  string
	inode uint32
	kind  byte
}

func (d dirent) isDot() bool { return d.name == "." || d.name == ".." }

// ReadDir yields the entries of a directory in the order they are stored.
func (f *FS) ReadDir(id filesystem.ID) iter.Seq2[filesystem.Entry, error] {
	return func(yield func(filesystem.Entry, error) bool) {
		in, err := f.directory(id)
		if err != nil {
			yield(filesystem.Entry{}, err)
			return
		}
		for d, err := range f.dirents(in) {
			var e filesystem.Entry
			if err == nil {
				if d.isDot() {
					continue
				}
				e, err = f.entry(d)
			}
			if err != nil {
				yield(filesystem.Entry{}, fmt.Errorf("read directory: %w", in.wrap(err)))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// directory returns the inode of a directory whose names can be read.
func (f *FS) directory(id filesystem.ID) (*inode, error) {
	in, err := f.named(id)
	if err != nil {
		return nil, err
	}
	if !in.isDir() {
		return nil, fmt.Errorf("read directory: inode %d is not one", id)
	}
	if in.has(flagEncrypted) {
		return nil, in.wrap(unsupported("reading an encrypted directory"))
	}
	return in, nil
}

// entry says what is at a name; the type comes from the inode where the directory does not hold it.
func (f *FS) entry(d dirent) (filesystem.Entry, error) {
	e := filesystem.Entry{Name: d.name, ID: filesystem.ID(d.inode)}
	kind := d.kind
	if f.sb.incompat&incompatFiletype == 0 {
		kind = 0
	}
	if kind > 0 && int(kind) < len(direntKinds) {
		e.Type = kindMode(direntKinds[kind])
		return e, nil
	}
	in, err := f.named(e.ID)
	if err != nil {
		return e, fmt.Errorf("entry %q: %w", d.name, err)
	}
	e.Type = kindMode(in.kind()) & fs.ModeType
	return e, nil
}

// dirents yields all entries of a directory, as fast commits left them.
func (f *FS) dirents(in *inode) iter.Seq2[dirent, error] {
	return func(yield func(dirent, error) bool) {
		f.fast.names(in, func(yield func(dirent, error) bool) {
			if in.has(flagInlineData) {
				f.inlineDir(in, yield)
			} else {
				f.blockDir(in, yield)
			}
		}, yield)
	}
}

// blockDir yields the entries of a directory in blocks, one after the other: a hashed one can be
// read so too.
func (f *FS) blockDir(in *inode, yield func(dirent, error) bool) {
	blocks := f.blocksOf(in.size)
	if blocks > f.sb.blocks || blocks > f.reach(in) || in.size%f.sb.blockSize != 0 {
		yield(dirent{}, damaged("a directory of %d bytes", in.size))
		return
	}
	m := blockMap{fs: f, in: in}
	seen := filesystem.BlockSet{}
	for n := uint64(0); n < blocks; n++ {
		b, err := f.dirBlock(&m, n, seen)
		if err != nil {
			yield(dirent{}, err)
			return
		}
		if !f.direntsOf(in, b, yield) {
			return
		}
	}
}

// dirBlock returns the entries of one block of a directory, its checksum verified. A block that was
// seen in it before is refused: one block of names could be a directory without end.
func (f *FS) dirBlock(m *blockMap, n uint64, seen filesystem.BlockSet) ([]byte, error) {
	r, err := m.at(n)
	if err != nil {
		return nil, err
	}
	if r.hole {
		return nil, damaged("block %d of the directory is missing", n)
	}
	if !seen.Add(r.phys) {
		return nil, damaged("block %d of the directory is one that it has had before", n)
	}
	b, err := f.disk.block(r.phys)
	if err != nil || !f.sb.hasChecksums() {
		return b, err
	}
	return f.verifyDirBlock(m.in, n, b)
}

// direntsOf yields the used entries of one block or inline region. It returns false where the walk
// is over.
func (f *FS) direntsOf(in *inode, b []byte, yield func(dirent, error) bool) bool {
	for at := 0; at < len(b); {
		d, length, err := f.parseDirent(b[at:])
		if err != nil {
			yield(dirent{}, err)
			return false
		}
		at += length
		if d.inode != 0 && !yield(d, nil) {
			return false
		}
	}
	return true
}

// parseDirent decodes the entry that b begins with and returns its length. A name that no mount
// would show is damage: it could lead a caller that writes files by these names somewhere else.
func (f *FS) parseDirent(b []byte) (dirent, int, error) {
	if len(b) < direntHeader {
		return dirent{}, 0, damaged("a directory entry is cut off")
	}
	d := dirent{inode: le32(b, 0), kind: b[7]}
	length, name := f.recordLength(le16(b, 4)), int(b[6])
	if length < direntHeader || length%4 != 0 || length > len(b) || direntHeader+name > length {
		return dirent{}, 0, damaged("a directory entry of %d bytes with a name of %d", length, name)
	}
	if d.inode == 0 {
		return d, length, nil
	}
	d.name = string(b[direntHeader : direntHeader+name])
	if d.name == "" || strings.ContainsAny(d.name, "/\x00") {
		return dirent{}, 0, damaged("a directory entry with the name %q", d.name)
	}
	if uint64(d.inode) > f.sb.inodes {
		return dirent{}, 0, damaged("entry %q is inode %d of %d", d.name, d.inode, f.sb.inodes)
	}
	return d, length, nil
}

// recordLength decodes the length of an entry, which in blocks of 64 KiB does not fit its field.
func (f *FS) recordLength(n uint16) int {
	switch {
	case f.sb.blockSize < chunkSize:
		return int(n)
	case n == 0xFFFF || n == 0:
		return chunkSize
	}
	return int(n)&^3 | int(n&3)<<16
}

// Lookup finds a name in a directory, . and .. too.
func (f *FS) Lookup(dir filesystem.ID, name string) (filesystem.ID, error) {
	in, err := f.directory(dir)
	if err != nil {
		return 0, err
	}
	same, err := f.comparison(in, name)
	if err != nil {
		return 0, err
	}
	for d, err := range f.dirents(in) {
		if err != nil {
			return 0, fmt.Errorf("look up %q: %w", name, in.wrap(err))
		}
		if same(d.name) {
			return filesystem.ID(d.inode), nil
		}
	}
	return 0, fmt.Errorf("look up %q in inode %d: %w", name, dir, filesystem.ErrNotExist)
}
