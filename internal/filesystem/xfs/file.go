package xfs

import (
	"fmt"
	"io"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// file is the data of a regular file. Nothing of it changes after Open.
type file struct {
	fs   *FS
	num  uint64
	size int64
	list []mapping
}

// Open implements [filesystem.FS].
func (f *FS) Open(id filesystem.ID) (filesystem.File, error) {
	ino, err := f.inode(uint64(id))
	if err != nil {
		return nil, err
	}
	if !ino.isRegular() {
		return nil, fmt.Errorf("open inode %d: not a regular file", id)
	}
	if ino.realtime {
		return nil, fmt.Errorf("open inode %d: %w", id, unsupported("a file on a real-time device"))
	}
	list, err := f.dataMap(ino)
	if err != nil {
		return nil, fmt.Errorf("open inode %d: %w", id, err)
	}
	return &file{fs: f, num: ino.num, size: int64(ino.size), list: list}, nil
}

// Size implements [filesystem.File].
func (f *file) Size() int64 { return f.size }

// Extents implements [filesystem.File].
func (f *file) Extents() (extent.Set, error) {
	var set extent.Set
	for _, m := range f.list {
		off, end := f.bytes(m)
		if off >= f.size {
			break
		}
		if !m.unwritten {
			set = set.Append(extent.Extent{Off: off, Len: min(end, f.size) - off})
		}
	}
	return set, nil
}

// bytes returns the range of the file that m covers, clipped at the largest size there can be.
func (f *file) bytes(m mapping) (off, end int64) {
	limit := uint64(1<<63-1) >> f.fs.sb.blockLog
	return int64(min(m.off, limit)) << f.fs.sb.blockLog, int64(min(m.end(), limit)) << f.fs.sb.blockLog
}

// ReadAt implements [filesystem.File].
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read inode %d at %d: negative offset", f.num, off)
	}
	if off >= f.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > f.size-off
	if short {
		p = p[:f.size-off]
	}
	n, err := f.read(p, off)
	if err != nil {
		return n, fmt.Errorf("read inode %d at %d: %w", f.num, off+int64(n), err)
	}
	if short {
		return n, io.EOF
	}
	return n, nil
}

// read fills p from off, which is within the file, and returns how much of it is right.
func (f *file) read(p []byte, off int64) (int, error) {
	done := 0
	for i := find(f.list, uint64(off)>>f.fs.sb.blockLog); done < len(p); i++ {
		at, rest := off+int64(done), p[done:]
		if i >= len(f.list) {
			clear(rest)
			return len(p), nil
		}
		start, end := f.bytes(f.list[i])
		if start > at {
			hole := min(int64(len(rest)), start-at)
			clear(rest[:hole])
			done, at, rest = done+int(hole), at+hole, rest[hole:]
		}
		if len(rest) == 0 {
			break
		}
		part := rest[:min(int64(len(rest)), end-at)]
		if f.list[i].unwritten {
			clear(part)
		} else if err := f.fs.dev.read(part, f.fs.sb.offset(f.list[i].block)+at-start); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}
