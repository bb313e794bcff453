package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
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

// CopyPoint brings a point of one vault into another, with its files, under the same ID. Only what differs from the point nearest in time that both have, or had,
// is read, and only what the target lacks is stored. A point that the target has is left alone. The copy needs nothing of the source afterwards;
// notes are not copied, since they speak of what was tried with the source. After an error, or a kill, there is no point in the target, but
// what was stored is not stored again by the next attempt, unless garbage is collected in between. It returns ErrNoPoint when the source has no such
// point, and what [Session.Commit] returns.
func CopyPoint(ctx context.Context, from, to *Vault, id point.ID, o CopyOptions) (CopyReport, error) {
	r, err := from.OpenReader(ctx)
	if err != nil {
		return CopyReport{}, err
	}
	defer r.Close()
	p, err := from.pointByID(ctx, id)
	if err != nil {
		return CopyReport{}, err
	}
	if there, err := to.pointByID(ctx, id); err == nil {
		return CopyReport{Point: there, There: true}, nil
	} else if !errors.Is(err, ErrNoPoint) {
		return CopyReport{}, err
	}
	s, err := to.Begin(ctx)
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
	base       string // root in the target of what the changes apply to
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
		t.out, err = c.session.PutDisk(ctx, DiskInput{Size: t.size, Base: t.base, BaseUsed: t.baseUsed, Data: t.data, Zero: t.zero, Source: t.source, Progress: c.progress})
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

// compare sets what of t must be read and stored, given a tree that both vaults have; pair may be nil.
func (c *copier) compare(ctx context.Context, t *copyTree, pair *treePair) error {
	var base chunk.ID
	if pair != nil {
		base, t.base, t.baseUsed = pair.source, pair.target, pair.used
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

// keyOf returns the key of the i-th tree of p. A managed disk is the same under whatever name whichever machine has it.
func keyOf(p *point.RecoveryPoint, i int, t treeOf) pairKey {
	if i < len(p.Disks) && p.Disks[i].ManagedID != "" {
		return pairKey{size: t.size, managed: p.Disks[i].ManagedID}
	}
	return pairKey{name: t.name, size: t.size}
}

// pairs returns the trees of this machine that both vaults have: of the point nearest in time for each disk and file. A point has the same
// ID in all vaults; where the source has deleted it, another of its points may still have the same tree.
func (c *copier) pairs(ctx context.Context) (map[pairKey]*treePair, error) {
	theirs, err := c.from.Summaries(ctx, nil)
	if err != nil {
		return nil, err
	}
	ours, err := c.to.Summaries(ctx, nil)
	if err != nil {
		return nil, err
	}
	byID := make(map[point.ID]*point.RecoveryPoint, len(theirs))
	alive := make(map[string]bool) // roots that a point of the source has
	for _, p := range theirs {
		byID[p.ID] = p
		maps.Copy(alive, rootSet(p))
	}
	out := make(map[pairKey]*treePair)
	for _, q := range ours {
		var there map[string]string
		switch p := byID[q.ID]; {
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

// addPairs adds the trees of q, a point of the target whose trees in the source are there, where they are nearer than those known.
func (c *copier) addPairs(out map[pairKey]*treePair, q *point.RecoveryPoint, there map[string]string, alive map[string]bool) error {
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
	err := c.session.Commit(ctx, &p)
	if errors.Is(err, blob.ErrExist) { // another copied it meanwhile
		there, err := c.to.pointByID(ctx, p.ID)
		return CopyReport{Point: there, There: true}, err
	}
	if err != nil {
		return CopyReport{}, err
	}
	c.report.Point = &p
	return c.report, nil
}

// pointByID returns the point with exactly this ID, or ErrNoPoint.
func (v *Vault) pointByID(ctx context.Context, id point.ID) (*point.RecoveryPoint, error) {
	if !isID(string(id)) {
		return nil, fmt.Errorf("%w: %q is no ID of one", ErrNoPoint, string(id))
	}
	raw, err := blob.Get(ctx, v.store, pointsPrefix+string(id))
	if errors.Is(err, blob.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoPoint, id)
	}
	if err != nil {
		return nil, fmt.Errorf("read point %s: %w", id, err)
	}
	return v.openPoint(pointsPrefix+string(id), raw)
}
