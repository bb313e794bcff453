package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

const (
	// Clocks of two hosts may differ by this much.
	clockSkew = 5 * time.Minute
	// A set of condemned packs is dated this much ahead, and must be stored by then: whoever began without seeing it began before its date.
	condemnAhead = 5 * time.Minute
)

// condemnedSet is a list of packs that wait for deletion.
type condemnedSet struct {
	Time  string   `json:"time"`  // RFC 3339 with nanoseconds: who began before it may not have seen the set
	Packs []string `json:"packs"` // object names

	name string
	refs []pack.Ref
}

const condemnedPrefix = "gc/condemned-"

func (v *Vault) condemnedSets(ctx context.Context) ([]condemnedSet, error) {
	var sets []condemnedSet
	for info, err := range v.store.List(ctx, condemnedPrefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list condemned packs: %w", err)
		}
		raw, err := blob.Get(ctx, v.store, info.Name)
		if errors.Is(err, blob.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read condemned packs: %w", err)
		}
		set := condemnedSet{name: info.Name}
		if err := json.Unmarshal(raw, &set); err != nil {
			return nil, fmt.Errorf("%w: %s: %v", ErrCorrupt, strings.TrimPrefix(info.Name, "gc/"), err)
		}
		for _, n := range set.Packs {
			r, err := pack.ParseName(n)
			if err != nil {
				return nil, fmt.Errorf("%w: %s: %v", ErrCorrupt, info.Name, err)
			}
			set.refs = append(set.refs, r)
		}
		sets = append(sets, set)
	}
	return sets, nil
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
	for info, err := range g.v.store.List(ctx, pointsPrefix, "") {
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
