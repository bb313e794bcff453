package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

const (
	gcLock      = "gc/lock"
	reserveName = "gc/reserve"
	// reserveSize is kept aside in every vault, so that a full disk still has room for what deleting needs to write.
	reserveSize = 1 << 20
	// A pack of which less than half is needed is thin: rewriting it costs no more than it frees.
	thinShare = 0.5
	// Packs under a sixteenth of the full size are small; so many of a kind are rewritten into one.
	smallShare, manySmall = 1.0 / 16, 32
	// Clocks of two hosts may differ by this much.
	clockSkew = 5 * time.Minute
	// A set of condemned packs is dated this much ahead, and must be stored by then: whoever began without seeing it began before its date.
	condemnAhead = 5 * time.Minute
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
// nothing, when a point can not be read whole: what that point needs is not known then.
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
	g.packs = g.v.index.Packs()
	g.marks = newMarks(g.v.index.Snapshot(), g.avoid)
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

// blockers returns who began before t and may still count on what was condemned then.
func blockers(leases []lease, t time.Time) []string {
	var out []string
	own := newLease(newSessionID(), "").Host
	for i := range leases {
		skew := clockSkew
		if leases[i].Host == own {
			skew = 0
		}
		if leases[i].Began.Before(t.Add(skew)) {
			out = append(out, leases[i].String())
		}
	}
	return out
}

// deleteCondemned is the second phase, for what earlier runs condemned.
func (g *collector) deleteCondemned(ctx context.Context) error {
	for _, set := range g.sets {
		t, err := time.Parse(time.RFC3339Nano, set.Time)
		if err != nil {
			return fmt.Errorf("%w: %s: %v", ErrCorrupt, set.name, err)
		}
		if wait := blockers(g.leases, t); len(wait) > 0 {
			g.wait(set.refs, wait)
			continue
		}
		if err := g.delete(ctx, set); err != nil {
			return err
		}
	}
	return nil
}

func (g *collector) wait(refs []pack.Ref, who []string) {
	for _, r := range refs {
		if size, ok := g.packs[r]; ok {
			g.report.WaitingPacks++
			g.report.WaitingBytes += size
		}
	}
	for _, w := range who {
		if !slices.Contains(g.report.WaitingFor, w) {
			g.report.WaitingFor = append(g.report.WaitingFor, w)
		}
	}
}

// delete deletes the packs of a set that no point needs, and then the set: those that a point came to need live on.
func (g *collector) delete(ctx context.Context, set condemnedSet) error {
	if !g.o.DryRun {
		if err := g.lease.check(ctx); err != nil { // another collection may be at work
			return err
		}
	}
	for _, r := range set.refs {
		size, ok := g.packs[r]
		if !ok || g.marks.live[r] > 0 {
			continue
		}
		g.report.FreedBytes += size
		delete(g.packs, r)
		if g.o.DryRun {
			continue
		}
		if err := g.v.store.Delete(ctx, r.Name()); err != nil {
			return fmt.Errorf("delete pack %s: %w", r.ID, err)
		}
	}
	if g.o.DryRun {
		return nil
	}
	if err := g.v.store.Delete(ctx, set.name); err != nil {
		return fmt.Errorf("forget condemned packs: %w", err)
	}
	return nil
}

// condemn is the first phase: it finds dead packs, rewrites thin ones, and condemns both.
func (g *collector) condemn(ctx context.Context) error {
	dead, thin := g.choose()
	g.report.DeadPacks, g.report.ThinPacks = len(dead), len(thin)
	if g.o.DryRun {
		g.estimate(dead, thin)
		return nil
	}
	if len(dead)+len(thin) == 0 {
		return g.tidyIndex(ctx)
	}
	if len(thin) > 0 {
		g.o.Log("rewriting %d thin packs", len(thin))
		err := g.rewrite(ctx, thin)
		if errors.Is(err, blob.ErrNoSpace) { // deleting the dead ones comes first, then there is room
			g.o.Log("no room to rewrite thin packs in this run")
			g.report.ThinPacks, g.report.RewrittenBytes, thin, err = 0, 0, nil, nil
		}
		if err != nil {
			return err
		}
	}
	set := condemnedSet{refs: append(dead, thin...)}
	for _, r := range set.refs {
		set.Packs = append(set.Packs, r.Name())
		delete(g.marks.live, r) // what was needed of a thin one has been rewritten
	}
	if err := g.writeSet(ctx, &set); err != nil {
		return err
	}
	return g.deleteNow(ctx, set)
}

func (g *collector) writeSet(ctx context.Context, set *condemnedSet) error {
	date := time.Now().Add(condemnAhead)
	set.Time = date.UTC().Format(time.RFC3339Nano)
	raw, err := json.Marshal(set)
	if err != nil {
		return err
	}
	set.name = condemnedPrefix + pack.ID(append(make([]byte, 4), sessionBytes()...)).String()
	if err := blob.Put(ctx, g.v.store, set.name, raw); err != nil {
		return fmt.Errorf("condemn packs: %w", err)
	}
	if time.Now().Before(date) {
		return nil
	}
	err = fmt.Errorf("condemn packs: the store took more than %v for a list of them", condemnAhead)
	return errors.Join(err, g.v.store.Delete(ctx, set.name))
}

func sessionBytes() []byte {
	id := newSessionID()
	return id[:]
}

// deleteNow deletes a set at once if nobody can count on it: nobody is at work, and nobody committed a point since we read them.
func (g *collector) deleteNow(ctx context.Context, set condemnedSet) error {
	leases, err := g.v.leases(ctx, g.own)
	if err != nil {
		return err
	}
	t, err := time.Parse(time.RFC3339Nano, set.Time)
	if err != nil {
		return err
	}
	wait := blockers(leases, t)
	known := slices.Sorted(slices.Values(g.points))
	for info, err := range g.v.store.List(ctx, pointsPrefix) {
		if err != nil {
			return fmt.Errorf("list points: %w", err)
		}
		if i := sort.SearchStrings(known, info.Name); i == len(known) || known[i] != info.Name {
			wait = append(wait, "a point that was committed meanwhile; the next run looks at it")
			break
		}
	}
	if len(wait) > 0 {
		g.wait(set.refs, wait)
		return g.tidyIndex(ctx)
	}
	if err := g.delete(ctx, set); err != nil {
		return err
	}
	return g.tidyIndex(ctx)
}

func (g *collector) tidyIndex(ctx context.Context) error {
	g.report.FreedBytes -= g.report.RewrittenBytes
	if err := g.v.index.Refresh(ctx); err != nil {
		return err
	}
	err := g.v.index.Merge(ctx)
	if errors.Is(err, blob.ErrNoSpace) {
		return nil // a larger index is no harm
	}
	return err
}

// choose returns the packs to delete and those to rewrite.
func (g *collector) choose() (dead, thin []pack.Ref) {
	busy := make(map[string]bool)
	for i := range g.leases {
		busy[g.leases[i].Session] = true
	}
	small := map[pack.Kind][]pack.Ref{}
	for r, size := range g.packs {
		if g.avoid[r] || busy[r.ID.String()[:24]] {
			continue
		}
		live := g.marks.live[r]
		limit := g.v.opts.PackSize
		if r.Kind == pack.Meta {
			limit = metaPackSize
		}
		switch {
		case live == 0:
			dead = append(dead, r)
		case float64(live) < thinShare*float64(size-pack.HeaderSize-pack.FooterSize):
			thin = append(thin, r)
		case float64(size) < smallShare*float64(limit):
			small[r.Kind] = append(small[r.Kind], r)
		}
	}
	for _, refs := range small {
		if len(refs) >= manySmall {
			thin = append(thin, refs...)
		}
	}
	return dead, thin
}

func (g *collector) estimate(dead, thin []pack.Ref) {
	for _, r := range dead {
		g.report.FreedBytes += g.packs[r]
	}
	for _, r := range thin {
		g.report.RewrittenBytes += g.marks.live[r]
		g.report.FreedBytes += g.packs[r] - g.marks.live[r]
	}
}

// rewrite copies what is needed of thin packs into new ones. When it returns they are durable.
func (g *collector) rewrite(ctx context.Context, thin []pack.Ref) error {
	s, err := g.v.begin(ctx, "garbage collection")
	if err != nil {
		return err
	}
	defer s.end(context.WithoutCancel(ctx))
	for _, r := range thin {
		if err := g.rewriteOne(ctx, s, r); err != nil {
			return fmt.Errorf("rewrite pack %s: %w", r.ID, err)
		}
	}
	if err := s.data.finish(ctx); err != nil {
		return err
	}
	return s.meta.finish(ctx)
}

func (g *collector) rewriteOne(ctx context.Context, s *Session, r pack.Ref) error {
	entries, err := g.v.packs.Table(ctx, g.v.store, r, g.v.id, g.packs[r])
	if err != nil {
		return err
	}
	to := s.data
	if r.Kind == pack.Meta {
		to = s.meta
	}
	for i := range entries {
		e := &entries[i]
		needed, err := g.needed(ctx, r, e)
		if err != nil {
			return err
		}
		if !needed {
			continue
		}
		sealed := make([]byte, e.Stored)
		if err := g.v.reader.ReadSealed(ctx, r, sealed, int64(e.Offset)); err != nil {
			return err
		}
		encoded, err := g.v.reader.Unseal(r, e, sealed)
		if err != nil {
			return err
		}
		w, err := to.borrow(ctx)
		if err != nil {
			return err
		}
		if _, err := w.Append(e.ID, int(e.Plain), encoded, e.Encoding); err != nil {
			return err
		}
		g.report.RewrittenBytes += int64(e.Stored) + pack.EntrySize
		if err := to.giveBack(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

// needed reports whether this very copy of a chunk is the one that was marked.
func (g *collector) needed(ctx context.Context, r pack.Ref, e *pack.Entry) (bool, error) {
	locs, err := g.marks.snap.FindAll(ctx, e.ID)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(locs, func(l index.Loc) bool { return l.Ref == r && l.Offset == e.Offset })
	return i >= 0 && g.marks.has(&locs[i]), nil
}
