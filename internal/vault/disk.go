package vault

import (
	"context"
	"fmt"
	"io"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Disk reads a stored disk. It is safe for concurrent use. One of [Vault.OpenDisk] takes a lease for each call; one of [Reader.Disk] reads
// under the lease of its Reader, and is made for many small reads.
type Disk struct {
	v      *Vault
	r      *Reader // nil for one of OpenDisk
	root   chunk.ID
	size   int64 // bytes
	chunks int64
	leaves leafCache
}

// OpenDisk returns the disk of size bytes whose tree has the given root.
func (v *Vault) OpenDisk(root string, size int64) (*Disk, error) {
	id, err := chunk.ParseID(root)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	cs := int64(v.conf.ChunkSize)
	return &Disk{v: v, root: id, size: size, chunks: (size + cs - 1) / cs}, nil
}

// Size returns the disk's size in bytes.
func (d *Disk) Size() int64 { return d.size }

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	ctx := context.Background()
	release, err := d.lease(ctx)
	if err != nil {
		return 0, err
	}
	defer release()
	cs := int64(d.v.conf.ChunkSize)
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

// readPart fills p, which lies within one chunk, from offset off of the disk. buf has room for a chunk.
func (d *Disk) readPart(ctx context.Context, p []byte, off int64, buf []byte) error {
	cs := int64(d.v.conf.ChunkSize)
	id, err := tree.Lookup(ctx, d.nodes(), d.root, d.chunks, off/cs)
	if err != nil {
		return err
	}
	if id.IsHole() {
		clear(p)
		return nil
	}
	plain, err := d.readAny(ctx, id, buf)
	if err != nil {
		return err
	}
	copy(p, plain[off%cs:])
	return nil
}

// lease keeps what the disk needs from being deleted until release is called.
func (d *Disk) lease(ctx context.Context) (release func(), err error) {
	if d.r != nil {
		return func() {}, nil
	}
	return d.v.readLease(ctx)
}

// nodes returns where the disk's tree is read from.
func (d *Disk) nodes() tree.Reader {
	if d.r != nil {
		return d.r
	}
	return d.v
}

// readAny is Vault.readAny, or Reader.readAny for a disk that has one.
func (d *Disk) readAny(ctx context.Context, id chunk.ID, buf []byte) ([]byte, error) {
	if d.r != nil {
		return d.r.readAny(ctx, id, buf)
	}
	return d.v.readAny(ctx, id, buf)
}

// find returns a place of a chunk.
func (d *Disk) find(ctx context.Context, id chunk.ID) (index.Loc, bool, error) {
	if d.r != nil {
		return d.r.find(ctx, id)
	}
	return d.v.find(ctx, id)
}

// Extents returns the ranges that are not holes, in whole chunks clipped at the disk's end.
func (d *Disk) Extents(ctx context.Context) (extent.Set, error) {
	release, err := d.lease(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	var out extent.Set
	cs := int64(d.v.conf.ChunkSize)
	err = tree.Walk(ctx, d.nodes(), d.root, d.chunks, func(r tree.Run) error {
		for i := range r.Node.Slots {
			if !r.Node.Slots[i].IsHole() {
				out = out.Append(d.clip((r.First + int64(i)) * cs))
			}
		}
		return nil
	})
	return out, err
}

func (d *Disk) clip(off int64) extent.Extent {
	return extent.Extent{Off: off, Len: min(int64(d.v.conf.ChunkSize), d.size-off)}
}

// Diff returns the ranges in which two disks differ, in whole chunks. The disks may be of different sizes: what only the larger one has differs
// where it is not a hole.
func (v *Vault) Diff(ctx context.Context, rootA string, sizeA int64, rootB string, sizeB int64) (extent.Set, error) {
	a, err := v.OpenDisk(rootA, sizeA)
	if err != nil {
		return nil, err
	}
	b, err := v.OpenDisk(rootB, sizeB)
	if err != nil {
		return nil, err
	}
	release, err := v.readLease(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	var out extent.Set
	cs := int64(v.conf.ChunkSize)
	err = tree.Diff(ctx, v, a.root, a.chunks, b.root, b.chunks, func(first, count int64) error {
		out = out.Append(extent.Extent{Off: first * cs, Len: min(count*cs, max(sizeA, sizeB)-first*cs)})
		return nil
	})
	return out, err
}
