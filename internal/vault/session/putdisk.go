package session

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// DiskInput is a batch of changes to a disk.
type DiskInput struct {
	Size     int64             // bytes
	Base     string            // root of the disk, of the same size, that the changes apply to; "" is a disk of holes
	Of       point.ID          // the point of which Base is; may be "" where this session made it
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

// PutDisk applies a batch of changes to a disk and returns the new disk; Commit makes it durable.
// [ErrBase] says that Base is not of the point named, state.ErrNoPoint that there is no such point.
// If ctx ends before PutDisk has returned, the session cannot be committed.
func (s *Session) PutDisk(ctx context.Context, in DiskInput) (DiskOutput, error) {
	if err := s.err(); err != nil {
		return DiskOutput{}, err
	}
	p, err := s.newPut(ctx, in)
	if err != nil {
		return DiskOutput{}, err
	}
	stop := context.AfterFunc(ctx, func() { s.breakOff(ctx) })
	defer stop()
	root, err := p.run(ctx)
	if err != nil {
		return DiskOutput{}, err
	}
	p.from.tree.Root = root
	s.trees.add(p.from)
	return DiskOutput{Root: root.String(), Used: in.BaseUsed + p.used.Load(), Added: p.added.Load(),
		Read: p.read.Load()}, nil
}

// breakOff ends what is under way because a caller's context has ended.
func (s *Session) breakOff(ctx context.Context) {
	_ = s.fail(context.Cause(ctx))
	s.cancel()
}

// put is one PutDisk at work.
type put struct {
	s      *Session
	in     DiskInput
	base   chunk.ID
	from   candidate // the tree that is made; its root is the last that is known
	chunks int64
	size   int64 // of a chunk
	nodes  nodeWriter

	used, added, read atomic.Int64
}

func (s *Session) newPut(ctx context.Context, in DiskInput) (*put, error) {
	base, err := chunk.ParseID(in.Base)
	if err != nil {
		return nil, fmt.Errorf("base disk: %w", err)
	}
	size := int64(s.room.ChunkSize)
	p := &put{s: s, in: in, base: base, size: size, chunks: s.chunks(in.Size)}
	p.nodes = nodeWriter{Session: s, added: &p.added}
	for _, set := range []extent.Set{in.Data, in.Zero} {
		for _, e := range set {
			if e.Off%size != 0 || (e.End()%size != 0 && e.End() != in.Size) || e.End() > in.Size || e.Off < 0 {
				return nil, fmt.Errorf("extent %d+%d of a disk of %d bytes is not aligned to chunks of %d", e.Off,
					e.Len,
					in.Size, size)
			}
		}
	}
	p.from, err = s.base(ctx, row.Tree{Root: base, Chunks: p.chunks}, in.Of)
	return p, err
}

// chunks returns how many chunks a disk of size bytes has.
func (s *Session) chunks(size int64) int64 {
	return (size + int64(s.room.ChunkSize) - 1) / int64(s.room.ChunkSize)
}

// run has the batch cut up, stored by the workers, and the tree built, all at the same time.
func (p *put) run(ctx context.Context) (root chunk.ID, err error) {
	g, ctx := errgroup.WithContext(ctx)
	spans := make(chan span)
	g.Go(func() error { defer close(spans); return p.split(ctx, spans) })
	results := make(chan leafResult, 2*p.s.room.Workers)
	var workers sync.WaitGroup
	for range p.s.room.Workers {
		workers.Add(1)
		g.Go(func() error { defer workers.Done(); return p.work(ctx, spans, results) })
	}
	g.Go(func() error { workers.Wait(); close(results); return nil })
	g.Go(func() (err error) { root, err = p.assemble(ctx, results); return err })
	return root, g.Wait()
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
