package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// CopyOptions tunes CopyPoint.
type CopyOptions struct {
	Progress func(done, total int64) // bytes read of those to read; from several goroutines; nil discards
}

// CopyReport says what CopyPoint did. Sizes are in bytes.
type CopyReport struct {
	Point     *point.RecoveryPoint `json:"point"`      // as it is in the target
	There     bool                 `json:"there"`      // it was there already: nothing was done
	Base      point.ID             `json:"base"`       // both vaults had this point, and only differences from it were read; "" if there was none
	ReadBytes int64                `json:"read_bytes"` // of disks and files, from the source
	SentBytes int64                `json:"sent_bytes"` // by which the target grew: what it lacked
}

// CopyPoint brings a point of one vault into another, with its files, under the same ID; where that
// was used up by a point that was deleted there, under a new one, and the point's CopiedFrom tells.
// Only what differs from the point nearest in time that both have, or had, is read, and only what
// the target lacks is stored. A point that the target has is left alone. The copy needs nothing of
// the source afterwards; notes are not copied, since they speak of what was tried with the source.
// After an error, or a kill, there is no point in the target, but what was stored is not stored
// again by the next attempt, unless garbage is collected in between. It returns ErrNoPoint when the
// source has no such point, and what [Session.Commit] returns.
func CopyPoint(ctx context.Context, from, to *Vault, id point.ID, o CopyOptions) (CopyReport, error) {
	if err := to.ready(ctx); err != nil {
		return CopyReport{}, err
	}
	r, err := from.OpenReader(ctx)
	if err != nil {
		return CopyReport{}, err
	}
	defer r.Close()
	p, err := from.pointByID(ctx, id)
	if err != nil {
		return CopyReport{}, err
	}
	if there, err := to.copyOf(ctx, from, id); err == nil {
		return CopyReport{Point: there, There: true}, nil
	} else if !errors.Is(err, ErrNoPoint) {
		return CopyReport{}, err
	}
	s, err := to.Begin(ctx, "copy/"+string(id))
	if err != nil {
		return CopyReport{}, fmt.Errorf("copy point %s: %w", id, err)
	}
	defer s.Abort()
	c := &copier{from: from, to: to, reader: r, session: s, o: o, p: p}
	if err := c.run(ctx); err != nil {
		return CopyReport{}, fmt.Errorf("copy point %s of %s: %w", id, p.VM, err)
	}
	return c.commit(ctx)
}

// copyOf returns the copy of a point of another vault. It has the point's ID, unless that was used
// up.
func (v *Vault) copyOf(ctx context.Context, from *Vault, id point.ID) (*point.RecoveryPoint, error) {
	there, err := v.pointByID(ctx, id)
	if !errors.Is(err, ErrNoPoint) {
		return there, err
	}
	found, recentErr := v.Recent(ctx, byWord(findCopy, from.ID()+"/"+string(id)), 1)
	if recentErr != nil || len(found) == 0 {
		return nil, errors.Join(recentErr, err)
	}
	return v.pointByID(ctx, found[0].ID)
}

// freeID returns the ID that a copy of a point gets: the point's, unless a point of that ID was
// purged here and others still hang on what is left of it, or it can still be brought back.
func (v *Vault) freeID(ctx context.Context, id point.ID) (point.ID, error) {
	sid, err := stateID(id)
	if err != nil {
		return "", err
	}
	err = v.journal.View(ctx, func(st *state.State) error {
		used, err := st.Used(ctx, sid)
		if used {
			id = point.NewID()
		}
		return err
	})
	return id, err
}

// copier copies one point.
type copier struct {
	from, to *Vault
	reader   *Reader
	session  *Session
	o        CopyOptions
	p        *point.RecoveryPoint

	trees  []*copyTree
	total  int64
	done   atomic.Int64
	report CopyReport
}

// copyTree is a tree on its way.
type copyTree struct {
	treeOf
	source     *Disk
	base       string   // root in the target of what the changes apply to
	of         point.ID // the point of the target that has it
	baseUsed   int64
	data, zero extent.Set // changes, in chunks of the target
	out        DiskOutput
}

