package content

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// Wanted is a chunk to read: ID, which is no hole's, into Plain, which has the vault's chunk size.
// Done is called once, when Plain holds the chunk or err says why not, from any goroutine, and
// before ReadChunks returns.
type Wanted struct {
	ID    chunk.ID
	Plain []byte
	Done  func(err error)
}

// openTogether is how many chunks of a fetch one goroutine opens: about half a millisecond of work.
const openTogether = 8

// ReadChunks reads chunks, which should all be different, in the order of the store: neighbours in
// a pack are fetched at once, and opened on all workers. What it returns as read has been
// authenticated. A chunk that is not where it was is looked for again; one that cannot be read is
// ErrCorrupt, and does not keep the others from being read.
func (s *Source) ReadChunks(ctx context.Context, wanted []Wanted) {
	if len(wanted) == 1 {
		w := &wanted[0]
		w.Done(s.readOne(ctx, w))
		return
	}
	items := make([]placed, 0, len(wanted))
	for i := range wanted {
		it, err := s.place(ctx, &wanted[i])
		if err != nil {
			wanted[i].Done(err)
			continue
		}
		it.at = int64(i)
		items = append(items, it)
	}
	g := new(errgroup.Group)
	g.SetLimit(s.p.Workers)
	for _, f := range plan(items, fetchGap) {
		g.Go(func() error { s.fetch(ctx, g, f, wanted); return nil })
	}
	_ = g.Wait() // each chunk has its own error
}

// place finds what is wanted.
func (s *Source) place(ctx context.Context, w *Wanted) (it placed, err error) {
	loc, found, err := s.Find(ctx, w.ID)
	switch {
	case err != nil:
		return it, err
	case !found:
		return it, noPlace(w.ID)
	case int(loc.Plain) != len(w.Plain):
		return it, wrongSize(w.ID, loc.Plain)
	}
	return placed{loc: loc}, nil
}

// readOne reads a single chunk from its first place, and from any other if that fails.
func (s *Source) readOne(ctx context.Context, w *Wanted) error {
	it, err := s.place(ctx, w)
	if err != nil {
		return err
	}
	codec := codecs.Get().(*chunk.Codec)
	defer codecs.Put(codec)
	return s.otherwise(ctx, w, s.readLoc(ctx, &it.loc, w.Plain, codec))
}

// otherwise tries every other place of a chunk if err says that one is damaged.
func (s *Source) otherwise(ctx context.Context, w *Wanted, err error) error {
	if err == nil || !IsDamage(err) {
		return err
	}
	plain, err := s.Chunk(ctx, w.ID, w.Plain)
	if err == nil && len(plain) != len(w.Plain) {
		err = wrongSize(w.ID, uint32(len(plain)))
	}
	return err
}

// fetch reads a run of a pack and opens what is in it, some of it on other workers where those are
// free.
func (s *Source) fetch(ctx context.Context, g *errgroup.Group, f fetch, wanted []Wanted) {
	sealed := takeBuffer(int(f.end() - f.start()))
	whole := s.p.Packs.ReadSealed(ctx, f.items[0].loc.Pack, sealed.b, f.start())
	parts := slices.Collect(slices.Chunk(f.items, openTogether))
	var users atomic.Int32
	users.Store(int32(len(parts)))
	start := f.start()
	for i, part := range parts {
		work := func() error {
			s.openPart(ctx, part, sealed.b, start, whole, wanted)
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

// openPart opens some of what was fetched into sealed, which begins at offset start of the pack;
// whole is the error of the fetch.
func (s *Source) openPart(ctx context.Context, part []placed, sealed []byte, start int64, whole error,
	wanted []Wanted) {
	codec := codecs.Get().(*chunk.Codec)
	defer codecs.Put(codec)
	for i := range part {
		l, w := &part[i].loc, &wanted[part[i].at]
		err := whole
		if err == nil {
			from := int64(l.Offset) - start
			err = s.open(&l.Entry, sealed[from:from+int64(l.Stored)], w.Plain, codec)
		}
		w.Done(s.otherwise(ctx, w, err))
	}
}

// buffer is room for sealed bytes, used again and again.
type buffer struct {
	b []byte
	p *sync.Pool // nil for one that is too large to keep
}

// Buffers of single chunks and of whole fetches.
var smallBuffers, largeBuffers sync.Pool

func takeBuffer(n int) *buffer {
	pool, size := &largeBuffers, fetchSize+chunk.MaxSize
	if n <= chunk.DefaultSize+64 {
		pool, size = &smallBuffers, chunk.DefaultSize+64
	}
	if n > size {
		return &buffer{b: make([]byte, n)}
	}
	if b, _ := pool.Get().(*buffer); b != nil {
		b.b = b.b[:n]
		return b
	}
	return &buffer{b: make([]byte, n, size), p: pool}
}

func giveBuffer(b *buffer) {
	if b.p != nil {
		b.p.Put(b)
	}
}
