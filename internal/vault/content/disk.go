package content

import (
	"context"
	"fmt"
	"io"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Disk reads a stored disk. It is safe for concurrent use.
type Disk struct {
	s      *Source
	root   chunk.ID
	size   int64 // bytes
	chunks int64
	leaves leafCache
}

// Disk returns the disk of size bytes whose tree has the given root.
func (s *Source) Disk(root string, size int64) (*Disk, error) {
	id, err := chunk.ParseID(root)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	if size < 0 {
		return nil, fmt.Errorf("open disk: it has %d bytes", size)
	}
	cs := int64(s.p.ChunkSize)
	return &Disk{s: s, root: id, size: size, chunks: (size + cs - 1) / cs}, nil
}

// CachedDisk is Disk for many small reads: it keeps leaves of the tree at hand, so that Chunk,
// ReadAt and Status do not descend anew each time.
func (s *Source) CachedDisk(root string, size int64) (*Disk, error) {
	d, err := s.Disk(root, size)
	if err != nil {
		return nil, err
	}
	d.leaves = newLeafCache(d.chunks)
	return d, nil
}

// Size returns the disk's size in bytes.
func (d *Disk) Size() int64 { return d.size }

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	ctx := context.Background()
	cs := d.ChunkSize()
	buf := make([]byte, cs)
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= d.size {
			return done, io.EOF
		}
		n := int(min(cs-at%cs, int64(len(p)-done), d.size-at))
		if err := d.readPart(ctx, p[done:done+n], at, buf); err != nil {
			return done, fmt.Errorf("read disk at offset %d: %w", at, err)
		}
		done += n
	}
	return done, nil
}

// readPart fills p, which lies within one chunk, from offset off of the disk. buf has room for a
// chunk.
func (d *Disk) readPart(ctx context.Context, p []byte, off int64, buf []byte) error {
	cs := d.ChunkSize()
	id, err := d.Chunk(ctx, off/cs)
	if err != nil {
		return err
	}
	if id.IsHole() {
		clear(p)
		return nil
	}
	plain, err := d.s.Chunk(ctx, id, buf)
	if err != nil {
		return err
	}
	if off%cs+int64(len(p)) > int64(len(plain)) {
		return wrongSize(id, uint32(len(plain)))
	}
	copy(p, plain[off%cs:])
	return nil
}

// Extents returns the ranges that are not holes, in whole chunks clipped at the disk's end.
func (d *Disk) Extents(ctx context.Context) (extent.Set, error) {
	var out extent.Set
	cs := d.ChunkSize()
	err := tree.Walk(ctx, d.s, d.root, d.chunks, func(r tree.Run) error {
		for i := range r.Node.Slots {
			if !r.Node.Slots[i].IsHole() {
				out = out.Append(d.clip((r.First + int64(i)) * cs))
			}
		}
		return nil
	})
	return out, err
}

// clip returns the chunk at offset off, as far as it lies within the disk.
func (d *Disk) clip(off int64) extent.Extent {
	return extent.Extent{Off: off, Len: min(d.ChunkSize(), d.size-off)}
}

// Diff returns the ranges in which two disks differ, in whole chunks. The disks may be of different
// sizes: what only the larger one has differs where it is not a hole.
func (s *Source) Diff(ctx context.Context, rootA string, sizeA int64, rootB string, sizeB int64) (extent.Set, error) {
	a, err := s.Disk(rootA, sizeA)
	if err != nil {
		return nil, err
	}
	b, err := s.Disk(rootB, sizeB)
	if err != nil {
		return nil, err
	}
	var out extent.Set
	cs := int64(s.p.ChunkSize)
	err = tree.Diff(ctx, s, a.root, a.chunks, b.root, b.chunks, func(first, count int64) error {
		out = out.Append(extent.Extent{Off: first * cs, Len: min(count*cs, max(sizeA, sizeB)-first*cs)})
		return nil
	})
	return out, err
}
