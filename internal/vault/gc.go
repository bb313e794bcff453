package vault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault/gc"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
	"github.com/holdfast-vm/holdfast/internal/vault/sweep"
)

// GCOptions tunes CollectGarbage.
type GCOptions struct {
	DryRun bool
	Full   bool // mark all that points need, and free also what several points had in common
	// Patient leaves packs alone for half an hour that are being thinned out: for who collects all
	// the time, and would move twice what is let go of by and by.
	Patient bool
	Memory  sweep.Memory                     // what this observer remembers between collections; nil remembers nothing
	Log     func(format string, args ...any) // progress in words; nil discards
}

// GCReport says what a collection did, or with DryRun would do. Sizes are in bytes.
type GCReport struct {
	gc.Report
	Sweep  sweep.Report `json:"sweep"`
	Purged int          `json:"expired_points"` // deleted ones whose time to be brought back was over
	Notes  int          `json:"notes"`          // left by points that are gone, deleted
}

// CollectGarbage purges the deleted points whose time is over, says what purged points free, moves
// together what is left of packs of which little is needed, and deletes the packs that nothing
// needs. Sessions and readers go on meanwhile, and so may other collections: safety rests on the
// order of the log alone. A run that was cut off is finished by the next.
func (v *Vault) CollectGarbage(ctx context.Context, o GCOptions) (GCReport, error) {
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	var r GCReport
	if err := v.writable(); err != nil && !o.DryRun {
		return r, err
	}
	err := v.collect(ctx, o, &r)
	r.DryRun = o.DryRun
	if err != nil {
		return r, fmt.Errorf("collect garbage: %w", err)
	}
	return r, nil
}

func (v *Vault) collect(ctx context.Context, o GCOptions, r *GCReport) (err error) {
	if _, err := v.look(ctx); err != nil {
		return err
	}
	if err := v.ready(ctx); err != nil {
		return err
	}
	if r.Purged, err = v.purgeDue(ctx, o); err != nil {
		return err
	}
	if !o.DryRun {
		if err := v.releaseGone(ctx); err != nil {
			return err
		}
	}
	g := &gc.Vault{ID: v.id, Store: v.store, Journal: v.journal, Secret: v.packs, Packs: v.reader, Index: v.index,
		Nodes: v.content, Trees: v.treesOf, Manifest: manifestOf}
	var policy gc.Policy
	if !o.Patient {
		policy.Settle = -1
	}
	r.Report, err = gc.Collect(ctx, g, gc.Options{DryRun: o.DryRun, Full: o.Full, Policy: policy, Log: o.Log})
	if err != nil {
		return err
	}
	s := sweep.Sweep{Store: v.store, Keys: v.stKeys, Journal: v.journal, Gone: gone, Memory: o.Memory, Log: o.Log}
	if r.Sweep, err = s.Run(ctx, o.DryRun); err != nil {
		return err
	}
	if r.Notes, err = v.sweepNotes(ctx, o.DryRun); err != nil {
		return err
	}
	if !o.DryRun {
		return v.flush(ctx)
	}
	return nil
}

// purgeDue purges the points whose time to be brought back is over.
func (v *Vault) purgeDue(ctx context.Context, o GCOptions) (n int, err error) {
	due, err := v.due(ctx, time.Now())
	if err != nil || o.DryRun {
		return len(due), err
	}
	for _, id := range due {
		err := v.purge(ctx, pointID(id), stillDue)
		switch {
		case errors.Is(err, ErrNoPoint), errors.Is(err, errBroughtBack):
		case errors.Is(err, ErrHeld):
			o.Log("%v", err)
		case err != nil:
			return n, err
		default:
			n++
		}
	}
	return n, nil
}

// errBroughtBack reports a point that is not deleted any more, or to be kept for longer.
var errBroughtBack = errors.New("the point was brought back")

// stillDue is what expiry asks where the purge would stand: who brought the point back meanwhile
// has it.
func stillDue(ctx context.Context, st *state.State, id state.ID) error {
	until, deleted, err := st.Deleted(ctx, id)
	if err == nil && (!deleted || until > time.Now().UnixMilli()) {
		err = errBroughtBack
	}
	return err
}

// due returns the deleted points whose time was over at now.
func (v *Vault) due(ctx context.Context, now time.Time) (ids []state.ID, err error) {
	err = v.view(ctx, func(st *state.State) error {
		return st.EachDeleted(ctx, func(id state.ID, until int64) bool {
			if until <= now.UnixMilli() {
				ids = append(ids, id)
			}
			return true
		})
	})
	return ids, err
}