func (c *copier) run(ctx context.Context) error {
	if err := c.plan(ctx); err != nil {
		return err
	}
	for _, t := range c.trees {
		var err error
		t.out, err = c.session.PutDisk(ctx,
			DiskInput{Size: t.size, Base: t.base, Of: t.of, BaseUsed: t.baseUsed, Data: t.data, Zero: t.zero,
				Source: t.source, Progress: c.progress})
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		c.report.ReadBytes += t.out.Read
		c.report.SentBytes += t.out.Added
	}
	return nil
}

func (c *copier) progress(n int64) {
	if done := c.done.Add(n); c.o.Progress != nil {
		c.o.Progress(done, c.total)
	}
}

// plan finds out what must be read of each tree.
func (c *copier) plan(ctx context.Context) error {
	trees, err := c.from.roots(c.p)
	if err != nil {
		return err
	}
	pairs, err := c.pairs(ctx)
	if err != nil {
		return err
	}
	for _, t := range trees {
		ct := &copyTree{treeOf: t}
		if ct.source, err = c.reader.Disk(t.root.String(), t.size); err != nil {
			return err
		}
		if err := c.compare(ctx, ct, pairs[keyOf(c.p, len(c.trees), t)]); err != nil {
			return fmt.Errorf("%s: compare with what the target has: %w", t.name, err)
		}
		c.trees = append(c.trees, ct)
		c.total += ct.data.Bytes()
	}
	return nil
}

// compare sets what of t must be read and stored, given a tree that both vaults have; pair may be
// nil.
func (c *copier) compare(ctx context.Context, t *copyTree, pair *treePair) error {
	var base chunk.ID
	if pair != nil {
		base, t.base, t.baseUsed, t.of = pair.source, pair.target, pair.used, pair.point
		c.report.Base = pair.point
	}
	theirs, ours := int64(c.from.conf.ChunkSize), int64(c.to.conf.ChunkSize)
	var differs, data extent.Set
	err := tree.Diff(ctx, c.reader, base, t.chunks, t.root, t.chunks, func(first, count int64) error {
		differs = differs.Append(extent.Extent{Off: first * theirs, Len: min(count*theirs, t.size-first*theirs)})
		return nil
	})
	if err != nil {
		return err
	}
	differs = differs.Align(ours, t.size)
	for _, e := range differs {
		err := eachStored(ctx, c.reader, t.treeOf, e.Off/theirs, (e.End()+theirs-1)/theirs, func(at int64) {
			data = data.Append(extent.Extent{Off: at * theirs, Len: min(theirs, t.size-at*theirs)})
		})
		if err != nil {
			return err
		}
	}
	t.data = data.Align(ours, t.size).Intersect(differs) // the target's chunks may be the smaller ones
	t.zero = differs.Subtract(t.data)
	return nil
}

// eachStored calls visit with those chunks from first up to last, without it, that are not holes.
func eachStored(ctx context.Context, r tree.Reader, t treeOf, first, last int64, visit func(at int64)) error {
	for at := first; at < last; {
		end := min((at/tree.FanOut+1)*tree.FanOut, last)
		leaf, _, err := tree.Leaf(ctx, r, t.root, t.chunks, at/tree.FanOut)
		if err != nil {
			return err
		}
		for ; leaf != nil && at < end; at++ {
			if !leaf.Slots[at%tree.FanOut].IsHole() {
				visit(at)
			}
		}
		at = end
	}
	return nil
}

// treePair is a tree that both vaults have.
type treePair struct {
	point  point.ID
	time   time.Time
	source chunk.ID
	target string
	used   int64 // bytes; 0 for a file
}

// pairKey is what a base has in common with the tree that is made from it.
type pairKey struct {
	name    string
	size    int64
	managed string // ID of the managed disk
}

// keyOf returns the key of the i-th tree of p. A managed disk is the same under whatever name
// whichever machine has it.
func keyOf(p *point.RecoveryPoint, i int, t treeOf) pairKey {
	if i < len(p.Disks) && p.Disks[i].ManagedID != "" {
		return pairKey{size: t.size, managed: p.Disks[i].ManagedID}
	}
	return pairKey{name: t.name, size: t.size}
}

// nearby is how many of a machine's points, the newest, are looked at for one that both vaults
// have.
const nearby = 256

