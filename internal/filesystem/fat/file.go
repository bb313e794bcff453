package fat

import (
	"fmt"
	"io"
	"io/fs"
	"sort"

	"encoding/binary"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// file is the data of a regular file.
type file struct {
	r      io.ReaderAt
	size   int64
	pieces []piece // cover all of it
}

// Open opens the data of a file. A chain of clusters that is shorter than the file is damage.
func (f *FS) Open(id filesystem.ID) (filesystem.File, error) {
	if id == rootID {
		return nil, fmt.Errorf("FAT: the root directory is no file: %w", fs.ErrInvalid)
	}
	r, err := f.record(id)
	if err != nil {
		return nil, err
	}
	if r.isDir() {
		return nil, fmt.Errorf("FAT: file %d is a directory: %w", id, fs.ErrInvalid)
	}
	out := &file{r: f.r, size: int64(binary.LittleEndian.Uint32(r.raw[28:]))}
	out.pieces, err = f.chain(r.cluster(f.bits), out.size, true)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Size returns the length of the file.
func (f *file) Size() int64 { return f.size }

// Extents returns the whole file: FAT has no holes.
func (f *file) Extents() (extent.Set, error) {
	if f.size == 0 {
		return nil, nil
	}
	return extent.Set{{Off: 0, Len: f.size}}, nil
}

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("FAT: read at offset %d: %w", off, fs.ErrInvalid)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= f.size {
			return done, io.EOF
		}
		i := sort.Search(len(f.pieces), func(i int) bool { return f.pieces[i].file+f.pieces[i].size > at })
		piece := f.pieces[i]
		part := p[done:min(int64(len(p)), int64(done)+piece.file+piece.size-at)]
		n, err := f.r.ReadAt(part, piece.disk+at-piece.file)
		done += n
		if n < len(part) {
			return done, fmt.Errorf("read %d bytes at offset %d: %w", len(part), at, unexpected(err))
		}
	}
	return done, nil
}
