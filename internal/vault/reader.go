package vault

import (
	"context"
	"fmt"

	"golang.org/x/sync/singleflight"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Reader reads disks for as long as it is open. It holds one lease, renewed until Close: what a point needs that was there after OpenReader had
// returned, as RequirePoint tells, stays readable, even when the point is deleted and garbage is collected meanwhile. It is safe for concurrent use.
type Reader struct {
	v       *Vault
	release func()
	refresh singleflight.Group
}

// OpenReader begins to read. A store that cannot be written is read without a lease: nobody may collect its garbage meanwhile.
func (v *Vault) OpenReader(ctx context.Context) (*Reader, error) {
	// The index is not refreshed: that takes longer the larger the vault is, and what is not where it says is looked for again.
	release, err := v.takeReadLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("open a reader of the vault: %w", err)
	}
	return &Reader{v: v, release: release}, nil
}

// Close gives the lease back. Disks of the Reader must not be read any more.
func (r *Reader) Close() error {
	r.release()
	return nil
}

// RequirePoint returns ErrNoPoint unless the point is there. If it is, what it needs stays until Close.
func (r *Reader) RequirePoint(ctx context.Context, id point.ID) error {
	return r.v.requirePoint(ctx, id)
}

// Disk returns the disk of size bytes whose tree has the given root.
func (r *Reader) Disk(root string, size int64) (*Disk, error) {
	d, err := r.v.OpenDisk(root, size)
	if err != nil {
		return nil, err
	}
	d.r = r
	d.leaves = newLeafCache(d.chunks)
	return d, nil
}

// Node implements tree.Reader. A node that is not found is looked for once more where other processes may have put it.
func (r *Reader) Node(ctx context.Context, id chunk.ID, level int) (*tree.Node, error) {
	n, err := r.v.Node(ctx, id, level)
	if err == nil || !damage(err) {
		return n, err
	}
	if err := r.lookAgain(ctx); err != nil {
		return nil, err
	}
	return r.v.Node(ctx, id, level)
}

// readAny is Vault.readAny with a second look.
func (r *Reader) readAny(ctx context.Context, id chunk.ID, buf []byte) ([]byte, error) {
	plain, err := r.v.readAny(ctx, id, buf)
	if err == nil || !damage(err) {
		return plain, err
	}
	if err := r.lookAgain(ctx); err != nil {
		return nil, err
	}
	return r.v.readAny(ctx, id, buf)
}

// find returns a place of id that is whole as far as the index knows, with a second look.
func (r *Reader) find(ctx context.Context, id chunk.ID) (index.Loc, bool, error) {
	whole := func(l index.Loc) bool { return l.Cut }
	loc, found, err := r.v.index.Find(ctx, id, whole)
	if err != nil || found {
		return loc, found, err
	}
	if err := r.lookAgain(ctx); err != nil {
		return loc, false, err
	}
	return r.v.index.Find(ctx, id, nil)
}

// lookAgain takes in what other processes did: garbage collection may have moved what is looked for, a session may have stored it since. Callers at the
// same time share one look, which began after the first of them had asked; a caller that joins late looks once more.
func (r *Reader) lookAgain(ctx context.Context) error {
	look := func() (any, error) { return nil, r.v.index.Refresh(context.WithoutCancel(ctx)) }
	for range 2 {
		select {
		case res := <-r.refresh.DoChan("", look):
			if res.Err != nil {
				return fmt.Errorf("look again for what was not found: %w", res.Err)
			}
			if !res.Shared {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// errNoPlace is ErrCorrupt for a chunk that no pack has.
func errNoPlace(id chunk.ID) error { return fmt.Errorf("%w: %s is in no pack", ErrCorrupt, id) }
