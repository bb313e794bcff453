package vault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// What readers of a vault use of the room that reads.
type (
	Disk   = content.Disk   // a stored disk
	Run    = content.Run    // a range that is data or a hole throughout
	Wanted = content.Wanted // a chunk to read
)

// OpenDisk returns the disk of size bytes whose tree has the given root. What it needs is there
// while a point has the disk: a Reader keeps a point from being purged meanwhile.
func (v *Vault) OpenDisk(root string, size int64) (*Disk, error) {
	if err := v.ready(context.Background()); err != nil {
		return nil, err
	}
	return v.content.Disk(root, size)
}

// Node reads a tree node. It implements tree.Reader.
func (v *Vault) Node(ctx context.Context, id chunk.ID, level int) (*tree.Node, error) {
	if err := v.ready(ctx); err != nil {
		return nil, err
	}
	return v.content.Node(ctx, id, level)
}

// Diff returns the ranges in which two disks differ, in whole chunks. The disks may be of different
// sizes: what only the larger one has differs where it is not a hole.
func (v *Vault) Diff(ctx context.Context, rootA string, sizeA int64, rootB string, sizeB int64) (extent.Set, error) {
	if err := v.ready(ctx); err != nil {
		return nil, err
	}
	return v.content.Diff(ctx, rootA, sizeA, rootB, sizeB)
}

// Reader reads disks for as long as it is open: the points that it was told of by RequirePoint are
// held until Close, so that nobody purges them. It is safe for concurrent use.
type Reader struct {
	v    *Vault
	mu   sync.Mutex // guards held
	held map[point.ID]state.Hold
}

// OpenReader begins to read.
func (v *Vault) OpenReader(ctx context.Context) (*Reader, error) {
	if err := v.ready(ctx); err != nil {
		return nil, fmt.Errorf("open a reader of the vault: %w", err)
	}
	return &Reader{v: v, held: map[point.ID]state.Hold{}}, nil
}

// RequirePoint returns ErrNoPoint unless the point is there. If it is, it cannot be purged until
// Close. In a store that cannot be written nothing is held: nobody may collect its garbage
// meanwhile.
func (r *Reader) RequirePoint(ctx context.Context, id point.ID) error {
	r.mu.Lock() // of two who ask for one point at once, one holds it
	defer r.mu.Unlock()
	if _, there := r.held[id]; there {
		return nil
	}
	if r.v.opts.ReadOnly || r.v.journal.Frozen() {
		return r.v.requirePoint(ctx, id)
	}
	n := holderNote{Who: "a reader, " + r.v.opts.Who, Process: thisProcess()}
	h, err := r.v.hold(ctx, id, n)
	if notWritable(err) {
		return r.v.requirePoint(ctx, id)
	}
	if err != nil {
		return err
	}
	r.held[id] = h
	return nil
}

// notWritable reports whether a store refuses writing as such.
func notWritable(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) || errors.Is(err, os.ErrPermission)
}

// Close lets go of the points. Disks of the Reader should not be read any more. A hold that cannot
// be given back is given back later by this process, or when it has ended by whoever sees that.
func (r *Reader) Close() error {
	r.mu.Lock()
	held := r.held
	r.held = map[point.ID]state.Hold{}
	r.mu.Unlock()
	r.v.owed.Lock()
	for id, h := range held {
		r.v.owes = append(r.v.owes, owedHold{id, h.ID})
	}
	r.v.owed.Unlock()
	return r.v.payBack(context.Background())
}

// owedHold is a hold that is to be given back.
type owedHold struct {
	point point.ID
	hold  state.ID
}

// payBack gives back the holds that readers have no more use for.
func (v *Vault) payBack(ctx context.Context) error {
	v.owed.Lock()
	defer v.owed.Unlock()
	var left []owedHold
	var errs []error
	for _, o := range v.owes {
		err := v.release(ctx, o.point, func(h state.Hold) bool { return h.ID == o.hold })
		if err != nil {
			left, errs = append(left, o), append(errs, err)
		}
	}
	v.owes = left
	return errors.Join(errs...)
}

// Disk returns the disk of size bytes whose tree has the given root, made for many small reads.
func (r *Reader) Disk(root string, size int64) (*Disk, error) {
	return r.v.content.CachedDisk(root, size)
}

// Node implements tree.Reader.
func (r *Reader) Node(ctx context.Context, id chunk.ID, level int) (*tree.Node, error) {
	return r.v.content.Node(ctx, id, level)
}

// ReadChunks reads chunks, which should all be different, in the order of the store: neighbours in
// a pack are fetched at once, and opened on all workers. What it returns as read has been
// authenticated. One that cannot be read is ErrCorrupt, and does not keep the others from being
// read.
func (r *Reader) ReadChunks(ctx context.Context, wanted []Wanted) {
	r.v.content.ReadChunks(ctx, wanted)
}
