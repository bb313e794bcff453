package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/holdfast-vm/holdfast/internal/nbd"
	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// batchBytes is how much of one request is fetched at once: enough for neighbours to be fetched
// together, and a bound on memory.
const batchBytes = 4 << 20

// tryBytes is the longest read that is answered at once from the cache: longer ones are worth a
// goroutine of their own.
const tryBytes = 256 << 10

// Disk serves a stored disk, read-only. It is an [nbd.Backend] and safe for concurrent use.
type Disk struct {
	disk   *vault.Disk
	reader *vault.Reader
	cache  *Cache
	life   context.Context // of the server: a fetch that several wait for does not end with one of them
	bg     *background
	ahead  *readAhead
	rec    *recorder // nil when nothing is recorded
	stats  *counters
	size   int64
	chunk  int64 // bytes
}

var _ nbd.TryReader = (*Disk)(nil)

// counters count what was read, in bytes and chunks.
type counters struct {
	bytes, hits, misses, fetched, ahead atomic.Int64
}

// Size implements nbd.Backend.
func (d *Disk) Size() int64 { return d.size }

// TryReadAt implements nbd.TryReader.
func (d *Disk) TryReadAt(p []byte, off int64) bool {
	if len(p) > tryBytes {
		return false
	}
	for done := int64(0); done < int64(len(p)); {
		at, skip := (off+done)/d.chunk, (off+done)%d.chunk
		part := p[done:min(done+d.chunk-skip, int64(len(p)))]
		id, ok := d.disk.CachedChunk(at)
		switch {
		case !ok:
			return false
		case id.IsHole():
			clear(part)
		case !d.cache.read(&id, part, skip):
			return false
		}
		done += int64(len(part))
	}
	d.stats.hits.Add(1)
	d.seen(off, int64(len(p)))
	return true
}

// seen counts a read that will be answered, looks for a stream that it belongs to, and records it.
func (d *Disk) seen(off, n int64) {
	d.stats.bytes.Add(n)
	if d.rec != nil {
		d.rec.note(off, n)
	}
	if from, to := d.ahead.seen(off, n); from < to {
		d.fetchAhead(from, to)
	}
}

// part is a piece of a read within one chunk that is not in the cache.
type part struct {
	id  chunk.ID
	p   []byte
	off int64 // in the chunk
}

// ReadAt implements nbd.Backend. Every byte has been authenticated.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.seen(off, int64(len(p)))
	for done := int64(0); done < int64(len(p)); {
		n := min(int64(len(p))-done, batchBytes-(off+done)%d.chunk)
		if err := d.readBatch(ctx, p[done:done+n], off+done); err != nil {
			return fmt.Errorf("read %d bytes at offset %d: %w", len(p), off, err)
		}
		done += n
	}
	return nil
}

func (d *Disk) readBatch(ctx context.Context, p []byte, off int64) error {
	var missing []part
	for done := int64(0); done < int64(len(p)); {
		at, skip := (off+done)/d.chunk, (off+done)%d.chunk
		piece := p[done:min(done+d.chunk-skip, int64(len(p)))]
		id, err := d.disk.Chunk(ctx, at)
		switch {
		case err != nil:
			return err
		case id.IsHole():
			clear(piece)
		case !d.cache.read(&id, piece, skip):
			missing = append(missing, part{id, piece, skip})
		}
		done += int64(len(piece))
	}
	if len(missing) == 0 {
		d.stats.hits.Add(1)
		return nil
	}
	d.stats.misses.Add(1)
	return d.fetch(ctx, missing)
}

// fetch reads parts whose chunks are not in the cache. Those that others are fetching are waited
// for.
func (d *Disk) fetch(ctx context.Context, parts []part) error {
	var wanted []vault.Wanted
	var others []*flight
	var failed atomic.Pointer[error]
	rest := parts[:0:0]
	for _, pt := range parts {
		f, mine := d.cache.claim(&pt.id, d.chunk)
		if !mine {
			rest = append(rest, pt)
			others = append(others, f)
			continue
		}
		wanted = append(wanted, vault.Wanted{ID: pt.id, Plain: f.plain, Done: func(err error) {
			if err == nil {
				copy(pt.p, f.plain[pt.off:])
			} else {
				failed.CompareAndSwap(nil, &err)
			}
			d.cache.land(f, err)
		}})
	}
	d.stats.fetched.Add(int64(len(wanted)) * d.chunk)
	if len(wanted) > 0 {
		d.reader.ReadChunks(d.life, wanted)
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	for i, pt := range rest {
		if err := d.await(ctx, others[i], pt); err != nil {
			return err
		}
	}
	return nil
}

// await waits for a chunk that another read is fetching and copies from it. If it has made room
// again by then, it is read past the cache.
func (d *Disk) await(ctx context.Context, f *flight, pt part) error {
	if f != nil {
		select {
		case <-f.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if f.err != nil {
			return f.err
		}
	}
	if d.cache.read(&pt.id, pt.p, pt.off) {
		return nil
	}
	plain := make([]byte, d.chunk)
	var err error
	d.reader.ReadChunks(d.life, []vault.Wanted{{ID: pt.id, Plain: plain, Done: func(e error) { err = e }}})
	copy(pt.p, plain[pt.off:])
	return err
}

// Status implements nbd.Backend. Holes are told from the disk's tree.
func (d *Disk) Status(ctx context.Context, off, n int64) ([]nbd.StatusExtent, error) {
	runs, err := d.disk.Status(ctx, off, n)
	if err != nil {
		return nil, err
	}
	out := make([]nbd.StatusExtent, len(runs))
	for i, r := range runs {
		out[i].Length = r.Len
		if r.Hole {
			out[i].Flags = nbd.AllocationHole | nbd.AllocationZero
		}
	}
	return out, nil
}

// ReaderAt returns b as an io.ReaderAt whose reads end with ctx.
func ReaderAt(ctx context.Context, b nbd.Backend) io.ReaderAt { return readerAt{ctx, b} }

type readerAt struct {
	ctx context.Context
	b   nbd.Backend
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read at a negative offset")
	}
	n := int(min(int64(len(p)), max(r.b.Size()-off, 0)))
	if t, ok := r.b.(nbd.TryReader); !ok || !t.TryReadAt(p[:n], off) {
		if err := r.b.ReadAt(r.ctx, p[:n], off); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
