package state

import (
	"context"
	"fmt"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state/tier"
)

// Sweep deletes the checkpoints before first, and the parts that are older and that it does not
// name. first is one that the present volume, or one before, begins with, and the state is as of an
// entry after it which was confirmed. No later checkpoint can come to name such a part: a part's
// name has the stretches that it spans. While a mirror copies, nothing is swept.
func (s *State) Sweep(ctx context.Context, first log.Checkpoint) error {
	pinned, err := s.oldestPin(ctx)
	if err != nil || pinned != ^uint64(0) {
		return err
	}
	of := New(s.parts.store, s.parts.keys, s.opts)
	if _, err := of.Load(ctx, first); err != nil {
		return fmt.Errorf("sweep checkpoints: %w", err)
	}
	named, newest := map[string]bool{}, uint64(0)
	for c := range classes {
		for _, run := range of.tiers[c].Runs {
			newest = max(newest, run.To)
			for _, p := range run.Parts {
				named[partName(p)] = true
			}
		}
	}
	end := partName(tier.Part{To: newest + 1})
	for name, err := range blob.Names(ctx, s.parts.store, partsPrefix, "") {
		if err != nil {
			return fmt.Errorf("sweep parts of checkpoints: %w", err)
		}
		if name >= end {
			break
		}
		if !named[name] && strings.Count(name, "-") == 2 {
			if err := s.parts.store.Delete(ctx, name); err != nil {
				return fmt.Errorf("sweep parts of checkpoints: %w", err)
			}
		}
	}
	return s.sweepRoots(ctx, first)
}

func (s *State) sweepRoots(ctx context.Context, first log.Checkpoint) error {
	for name, err := range blob.Names(ctx, s.parts.store, "checkpoint/", log.CheckpointName(first)) {
		if err != nil {
			return fmt.Errorf("sweep checkpoints: %w", err)
		}
		if c, ok := log.ParseCheckpointName(name); ok && c.At.Compare(first.At) < 0 {
			if err := s.parts.store.Delete(ctx, name); err != nil {
				return fmt.Errorf("sweep checkpoints: %w", err)
			}
		}
	}
	return nil
}