// pairs returns the trees of this machine that both vaults have: of the point nearest in time for
// each disk and file. A point has the same ID in all vaults; where the source has deleted it,
// another of its points may still have the same tree.
func (c *copier) pairs(ctx context.Context) (map[pairKey]*treePair, error) {
	theirs, err := recentOf(ctx, c.from, c.p)
	if err != nil {
		return nil, err
	}
	ours, err := recentOf(ctx, c.to, c.p)
	if err != nil {
		return nil, err
	}
	alive := make(map[string]bool) // roots that a point of the source has
	for _, p := range theirs {
		maps.Copy(alive, rootSet(p))
	}
	out := make(map[pairKey]*treePair)
	for _, q := range ours {
		var there map[string]string
		switch p := theirs[q.ID]; {
		case p != nil:
			there = rootsByName(p)
		case q.CopiedFrom != nil && q.CopiedFrom.Vault == c.from.ID():
			there = q.CopiedFrom.Roots
		}
		if err := c.addPairs(out, q, there, alive); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// recentOf returns the newest points of a point's machine and managed disks.
func recentOf(ctx context.Context, v *Vault, p *point.RecoveryPoint) (map[point.ID]*point.RecoveryPoint, error) {
	words := []By{OfVM(p.VM)}
	for _, d := range p.Disks {
		if d.ManagedID != "" {
			words = append(words, OfManagedDisk(d.ManagedID))
		}
	}
	out := make(map[point.ID]*point.RecoveryPoint)
	for _, by := range words {
		found, err := v.Recent(ctx, by, nearby)
		if err != nil {
			return nil, err
		}
		for _, q := range found {
			out[q.ID] = q
		}
	}
	return out, nil
}

// addPairs adds the trees of q, a point of the target whose trees in the source are there, where
// they are nearer than those known.
func (c *copier) addPairs(out map[pairKey]*treePair, q *point.RecoveryPoint, there map[string]string,
	alive map[string]bool) error {
	trees, err := c.to.roots(q)
	if err != nil {
		return err
	}
	for i, t := range trees {
		root, ok := there[t.name]
		if !ok || !alive[root] {
			continue
		}
		source, err := chunk.ParseID(root)
		if err != nil {
			return fmt.Errorf("%w: point %s, %s: %v", ErrCorrupt, q.ID, t.name, err)
		}
		pair := &treePair{point: q.ID, time: q.Time, source: source, target: t.root.String()}
		if i < len(q.Disks) {
			pair.used = q.Disks[i].Used
		}
		key := keyOf(q, i, t)
		if q.VM != c.p.VM && key.managed == "" {
			continue
		}
		if best := out[key]; best == nil || c.p.Time.Sub(pair.time).Abs() < c.p.Time.Sub(best.time).Abs() {
			out[key] = pair
		}
	}
	return nil
}

// rootsByName returns the roots of a point as Origin has them.
func rootsByName(p *point.RecoveryPoint) map[string]string {
	out := make(map[string]string)
	for _, d := range p.Disks {
		out[d.Name] = d.Root
	}
	for _, f := range p.Files {
		out[fileName(f)] = f.Root
	}
	return out
}

func rootSet(p *point.RecoveryPoint) map[string]bool {
	out := make(map[string]bool)
	for _, root := range rootsByName(p) {
		out[root] = true
	}
	return out
}

// commit writes the point.
func (c *copier) commit(ctx context.Context) (CopyReport, error) {
	p := *c.p
	id, err := c.to.freeID(ctx, p.ID)
	if err != nil {
		return CopyReport{}, err
	}
	p.CopiedFrom = &point.Origin{Vault: c.from.ID(), Point: p.ID, Roots: rootsByName(&p)}
	p.Disks, p.Files = append([]point.Disk(nil), p.Disks...), append([]point.File(nil), p.Files...)
	for i := range p.Disks {
		d, out := &p.Disks[i], c.trees[i].out
		d.Root, d.Used, d.Added = out.Root, out.Used, out.Added
		d.Bitmap = "" // it counts changes for the vault that the point was taken into
	}
	for i := range p.Files {
		p.Files[i].Root = c.trees[len(p.Disks)+i].out.Root
	}
	p.ID = id
	err = c.session.Commit(ctx, &p)
	if errors.Is(err, state.ErrExists) { // another copied it meanwhile
		there, err := c.to.copyOf(ctx, c.from, c.p.ID)
		return CopyReport{Point: there, There: true}, err
	}
	if err != nil {
		return CopyReport{}, err
	}
	c.report.Point = &p
	return c.report, nil
}
