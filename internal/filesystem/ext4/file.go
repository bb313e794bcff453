package ext4

import (
	"fmt"
	"io"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// Open opens the data of a regular file.
func (f *FS) Open(id filesystem.ID) (filesystem.File, error) {
	in, err := f.named(id)
	if err != nil {
		return nil, err
	}
	if in.kind() != typeRegular {
		return nil, fmt.Errorf("open inode %d: it is not a regular file", id)
	}
	return f.data(in)
}

// data opens what an inode of any kind holds.
func (f *FS) data(in *inode) (filesystem.File, error) {
	if in.has(flagEncrypted) {
		return nil, in.wrap(unsupported("reading an encrypted file"))
	}
	if in.has(flagInlineData) {
		head, tail, err := f.inlineData(in)
		if err != nil {
			return nil, err
		}
		return &inlineFile{size: in.size, data: append(append([]byte(nil), head...), tail...)}, nil
	}
	if reach := f.reach(in); f.blocksOf(in.size) > reach {
		return nil, in.damaged("size %d is more than its mapping reaches", in.size)
	}
	return &mappedFile{blockMap: blockMap{fs: f, in: in}}, nil
}

// reach returns how many blocks the mapping of an inode can have.
func (f *FS) reach(in *inode) uint64 {
	if in.has(flagExtents) {
		return maxFileBlocks
	}
	n := uint64(f.sb.blockSize) / 4
	return directBlocks + n + n*n + n*n*n
}

// mappedFile is a file whose data is in blocks.
type mappedFile struct{ blockMap }

func (m *mappedFile) Size() int64 { return m.in.size }

func (m *mappedFile) ReadAt(p []byte, off int64) (int, error) {
	p, eof, err := clip(p, off, m.in.size)
	if err != nil {
		return 0, err
	}
	bs := m.fs.sb.blockSize
	done := 0
	for done < len(p) {
		pos := off + int64(done)
		r, err := m.at(uint64(pos / bs))
		if err != nil {
			return done, err
		}
		skip := pos % bs
		part := p[done:]
		part = part[:min(int64(len(part)), int64(r.count)*bs-skip)]
		if r.hole {
			clear(part)
		} else if err := m.fs.disk.readAt(part, int64(r.phys)*bs+skip); err != nil {
			return done, fmt.Errorf("read inode %d at byte %d: %w", m.in.number, pos, err)
		}
		done += len(part)
	}
	return done, eof
}

// clip cuts what is asked for at the end of a file, and returns io.EOF as eof where something is
// cut off.
func clip(p []byte, off, size int64) (cut []byte, eof, err error) {
	switch {
	case off < 0:
		return nil, nil, fmt.Errorf("read at byte %d: negative offset", off)
	case off >= size:
		return nil, io.EOF, nil
	case int64(len(p)) > size-off:
		return p[:size-off], io.EOF, nil
	}
	return p, nil, nil
}

func (m *mappedFile) Extents() (extent.Set, error) {
	var set extent.Set
	bs, stored := m.fs.sb.blockSize, uint64(0)
	for r, err := range m.runs(m.fs.blocksOf(m.in.size)) {
		if err != nil {
			return nil, err
		}
		if r.hole {
			continue
		}
		// Two blocks of files are never one, but where it was made so for all to be read only.
		if stored += r.count; stored > m.fs.sb.blocks && m.fs.sb.roCompat&roCompatSharedBlocks == 0 {
			return nil, m.in.damaged("it has more blocks than the file system")
		}
		off := int64(r.start) * bs
		set = set.Append(extent.Extent{Off: off, Len: min(int64(r.count)*bs, m.in.size-off)})
	}
	return set, nil
}

// inlineFile is a file that its inode holds itself. What lies behind the data and before the size
// was never written.
type inlineFile struct {
	data []byte
	size int64
}

func (i *inlineFile) Size() int64 { return i.size }

func (i *inlineFile) ReadAt(p []byte, off int64) (int, error) {
	p, eof, err := clip(p, off, i.size)
	if err != nil {
		return 0, err
	}
	n := 0
	if off < int64(len(i.data)) {
		n = copy(p, i.data[off:])
	}
	clear(p[n:])
	return len(p), eof
}

func (i *inlineFile) Extents() (extent.Set, error) {
	return extent.Of(extent.Extent{Len: min(i.size, int64(len(i.data)))}), nil
}
