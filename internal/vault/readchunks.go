package vault

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// Wanted is a chunk to read: ID, which is no hole's, into Plain, which has the vault's chunk size. Done is called once, when Plain holds the chunk or Err says
// why not, from any goroutine, and before ReadChunks returns.
type Wanted struct {
	ID    chunk.ID
	Plain []byte
	Done  func(err error)
}

// openTogether is how many chunks of a fetch one goroutine opens: about half a millisecond of work.
const openTogether = 8

// ReadChunks reads chunks, which should all be different, in the order of the store: neighbours in a pack are fetched at once, and opened on all workers. What
// it returns as read has been authenticated. A chunk that is not where it was is looked for again; one that cannot be read is ErrCorrupt, and does not keep
// the others from being read.
func (r *Reader) ReadChunks(ctx context.Context, wanted []Wanted) {
	if len(wanted) == 1 {
		w := &wanted[0]
		w.Done(r.readOne(ctx, w))
		return
	}
	items := make([]placed, 0, len(wanted))
	for i := range wanted {
		loc, found, err := r.find(ctx, wanted[i].ID)
		if err == nil && !found {
			err = errNoPlace(wanted[i].ID)
		}
		if err == nil && int(loc.Plain) != len(wanted[i].Plain) {
			err = fmt.Errorf("%w: %s has %d bytes", ErrCorrupt, loc.ID, loc.Plain)
		}
		if err != nil {
			wanted[i].Done(err)
			continue
		}
		items = append(items, placed{int64(i), loc})
	}
	g := new(errgroup.Group)
	g.SetLimit(r.v.opts.Workers)
	for _, f := range plan(items) {
		g.Go(func() error { r.fetch(ctx, g, f, wanted); return nil })
	}
	_ = g.Wait() // each chunk has its own error
}

// readOne reads a single chunk from its first place, and from any other if that fails.
func (r *Reader) readOne(ctx context.Context, w *Wanted) error {
	loc, found, err := r.find(ctx, w.ID)
	if err != nil {
		return err
	}
	if !found {
		return errNoPlace(w.ID)
	}
	if int(loc.Plain) != len(w.Plain) {
		return fmt.Errorf("%w: %s has %d bytes", ErrCorrupt, w.ID, loc.Plain)
	}
	sealed := takeBuffer(int(loc.Stored))
	defer giveBuffer(sealed)
	err = r.v.reader.ReadSealed(ctx, loc.Ref, sealed.b, int64(loc.Offset))
	if err == nil {
		err = r.open(placed{loc: loc}, sealed.b, w.Plain)
	}
	return r.otherwise(ctx, w, err)
}

// otherwise tries every other place of a chunk if err says that one is damaged.
func (r *Reader) otherwise(ctx context.Context, w *Wanted, err error) error {
	if err == nil || !damage(err) {
		return err
	}
	_, err = r.readAny(ctx, w.ID, w.Plain)
	return err
}

// open authenticates and decodes one chunk.
func (r *Reader) open(it placed, sealed, plain []byte) error {
	encoded, err := r.v.reader.Unseal(it.loc.Ref, &it.loc.Entry, sealed)
	if err != nil {
		return err
	}
	codec := codecs.Get().(*chunk.Codec)
	defer codecs.Put(codec)
	return codec.Decode(plain, encoded, it.loc.Encoding)
}

// fetch reads a run of a pack and opens what is in it, some of it on other workers where those are free.
func (r *Reader) fetch(ctx context.Context, g *errgroup.Group, f fetch, wanted []Wanted) {
	sealed := takeBuffer(int(f.end() - f.start()))
	whole := r.v.reader.ReadSealed(ctx, f.items[0].loc.Ref, sealed.b, f.start())
	parts := slices.Collect(slices.Chunk(f.items, openTogether))
	var users atomic.Int32
	users.Store(int32(len(parts)))
	start := f.start()
	for i, part := range parts {
		work := func() error {
			for _, it := range part {
				w := &wanted[it.at]
				err := whole
				if err == nil {
					from := int64(it.loc.Offset) - start
					err = r.open(it, sealed.b[from:from+int64(it.loc.Stored)], w.Plain)
				}
				w.Done(r.otherwise(ctx, w, err))
			}
			if users.Add(-1) == 0 {
				giveBuffer(sealed)
			}
			return nil
		}
		if i == len(parts)-1 || !g.TryGo(work) {
			_ = work()
		}
	}
}

// buffer is room for sealed bytes, used again and again.
type buffer struct {
	b []byte
	p *sync.Pool
}

// Buffers of single chunks and of whole fetches.
var smallBuffers, largeBuffers sync.Pool

func takeBuffer(n int) *buffer {
	pool, size := &largeBuffers, fetchSize+chunk.MaxSize
	if n <= chunk.DefaultSize+64 {
		pool, size = &smallBuffers, chunk.DefaultSize+64
	}
	if b, _ := pool.Get().(*buffer); b != nil {
		b.b = b.b[:n]
		return b
	}
	return &buffer{b: make([]byte, n, max(n, size)), p: pool}
}

func giveBuffer(b *buffer) { b.p.Put(b) }
