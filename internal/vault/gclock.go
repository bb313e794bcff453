package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

const (
	gcLock      = "gc/lock"
	reserveName = "gc/reserve"
	// reserveSize is kept aside in every vault, so that a full disk still has room for what deleting needs to write.
	reserveSize = 1 << 20
)

// lockGC makes this the only garbage collection, for as long as its lease is there: the lock names it.
func (v *Vault) lockGC(ctx context.Context) (held *heldLease, unlock func(), err error) {
	l := newLease(newSessionID(), "garbage collection")
	held, err = takeLease(ctx, v.store, l)
	if errors.Is(err, blob.ErrNoSpace) {
		if err := v.store.Delete(ctx, reserveName); err != nil {
			return nil, nil, err
		}
		held, err = takeLease(ctx, v.store, l)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("lock garbage collection: %w", err)
	}
	if err := v.putLock(ctx, l); err != nil {
		return nil, nil, errors.Join(err, held.release(context.WithoutCancel(ctx)))
	}
	return held, func() {
		ctx := context.WithoutCancel(ctx)
		_ = v.store.Delete(ctx, gcLock) // a lock left behind dies with its lease
		_ = held.release(ctx)           // and that with this process
		keepReserve(ctx, v.store)
	}, nil
}

// putLock stores the lock of l, after breaking one whose owner has no lease any more.
func (v *Vault) putLock(ctx context.Context, l lease) error {
	raw, err := json.Marshal(l)
	if err != nil {
		return err
	}
	for range 4 {
		err = blob.Put(ctx, v.store, gcLock, raw)
		if err == nil {
			return nil
		}
		if !errors.Is(err, blob.ErrExist) {
			return fmt.Errorf("lock garbage collection: %w", err)
		}
		owner, err := v.lockOwner(ctx)
		if err != nil {
			return err
		}
		if owner != nil {
			return fmt.Errorf("%w: %s", ErrBusy, owner)
		}
		if err := v.store.Delete(ctx, gcLock); err != nil {
			return fmt.Errorf("break the lock of a dead garbage collection: %w", err)
		}
	}
	return ErrBusy
}

// lockOwner returns the lease of who holds the lock, nil if that is nobody who is alive.
func (v *Vault) lockOwner(ctx context.Context) (*lease, error) {
	raw, err := blob.Get(ctx, v.store, gcLock)
	var owner lease
	if errors.Is(err, blob.ErrNotExist) || err == nil && json.Unmarshal(raw, &owner) != nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the lock of garbage collection: %w", err)
	}
	live, err := v.leases(ctx, "")
	if err != nil {
		return nil, err
	}
	for i := range live {
		if live[i].Session == owner.Session {
			return &live[i], nil
		}
	}
	return nil, nil
}

// keepReserve puts the reserve aside if there is room for it.
func keepReserve(ctx context.Context, s blob.Store) {
	_ = blob.Put(ctx, s, reserveName, make([]byte, reserveSize)) // there already, or no room: both are no news
}
