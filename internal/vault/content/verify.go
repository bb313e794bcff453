package content

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Verify reads every chunk, checks that it is what its ID says, and returns the ranges of the disk
// that are damaged. progress is called from several goroutines.
func (d *Disk) Verify(ctx context.Context, progress func(bytes int64)) (extent.Set, error) {
	v := &verifying{d: d, jobs: make(chan verifyJob, 256), progress: progress}
	g, gctx := errgroup.WithContext(ctx)
	for range d.s.p.Workers {
		g.Go(func() error { return v.work(gctx) })
	}
	g.Go(func() error {
		defer close(v.jobs)
		return v.walk(gctx)
	})
	err := g.Wait()
	return extent.Of(v.bad...), err
}

// verifying is a Verify under way.
type verifying struct {
	d        *Disk
	jobs     chan verifyJob
	progress func(bytes int64)

	mu  sync.Mutex // guards bad
	bad []extent.Extent
}

type verifyJob struct {
	at int64
	id chunk.ID
}

// walk gives out the chunks, and keeps what lies below nodes that are damaged.
func (v *verifying) walk(ctx context.Context) error {
	lost, err := v.d.s.Lenient(ctx, v.d.root, v.d.chunks, func(at int64, id chunk.ID) error {
		select {
		case v.jobs <- verifyJob{at, id}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	cs := v.d.ChunkSize()
	for _, l := range lost {
		v.damaged(extent.Extent{Off: l.Off * cs, Len: min(l.Len*cs, v.d.size-l.Off*cs)})
	}
	return err
}

func (v *verifying) work(ctx context.Context) error {
	hash, buf := chunk.NewHasher(v.d.s.p.ChunkKey), make([]byte, v.d.ChunkSize())
	for j := range v.jobs {
		plain, err := v.d.s.Chunk(ctx, j.id, buf)
		if err != nil && !IsDamage(err) {
			return v.d.chunkError(j.at, err)
		}
		here := v.d.clip(j.at * v.d.ChunkSize())
		if err != nil || hash.ID(plain) != j.id {
			v.damaged(here)
		}
		if v.progress != nil {
			v.progress(here.Len)
		}
	}
	return nil
}

func (v *verifying) damaged(e extent.Extent) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.bad = append(v.bad, e)
}

// Lenient calls visit with every chunk of a tree that is no hole, in ascending order, and returns
// the runs of chunks, counted in chunks, below nodes that are damaged.
func (s *Source) Lenient(ctx context.Context, root chunk.ID, chunks int64,
	visit func(at int64, id chunk.ID) error) (lost extent.Set, err error) {
	l := &lenient{s: s, chunks: chunks, visit: visit}
	err = l.walk(ctx, root, tree.Levels(chunks)-1, 0)
	return l.lost, err
}

// lenient walks a tree as far as it can be read.
type lenient struct {
	s      *Source
	chunks int64
	visit  func(at int64, id chunk.ID) error
	lost   extent.Set
}

func (l *lenient) walk(ctx context.Context, id chunk.ID, level int, first int64) error {
	if id.IsHole() {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := l.s.Node(ctx, id, level)
	if err != nil && !IsDamage(err) {
		return err
	}
	span := tree.SpanOf(level)
	if err != nil {
		l.lost = l.lost.Append(extent.Extent{Off: first, Len: min(span, l.chunks-first)})
		return nil
	}
	for i, child := range n.Slots {
		at := first + int64(i)*(span/tree.FanOut)
		if level > 0 {
			err = l.walk(ctx, child, level-1, at)
		} else if !child.IsHole() {
			err = l.visit(at, child)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
