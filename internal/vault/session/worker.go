package session

import (
	"context"
	"fmt"
	"io"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// readSize is how much a worker reads at once: large enough for a disk, small enough for the
// processor's cache.
const readSize = 1 << 20

// worker is what one goroutine of a put needs for itself.
type worker struct {
	*put
	*tools
	pack *pack.Writer // borrowed for a span; nil between spans
}

// tools are used again and again: they are dear to make for a point of one chunk.
type tools struct {
	hash  *chunk.Hasher
	codec *chunk.Codec
	buf   []byte
}

func (r *Room) takeTools() *tools {
	if t, ok := r.tools.Get().(*tools); ok {
		return t
	}
	return &tools{hash: chunk.NewHasher(r.ChunkKey), codec: chunk.NewCodec(r.Level),
		buf: make([]byte, max(readSize, r.ChunkSize))}
}

func (p *put) work(ctx context.Context, spans <-chan span, results chan<- leafResult) error {
	w := &worker{put: p}
	defer func() {
		w.giveBack()
		if w.tools != nil {
			p.s.room.tools.Put(w.tools)
		}
	}()
	for sp := range spans {
		if w.tools == nil {
			w.tools = p.s.room.takeTools()
		}
		if err := p.s.err(); err != nil {
			return err
		}
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
	old, oldID, err := tree.Leaf(ctx, w.s, w.base, w.chunks, sp.leaf)
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
	w.giveBack()
	w.s.tellIfDue()
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

// store makes sure that the chunk p is stored and returns its ID. was is the chunk of this place in
// the base.
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
		w.s.claims.drop(id)
		return id, err
	}
	if w.pack == nil {
		w.pack = w.s.data.borrow()
	}
	e, err := w.s.append(w.pack, pack.Data, id, len(p), encoded, enc, nil)
	if err != nil {
		return id, err
	}
	w.added.Add(int64(e.Stored) + pack.RowSize)
	if w.pack.Full(w.s.room.PackSize) {
		w.giveBack()
	}
	return id, nil
}

func (w *worker) giveBack() {
	if w.pack != nil {
		w.s.data.giveBack(w.pack)
		w.pack = nil
	}
}
