package vault

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Verify reads every chunk, checks that it is what its ID says, and returns the ranges of the disk that are damaged.
func (d *Disk) Verify(ctx context.Context, progress func(bytes int64)) (extent.Set, error) {
	release, err := d.lease(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	var mu sync.Mutex
	var bad []extent.Extent
	cs := int64(d.v.conf.ChunkSize)
	check := func(hash *chunk.Hasher, buf []byte, at int64, id chunk.ID) error {
		plain, err := d.readAny(ctx, id, buf)
		if err == nil && hash.ID(plain) != id {
			err = fmt.Errorf("%w: chunk %s has other bytes", ErrCorrupt, id)
		}
		if err != nil && !damage(err) {
			return err
		}
		if err != nil {
			mu.Lock()
			bad = append(bad, d.clip(at*cs))
			mu.Unlock()
		}
		if progress != nil {
			progress(d.clip(at * cs).Len)
		}
		return nil
	}
	type job struct {
		at int64
		id chunk.ID
	}
	g, gctx := errgroup.WithContext(ctx)
	jobs := make(chan job, 256)
	for range d.v.opts.Workers {
		g.Go(func() error {
			hash, buf := chunk.NewHasher(d.v.sec.chunks), make([]byte, cs)
			for j := range jobs {
				if err := check(hash, buf, j.at, j.id); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(jobs)
		lost, err := d.v.walkLenient(gctx, d.root, d.chunks, func(at int64, id chunk.ID) error {
			select {
			case jobs <- job{at, id}:
				return nil
			case <-gctx.Done():
				return gctx.Err()
			}
		})
		mu.Lock()
		defer mu.Unlock()
		for _, l := range lost {
			bad = append(bad, extent.Extent{Off: l.Off * cs, Len: min(l.Len*cs, d.size-l.Off*cs)})
		}
		return err
	})
	err = g.Wait()
	return extent.Of(bad...), err
}

// walkLenient calls visit with every chunk of a tree, and returns the runs of chunks, in chunks, below nodes that cannot be read.
func (v *Vault) walkLenient(ctx context.Context, root chunk.ID, chunks int64, visit func(at int64, id chunk.ID) error) (extent.Set, error) {
	var lost extent.Set
	var walk func(id chunk.ID, level int, first int64) error
	walk = func(id chunk.ID, level int, first int64) error {
		if id.IsHole() {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := v.Node(ctx, id, level)
		if err != nil && !damage(err) {
			return err
		}
		span := tree.SpanOf(level)
		if err != nil {
			lost = lost.Append(extent.Extent{Off: first, Len: min(span, chunks-first)})
			return nil
		}
		for i, child := range n.Slots {
			at := first + int64(i)*(span/tree.FanOut)
			if level > 0 {
				err = walk(child, level-1, at)
			} else if !child.IsHole() {
				err = visit(at, child)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return lost, walk(root, tree.Levels(chunks)-1, 0)
}
