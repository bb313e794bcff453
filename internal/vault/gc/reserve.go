package gc

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

const (
	reserveName = "gc/reserve"
	// reserveSize is room for what a full store is told before anything in it can be deleted:
	// entries, and the checkpoints that become due meanwhile.
	reserveSize = 1 << 20
)

// KeepReserve puts room aside in a store, for what deleting has to write when it is full. It may be
// there already.
func KeepReserve(ctx context.Context, s blob.Store) error {
	_, err := s.Stat(ctx, reserveName)
	if errors.Is(err, blob.ErrNotExist) {
		err = blob.Put(ctx, s, reserveName, make([]byte, reserveSize))
	}
	if err != nil && !errors.Is(err, blob.ErrExist) {
		return fmt.Errorf("put room aside for deleting: %w", err)
	}
	return nil
}

// ReleaseReserve gives the room back to the store.
func ReleaseReserve(ctx context.Context, s blob.Store) error {
	if err := s.Delete(ctx, reserveName); err != nil {
		return fmt.Errorf("release the room that was put aside for deleting: %w", err)
	}
	return nil
}

// putReserveBack does so if there is room again: if there is none the next run does.
func (c *collector) putReserveBack(ctx context.Context) {
	if !c.o.DryRun {
		_ = KeepReserve(ctx, c.Store)
	}
}
