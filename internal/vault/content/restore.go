package content

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/directio"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Restoring works through the disk in windows, so that memory does not grow with it: the chunks of
// a window are sorted by where they are stored, and what lies together is read at once.
const (
	windowChunks = 256 << 10
	fetchSize    = 2 << 20   // bytes read from a pack at once, at most
	fetchGap     = 128 << 10 // bytes read in vain rather than reading twice

	// writersPerWorker is how many goroutines there are for each that computes: the others wait for
	// the target's disk.
	writersPerWorker = 2
)

// placed is a chunk of a window with its place in the store.
type placed struct {
	at  int64 // number of the chunk in the disk
	loc index.Loc
}

// fetch is a run of a pack to read at once.
type fetch struct {
	items []placed // ascending by offset; neighbours may be the same chunk
}

func (f *fetch) start() int64 { return int64(f.items[0].loc.Offset) }

func (f *fetch) end() int64 {
	l := &f.items[len(f.items)-1].loc
	return int64(l.Offset) + int64(l.Stored)
}

// Restore writes everything that is not a hole to w, whose other bytes must be zeros already. What
// is written has been authenticated. The first chunk that cannot be read ends it with ErrCorrupt.
// WriteAt is called from several goroutines for ranges that do not overlap.
func (d *Disk) Restore(ctx context.Context, w io.WriterAt, progress func(bytes int64)) error {
	return d.RestorePart(ctx, extent.Of(extent.Extent{Len: d.size}), w, progress)
}

// RestorePart is Restore of the chunks that part touches.
func (d *Disk) RestorePart(ctx context.Context, part extent.Set, w io.WriterAt, progress func(bytes int64)) error {
	sink := func(p []byte, off int64) error {
		p = p[:min(int64(len(p)), d.size-off)]
		if _, err := w.WriteAt(p, off); err != nil {
			return fmt.Errorf("write %d bytes at offset %d: %w", len(p), off, err)
		}
		if progress != nil {
			progress(int64(len(p)))
		}
		return nil
	}
	return d.eachWindow(ctx, part, func(items []placed) error {
		return d.parallel(ctx, plan(items, fetchGap), sink)
	})
}

// touches says whether a set has any byte of e.
func touches(set extent.Set, e extent.Extent) bool {
	i, _ := slices.BinarySearchFunc(set, e.Off, func(s extent.Extent, off int64) int {
		if s.End() <= off {
			return -1
		}
		return 1
	})
	return i < len(set) && set[i].Off < e.End()
}

// eachWindow calls visit with those chunks that part touches, one window after the other, placed.
func (d *Disk) eachWindow(ctx context.Context, part extent.Set, visit func([]placed) error) error {
	cs := d.ChunkSize()
	within := func(first, count int64) bool { return touches(part, extent.Extent{Off: first * cs, Len: count * cs}) }
	items := make([]placed, 0, 1024)
	err := tree.WalkWithin(ctx, d.s, d.root, d.chunks, within, func(r tree.Run) (err error) {
		if items, err = d.placeRun(ctx, r, part, items); err != nil || len(items) < windowChunks {
			return err
		}
		err = visit(items)
		items = items[:0]
		return err
	})
	if err != nil || len(items) == 0 {
		return err
	}
	return visit(items)
}

// placeRun appends the places of those chunks of a leaf that part touches.
func (d *Disk) placeRun(ctx context.Context, r tree.Run, part extent.Set, items []placed) ([]placed, error) {
	for i, id := range r.Node.Slots {
		at := r.First + int64(i)
		if id.IsHole() || !touches(part, d.clip(at*d.ChunkSize())) {
			continue
		}
		loc, found, err := d.s.Find(ctx, id)
		if err == nil && !found {
			err = noPlace(id)
		}
		if err != nil {
			return items, d.chunkError(at, err)
		}
		items = append(items, placed{at, loc})
	}
	return items, nil
}

// plan sorts items by their place in the store and joins neighbours that have at most gap bytes
// between them.
func plan(items []placed, gap int64) []fetch {
	slices.SortFunc(items, func(a, b placed) int {
		return cmp.Or(bytes.Compare(a.loc.Pack.ID[:], b.loc.Pack.ID[:]), cmp.Compare(a.loc.Offset, b.loc.Offset),
			cmp.Compare(a.at, b.at))
	})
	var out []fetch
	for first := 0; first < len(items); {
		f := fetch{items: items[first : first+1]}
		for end := first + 1; end < len(items) && f.takes(&items[end], gap); end++ {
			f.items = items[first : end+1]
		}
		out = append(out, f)
		first += len(f.items)
	}
	return out
}

