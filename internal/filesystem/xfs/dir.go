package xfs

import (
	"fmt"
	"io/fs"
	"iter"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	dirLeafOffset = 32 << 30 // of a directory's data fork, where its index begins
	dirUnusedTag  = 0xffff
	dirHeader4    = 16
	dirHeader5    = 64
)

// entry is a name in a directory. kind is as it is stored, 0 if it is not.
type entry struct {
	name string
	ino  uint64
	kind byte
}

// kinds are the types of entries, by the number that is stored.
var kinds = [...]fs.FileMode{
	1: 0, 2: fs.ModeDir, 3: fs.ModeDevice | fs.ModeCharDevice, 4: fs.ModeDevice,
	5: fs.ModeNamedPipe, 6: fs.ModeSocket, 7: fs.ModeSymlink, 8: fs.ModeDevice | fs.ModeCharDevice,
}

// entryType returns what an entry names, from the inode where the entry does not say. What cannot
// be told is irregular.
func (f *FS) entryType(e entry) fs.FileMode {
	if e.kind != 0 && int(e.kind) < len(kinds) {
		return kinds[e.kind]
	}
	ino, err := f.inode(e.ino)
	if err != nil {
		return fs.ModeIrregular
	}
	return fileMode(ino.mode).Type()
}

// entries yields what a directory holds, without . and .. ; after an error it ends.
func (f *FS) entries(num uint64) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		ino, err := f.inode(num)
		switch {
		case err != nil:
		case !ino.isDir():
			err = fmt.Errorf("inode %d is not a directory", num)
		case ino.format == formatLocal:
			err = f.shortEntries(ino, yield)
		default:
			err = f.blockEntries(ino, yield)
		}
		if err != nil && err != errStop {
			yield(entry{}, err)
		}
	}
}

// errStop ends a walk because its caller wants no more.
var errStop = fmt.Errorf("stop")

func (f *FS) give(e entry, yield func(entry, error) bool) error {
	if e.name == "." || e.name == ".." {
		return nil
	}
	if e.name == "" || strings.ContainsAny(e.name, "/\x00") {
		return corrupt("%q as a name", e.name)
	}
	if !f.sb.validBlocks(e.ino>>f.sb.inodesPerBlockLog, 1) {
		return corrupt("%q names inode %d, which is outside the file system", e.name, e.ino)
	}
	if !yield(e, nil) {
		return errStop
	}
	return nil
}

// shortEntries yields the entries of a directory that is within its inode.
func (f *FS) shortEntries(ino *inode, yield func(entry, error) bool) error {
	if ino.size > uint64(len(ino.data)) || ino.size < 6 {
		return corrupt("directory of %d bytes in a fork of %d", ino.size, len(ino.data))
	}
	b := ino.data[:ino.size]
	count, width := int(b[0]), 4
	if b[1] != 0 {
		width = 8
	}
	tail := width
	if f.sb.fileType {
		tail++
	}
	b = b[min(2+width, len(b)):]
	for range count {
		if len(b) < 3 || len(b) < 3+int(b[0])+tail {
			return corrupt("directory ends within an entry")
		}
		n := int(b[0])
		e := entry{name: string(b[3 : 3+n])}
		rest := b[3+n:]
		if f.sb.fileType {
			e.kind, rest = rest[0], rest[1:]
		}
		if width == 8 {
			e.ino = be.Uint64(rest)
		} else {
			e.ino = uint64(be.Uint32(rest))
		}
		b = rest[width:]
		if err := f.give(e, yield); err != nil {
			return err
		}
	}
	return nil
}

// blockEntries yields the entries of a directory that has blocks.
func (f *FS) blockEntries(ino *inode, yield func(entry, error) bool) error {
	list, err := f.dataMap(ino)
	if err != nil {
		return err
	}
	per := uint64(1) << f.sb.dirBlockLog
	limit := uint64(dirLeafOffset) >> f.sb.blockLog
	next, seen := uint64(0), filesystem.BlockSet{}
	for _, m := range list {
		for next = max(next, m.off&^(per-1)); next < min(m.end(), limit); next += per {
			b, off, replayed, err := f.readBlocks(list, next, per)
			if err != nil {
				return err
			}
			if !seen.Add(uint64(off) >> f.sb.blockLog) {
				return corrupt("block %d of the directory is one that it has had before", next)
			}
			if err := f.oneBlock(ino, b, off, replayed, yield); err != nil {
				return err
			}
		}
	}
	if next == 0 {
		return corrupt("directory without blocks")
	}
	return nil
}

// oneBlock yields the entries of a block, which may be the only one and then ends with its index.
func (f *FS) oneBlock(ino *inode, b []byte, off int64, replayed bool, yield func(entry, error) bool) error {
	l, end := &dirDataLayout, len(b)
	if f.is(&dirBlockLayout, b) {
		l = &dirBlockLayout
		leaves := int64(be.Uint32(b[len(b)-8:]))
		if leaves > int64(len(b)-8)/8 {
			return corrupt("index of %d entries in a directory block of %d bytes", leaves, len(b))
		}
		end -= 8 + int(leaves)*8
	}
	if err := f.verify(l, b, off, ino.num); err != nil {
		return err
	}
	if err := f.sum(l, b, off, replayed); err != nil {
		return err
	}
	at := dirHeader4
	if f.sb.version == 5 {
		at = dirHeader5
	}
	for at < end {
		n, err := f.dataEntry(b[:end], at, yield)
		if err != nil {
			return err
		}
		at += n
	}
	return nil
}

// dataEntry yields the entry at a place of a directory block, if it is in use, and returns how long
// it is.
func (f *FS) dataEntry(b []byte, at int, yield func(entry, error) bool) (int, error) {
	if len(b)-at < 8 {
		return 0, corrupt("directory block ends within an entry")
	}
	if be.Uint16(b[at:]) == dirUnusedTag {
		n := int(be.Uint16(b[at+2:]))
		if n == 0 || n%8 != 0 || n > len(b)-at {
			return 0, corrupt("unused %d bytes at byte %d of a directory block", n, at)
		}
		return n, nil
	}
	if len(b)-at < 16 {
		return 0, corrupt("directory block ends within an entry")
	}
	e := entry{ino: be.Uint64(b[at:])}
	name := int(b[at+8])
	n := 8 + 1 + name + 2
	if f.sb.fileType {
		n++
	}
	n = (n + 7) &^ 7
	if n > len(b)-at || int(be.Uint16(b[at+n-2:])) != at {
		return 0, corrupt("bad entry at byte %d of a directory block", at)
	}
	e.name = string(b[at+9 : at+9+name])
	if f.sb.fileType {
		e.kind = b[at+9+name]
	}
	return n, f.give(e, yield)
}

// foldName returns a name as ascii-ci compares it: byte by byte, in Latin-1.
func foldName(name string) string {
	b := []byte(name)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' || c >= 0xc0 && c <= 0xd6 || c >= 0xd8 && c <= 0xde {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
