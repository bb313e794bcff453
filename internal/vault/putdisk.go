package vault

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// readSize is how much a worker reads at once: large enough for a disk, small enough for the processor's cache.
const readSize = 1 << 20

// DiskInput is a batch of changes to a disk.
type DiskInput struct {
	Size     int64             // bytes
	Base     string            // root of the disk, of the same size, that the changes apply to; "" is a disk of holes
	BaseUsed int64             // what PutDisk returned as Used for Base
	Data     extent.Set        // read these from Source; aligned to chunks, or ending at Size
	Zero     extent.Set        // these are zeros; aligned likewise, and apart from Data
	Source   io.ReaderAt       // safe for concurrent use
	Progress func(bytes int64) // told of each part of Data that is done; from several goroutines; nil discards
}

// DiskOutput is what a batch made of a disk.
type DiskOutput struct {
	Root  string // of the tree
	Used  int64  // bytes that are not holes, in whole chunks, clipped at the disk's end
	Added int64  // bytes by which the vault grew
	Read  int64  // bytes read from Source
}

// PutDisk applies a batch of changes to a disk and returns the new disk. It returns when all has been handed to the store; Commit makes it durable.
func (s *Session) PutDisk(ctx context.Context, in DiskInput) (DiskOutput, error) {
	p, err := s.newPut(in)
	if err != nil {
		return DiskOutput{}, err
	}
	g, gctx := errgroup.WithContext(ctx)
	spans := make(chan span)
	g.Go(func() error { defer close(spans); return p.split(gctx, spans) })
	results := make(chan leafResult, 2*s.v.opts.Workers)
	var workers sync.WaitGroup
	for range s.v.opts.Workers {
		workers.Add(1)
		g.Go(func() error { defer workers.Done(); return p.work(gctx, spans, results) })
	}
	go func() { workers.Wait(); close(results) }()
	var root chunk.ID
	g.Go(func() (err error) { root, err = p.assemble(gctx, results); return err })
	if err := g.Wait(); err != nil {
		return DiskOutput{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if in.Base != "" && !s.made[in.Base] {
		s.bases[in.Base] = true
	}
	s.made[root.String()] = true
	return DiskOutput{Root: root.String(), Used: in.BaseUsed + p.used.Load(), Added: p.added.Load(), Read: p.read.Load()}, nil
}

// put is one PutDisk at work.
type put struct {
	s      *Session
	in     DiskInput
	base   chunk.ID
	chunks int64
	size   int64 // of a chunk
	nodes  nodeWriter

	used, added, read atomic.Int64
}

func (s *Session) newPut(in DiskInput) (*put, error) {
	base, err := chunk.ParseID(in.Base)
	if err != nil {
		return nil, fmt.Errorf("base disk: %w", err)
	}
	size := int64(s.v.conf.ChunkSize)
	p := &put{s: s, in: in, base: base, size: size, chunks: (in.Size + size - 1) / size}
	p.nodes = nodeWriter{Vault: s.v, s: s, added: &p.added}
	for _, set := range []extent.Set{in.Data, in.Zero} {
		for _, e := range set {
			if e.Off%size != 0 || (e.End()%size != 0 && e.End() != in.Size) || e.End() > in.Size || e.Off < 0 {
				return nil, fmt.Errorf("extent %d+%d of a disk of %d bytes is not aligned to chunks of %d", e.Off, e.Len, in.Size, size)
			}
		}
	}
	return p, nil
}

// span is the part of a batch within one leaf of the tree.
type span struct {
	seq        int64
	leaf       int64
	data, zero extent.Set
}

type leafResult struct {
	seq  int64
	leaf int64
	id   chunk.ID
}

// split cuts the batch into spans, in ascending order. Zeros are only looked at where the base has something: holes that stay
// holes cost nothing, however many they are.
func (p *put) split(ctx context.Context, out chan<- span) error {
	width := p.size * tree.FanOut
	s := splitter{out: out, data: cutter{slices.Clone(p.in.Data), width}, zero: cutter{slices.Clone(p.in.Zero), width}}
	within := func(first, count int64) bool {
		return touches(p.in.Zero, extent.Extent{Off: first * p.size, Len: count * p.size})
	}
	err := tree.Leaves(ctx, p.s.v, p.base, p.chunks, within, func(leaf int64, _ chunk.ID) error {
		if err := s.upTo(ctx, leaf); err != nil {
			return err
		}
		return s.send(ctx, leaf)
	})
	if err != nil {
		return fmt.Errorf("read the last point: %w", err)
	}
	return s.upTo(ctx, noLeaf)
}

// splitter hands out spans.
type splitter struct {
	out        chan<- span
	data, zero cutter
	seq        int64
}

// upTo sends the leaves before the given one that have data.
func (s *splitter) upTo(ctx context.Context, leaf int64) error {
	for next := s.data.leaf(); next < leaf; next = s.data.leaf() {
		if err := s.send(ctx, next); err != nil {
			return err
		}
	}
	return nil
}

func (s *splitter) send(ctx context.Context, leaf int64) error {
	s.zero.skip(leaf)
	sp := span{seq: s.seq, leaf: leaf, data: s.data.take(leaf), zero: s.zero.take(leaf)}
	s.seq++
	select {
	case s.out <- sp:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

const noLeaf = int64(1) << 62

// cutter takes a set apart leaf by leaf; the set is its own.
type cutter struct {
	rest  extent.Set
	width int64
}

func (c *cutter) leaf() int64 {
	if len(c.rest) == 0 {
		return noLeaf
	}
	return c.rest[0].Off / c.width
}

// skip drops what lies before leaf.
func (c *cutter) skip(leaf int64) {
	start := leaf * c.width
	for len(c.rest) > 0 && c.rest[0].Off < start {
		if e := c.rest[0]; e.End() > start {
			c.rest[0] = extent.Extent{Off: start, Len: e.End() - start}
			return
		}
		c.rest = c.rest[1:]
	}
}

func (c *cutter) take(leaf int64) extent.Set {
	end := (leaf + 1) * c.width
	var out extent.Set
	for len(c.rest) > 0 && c.rest[0].Off < end {
		e := c.rest[0]
		if e.End() <= end {
			out = append(out, e)
			c.rest = c.rest[1:]
			continue
		}
		out = append(out, extent.Extent{Off: e.Off, Len: end - e.Off})
		c.rest[0] = extent.Extent{Off: end, Len: e.End() - end}
	}
	return out
}

// assemble builds the tree from leaves that arrive nearly in order.
func (p *put) assemble(ctx context.Context, results <-chan leafResult) (chunk.ID, error) {
	b := tree.NewBuilder(p.nodes, p.base, p.chunks)
	early := make(map[int64]leafResult) // at most a few per worker
	next := int64(0)
	for r := range results {
		early[r.seq] = r
		for {
			r, ok := early[next]
			if !ok {
				break
			}
			delete(early, next)
			next++
			if err := b.SetLeaf(ctx, r.leaf, r.id); err != nil {
				return chunk.ID{}, err
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return chunk.ID{}, err
	}
	return b.Finish(ctx)
}

// worker is what one goroutine of a put needs for itself.
type worker struct {
	*put
	hash  *chunk.Hasher
	codec *chunk.Codec
	buf   []byte
	pack  *pack.Writer // borrowed for a span, so that neighbours of the disk are neighbours in a pack; nil between spans
}

func (p *put) work(ctx context.Context, spans <-chan span, results chan<- leafResult) error {
	w := &worker{put: p, hash: chunk.NewHasher(p.s.v.sec.chunks), codec: chunk.NewCodec(p.s.v.level), buf: make([]byte, max(readSize, p.size))}
	for sp := range spans {
		id, err := w.span(ctx, sp)
		if err != nil {
			return err
		}
		select {
		case results <- leafResult{sp.seq, sp.leaf, id}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// span reads the data of one leaf, stores what is new and returns the new leaf.
func (w *worker) span(ctx context.Context, sp span) (chunk.ID, error) {
	old, oldID, err := tree.Leaf(ctx, w.s.v, w.base, w.chunks, sp.leaf)
	if err != nil {
		return chunk.ID{}, fmt.Errorf("read the last point: %w", err)
	}
	var leaf tree.Node
	if old != nil {
		leaf = *old
	}
	first := sp.leaf * tree.FanOut
	for _, e := range sp.zero {
		for c := e.Off / w.size; c*w.size < e.End(); c++ {
			leaf.Slots[c-first] = chunk.ID{}
		}
	}
	for _, e := range sp.data {
		if err := w.extent(ctx, &leaf, first, e); err != nil {
			return chunk.ID{}, err
		}
	}
	if err := w.giveBack(ctx); err != nil {
		return chunk.ID{}, err
	}
	w.used.Add(w.usedOf(&leaf, first) - w.usedOf(old, first))
	switch {
	case old != nil && leaf == *old:
		return oldID, nil
	case leaf.Count() == 0:
		return chunk.ID{}, nil
	}
	return w.nodes.PutNode(ctx, &leaf)
}

// usedOf returns the bytes of the leaf's chunks that are not holes.
func (w *worker) usedOf(n *tree.Node, first int64) int64 {
	if n == nil {
		return 0
	}
	used := int64(n.Count()) * w.size
	if last := w.chunks - 1; last >= first && last < first+tree.FanOut && !n.Slots[last-first].IsHole() {
		used -= w.chunks*w.size - w.in.Size
	}
	return used
}

// extent reads e and puts its chunks into leaf.
func (w *worker) extent(ctx context.Context, leaf *tree.Node, first int64, e extent.Extent) error {
	for off := e.Off; off < e.End(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(int64(len(w.buf)), e.End()-off)
		if _, err := w.in.Source.ReadAt(w.buf[:n], off); err != nil && !(err == io.EOF && off+n == w.in.Size) {
			return fmt.Errorf("read %d bytes at offset %d: %w", n, off, err)
		}
		w.read.Add(n)
		for at := int64(0); at < n; at += w.size {
			p := w.buf[at:min(at+w.size, n)]
			if int64(len(p)) < w.size { // the disk's last chunk is filled up with zeros
				p = w.buf[at : at+w.size]
				clear(p[n-at:])
			}
			slot := &leaf.Slots[(off+at)/w.size-first]
			id, err := w.store(ctx, p, *slot)
			if err != nil {
				return err
			}
			*slot = id
		}
		if w.in.Progress != nil {
			w.in.Progress(n)
		}
		off += n
	}
	return nil
}

// store makes sure that the chunk p is stored and returns its ID. was is the chunk of this place in the last point.
func (w *worker) store(ctx context.Context, p []byte, was chunk.ID) (chunk.ID, error) {
	if chunk.IsZero(p) {
		return chunk.ID{}, nil
	}
	id := w.hash.ID(p)
	if id == was {
		return id, nil
	}
	if found, err := w.s.have(ctx, id); err != nil || found {
		return id, err
	}
	encoded, enc, err := w.codec.Encode(p)
	if err != nil {
		return id, err
	}
	if w.pack == nil {
		if w.pack, err = w.s.data.borrow(ctx); err != nil {
			return id, err
		}
	}
	e, err := w.pack.Append(id, len(p), encoded, enc)
	if err != nil {
		return id, err
	}
	w.added.Add(int64(e.Stored) + pack.EntrySize)
	if w.pack.Full(w.s.v.opts.PackSize) {
		return id, w.giveBack(ctx)
	}
	return id, nil
}

func (w *worker) giveBack(ctx context.Context) error {
	if w.pack == nil {
		return nil
	}
	pw := w.pack
	w.pack = nil
	return w.s.data.giveBack(ctx, pw)
}