// takes reports whether it is worth reading the next item along with the others.
func (f *fetch) takes(next *placed, gap int64) bool {
	l := &next.loc
	return l.Pack.ID == f.items[0].loc.Pack.ID && int64(l.Offset) <= f.end()+gap &&
		int64(l.Offset)+int64(l.Stored)-f.start() <= fetchSize
}

// parallel runs the fetches on all workers.
func (d *Disk) parallel(ctx context.Context, fetches []fetch, sink func(p []byte, off int64) error) error {
	g, gctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	next := 0
	take := func() (f fetch, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if next == len(fetches) {
			return f, false
		}
		next++
		return fetches[next-1], true
	}
	for range writersPerWorker * d.s.p.Workers {
		g.Go(func() error {
			r := &fetcher{d: d, codec: chunk.NewCodec(chunk.Fast), sink: sink}
			return r.runAll(gctx, take)
		})
	}
	return g.Wait()
}

// gatherSize is how much of a disk is written at once, at most.
const gatherSize = 1 << 20

// fetcher reads, opens and writes. It belongs to one goroutine.
type fetcher struct {
	d      *Disk
	codec  *chunk.Codec
	sink   func(p []byte, off int64) error
	sealed []byte
	out    []byte // plain chunks that belong together
	outOff int64  // in the disk
}

// runAll runs what take gives until it gives no more.
func (r *fetcher) runAll(ctx context.Context, take func() (fetch, bool)) error {
	for f, ok := take(); ok; f, ok = take() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.run(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

func (r *fetcher) run(ctx context.Context, f fetch) error {
	n := int(f.end() - f.start())
	if cap(r.sealed) < n {
		r.sealed = make([]byte, max(n, fetchSize))
	}
	sealed := r.sealed[:n]
	whole := r.d.s.p.Packs.ReadSealed(ctx, f.items[0].loc.Pack, sealed, f.start())
	if whole != nil && !IsDamage(whole) {
		return whole
	}
	for i := range f.items {
		it := &f.items[i]
		if i > 0 && it.loc.ID == f.items[i-1].loc.ID { // the same chunk at another place of the disk
			if err := r.again(it.at); err != nil {
				return err
			}
			continue
		}
		if err := r.one(ctx, it, sealed, f.start(), whole); err != nil {
			return err
		}
	}
	return r.flush()
}

// one opens a chunk into the gathering buffer. If its bytes are damaged, other places of the same
// chunk are tried.
func (r *fetcher) one(ctx context.Context, it *placed, sealed []byte, start int64, whole error) error {
	if int(it.loc.Plain) != r.d.s.p.ChunkSize {
		return r.d.chunkError(it.at, wrongSize(it.loc.ID, it.loc.Plain))
	}
	plain, err := r.room(it.at, int(it.loc.Plain))
	if err != nil {
		return err
	}
	why := whole
	if why == nil {
		from := int64(it.loc.Offset) - start
		why = r.d.s.open(&it.loc.Entry, sealed[from:from+int64(it.loc.Stored)], plain, r.codec)
	}
	if why == nil {
		return nil
	}
	if !IsDamage(why) {
		return why
	}
	if _, err := r.d.s.Chunk(ctx, it.loc.ID, plain); err != nil {
		return r.d.chunkError(it.at, err)
	}
	return nil
}

// chunkError says which chunk of the disk an error is about.
func (d *Disk) chunkError(at int64, err error) error {
	return fmt.Errorf("read the chunk at offset %d of the disk: %w", at*d.ChunkSize(), err)
}

// room returns space for the chunk at, after writing what does not stand directly before it.
func (r *fetcher) room(at int64, n int) ([]byte, error) {
	off := at * r.d.ChunkSize()
	if len(r.out) > 0 && (r.outOff+int64(len(r.out)) != off || len(r.out)+n > cap(r.out)) {
		if err := r.flush(); err != nil {
			return nil, err
		}
	}
	if cap(r.out) < n {
		r.out = directio.Buffer(max(gatherSize, n))[:0]
	}
	if len(r.out) == 0 {
		r.outOff = off
	}
	r.out = r.out[:len(r.out)+n]
	return r.out[len(r.out)-n:], nil
}

// again writes the chunk that was opened last at another place too.
func (r *fetcher) again(at int64) error {
	n := r.d.s.p.ChunkSize
	last := slices.Clone(r.out[max(len(r.out)-n, 0):])
	p, err := r.room(at, len(last))
	if err != nil {
		return err
	}
	copy(p, last)
	return nil
}

func (r *fetcher) flush() error {
	if len(r.out) == 0 {
		return nil
	}
	err := r.sink(r.out, r.outOff)
	r.out = r.out[:0]
	return err
}
