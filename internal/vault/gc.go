package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// GCOptions tunes CollectGarbage.
type GCOptions struct {
	DryRun bool
	Log    func(format string, args ...any) // progress in words; nil discards
}

// GCReport says what garbage collection did, or with DryRun would do. Sizes are in bytes.
type GCReport struct {
	DryRun         bool     `json:"dry_run"`
	Points         int      `json:"points"`
	Packs          int      `json:"packs"`
	LiveBytes      int64    `json:"live_bytes"` // that points need
	DeadPacks      int      `json:"dead_packs"` // no point needs anything of them
	ThinPacks      int      `json:"thin_packs"` // rewritten
	RewrittenBytes int64    `json:"rewritten_bytes"`
	FreedBytes     int64    `json:"freed_bytes"`   // packs deleted, less what was rewritten
	WaitingPacks   int      `json:"waiting_packs"` // condemned, but somebody who began before may count on them
	WaitingBytes   int64    `json:"waiting_bytes"`
	WaitingFor     []string `json:"waiting_for,omitempty"` // who that is
	Notes          int      `json:"notes"`                 // left by points that are gone, deleted
}

// CollectGarbage deletes what no point needs, and rewrites packs of which little is needed. Sessions and readers go on meanwhile: a pack is first
// condemned, which keeps later sessions from counting on it, and deleted when everybody who began before has ended, by this run or
// the next. A run that was killed is continued by the next. It returns ErrBusy while another one runs, and ErrCorrupt, having changed
// nothing, when a point cannot be read whole: what that point needs is not known then.
func (v *Vault) CollectGarbage(ctx context.Context, o GCOptions) (GCReport, error) {
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	g := &collector{v: v, o: o, report: GCReport{DryRun: o.DryRun}}
	if !o.DryRun {
		held, unlock, err := v.lockGC(ctx)
		if err != nil {
			return GCReport{}, err
		}
		defer unlock()
		g.lease, g.own = held, held.session()
	}
	if err := g.run(ctx); err != nil {
		return g.report, fmt.Errorf("collect garbage: %w", err)
	}
	return g.report, nil
}

// collector is one run.
type collector struct {
	v      *Vault
	o      GCOptions
	report GCReport
	lease  *heldLease // nil in a dry run
	own    string     // session of the lease

	leases []lease // of others, taken before the points were read
	points []string
	sets   []condemnedSet
	avoid  map[pack.Ref]bool
	packs  map[pack.Ref]int64
	marks  *marks
}

func (g *collector) run(ctx context.Context) error {
	// The order matters: see docs/design/ordering.md. Leases before points, so that whoever has ended has also committed what we read.
	var err error
	if g.leases, err = g.v.leases(ctx, g.own); err != nil {
		return err
	}
	if g.sets, err = g.v.condemnedSets(ctx); err != nil {
		return err
	}
	err = g.mark(ctx)
	for try := 0; errors.Is(err, index.ErrStale) && try < maxStale; try++ {
		err = g.mark(ctx)
	}
	if err != nil {
		return err
	}
	if err := g.deleteNotes(ctx); err != nil {
		return err
	}
	if err := g.deleteCondemned(ctx); err != nil {
		return err
	}
	return g.condemn(ctx)
}

// deleteNotes deletes notes that were being added while their point was deleted, by a process that then died.
func (g *collector) deleteNotes(ctx context.Context) error {
	orphans, err := g.v.orphanNotes(ctx)
	if err != nil {
		return err
	}
	g.report.Notes = len(orphans)
	for _, name := range orphans {
		if g.o.DryRun {
			break
		}
		if err := g.v.store.Delete(ctx, name); err != nil {
			return fmt.Errorf("delete %s, whose point is gone: %w", name, err)
		}
	}
	return nil
}

func (g *collector) mark(ctx context.Context) error {
	// Points before the index: what a point needs was there before the point was.
	needs, err := g.needs(ctx)
	if err != nil {
		return err
	}
	if err := g.v.index.Refresh(ctx); err != nil {
		return err
	}
	if !g.o.DryRun {
		if err := g.v.index.Seal(ctx); err != nil && !errors.Is(err, blob.ErrNoSpace) {
			return err
		}
	}
	g.avoid = make(map[pack.Ref]bool)
	for _, s := range g.sets {
		for _, r := range s.refs {
			g.avoid[r] = true
		}
	}
	damaged, err := g.v.damagedPacks(ctx)
	if err != nil {
		return err
	}
	for r := range damaged {
		g.avoid[r] = true
	}
	snap, err := g.v.index.Snapshot(ctx)
	if err != nil {
		return err
	}
	g.packs = maps.Clone(snap.Packs())
	g.marks = newMarks(snap, g.avoid)
	for i, trees := range needs {
		if err := g.v.markTrees(ctx, g.marks, trees); err != nil {
			return fmt.Errorf("%s: %w; run vault check", g.points[i], err)
		}
	}
	g.report.Points, g.report.Packs = len(g.points), len(g.packs)
	for _, n := range g.marks.live {
		g.report.LiveBytes += n
	}
	g.o.Log("points: %d; they need %d bytes in %d packs", len(g.points), g.report.LiveBytes, len(g.marks.live))
	return nil
}

// needs reads all points and returns the trees of each, in the order of g.points.
func (g *collector) needs(ctx context.Context) (needs [][]treeOf, err error) {
	g.points = nil
	err = g.v.eachPoint(ctx, func(name string, p *point.RecoveryPoint, err error) error {
		if err != nil {
			return fmt.Errorf("%w; run vault check", err)
		}
		trees, err := g.v.roots(p)
		if err != nil {
			return err
		}
		g.points, needs = append(g.points, name), append(needs, trees)
		return nil
	})
	return needs, err
}

func (g *collector) tidyIndex(ctx context.Context) error {
	g.report.FreedBytes -= g.report.RewrittenBytes
	if err := g.v.index.Refresh(ctx); err != nil {
		return err
	}
	for _, tidy := range []func(context.Context) error{g.v.index.Merge, func(ctx context.Context) error { return g.v.writeList(ctx, true) }} {
		if err := tidy(ctx); err != nil && !errors.Is(err, blob.ErrNoSpace) { // larger caches are no harm
			return err
		}
	}
	return nil
}
