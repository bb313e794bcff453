package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Damage is one fault that Check found.
type Damage struct {
	Object string `json:"object"` // name in the store; "" where a chunk is in no object
	What   string `json:"what"`   // in words
}

// Hit is a part of a point that cannot be read.
type Hit struct {
	Point  point.ID   `json:"point"`
	VM     string     `json:"vm"`
	Disk   string     `json:"disk"`
	Ranges extent.Set `json:"ranges"` // bytes of the disk
}

// CheckOptions tunes Check.
type CheckOptions struct {
	ReadData bool                    // read and verify every stored byte, not only the structure
	Progress func(done, total int64) // bytes; nil discards
}

// CheckReport says what Check found. The vault is whole when Damage is empty.
type CheckReport struct {
	Points   int      `json:"points"`
	Packs    int      `json:"packs"`
	Chunks   int64    `json:"chunks"`
	Bytes    int64    `json:"bytes"` // stored, in packs
	ReadData bool     `json:"read_data"`
	Damage   []Damage `json:"damage"`
	Hits     []Hit    `json:"hits"`
	Warnings []string `json:"warnings,omitempty"` // what was found and is no loss
}

// Check looks at everything in the vault: configuration, keys, points, trees, tables of packs and whether every chunk that a point needs is in
// a pack; with ReadData also every stored byte. It says what is damaged and which ranges of which disks of which points that hits.
// Later sessions store the chunks of damaged packs anew, so that the next full read of a disk heals what it still has.
func (v *Vault) Check(ctx context.Context, o CheckOptions) (CheckReport, error) {
	release, err := v.readLease(ctx)
	if err != nil {
		return CheckReport{}, err
	}
	defer release()
	c := &checker{v: v, o: o, bad: make(map[chunk.ID]bool), badPacks: make(map[pack.Ref]bool)}
	c.report.ReadData = o.ReadData
	c.report.Damage, c.report.Hits = []Damage{}, []Hit{}
	for _, step := range []func(context.Context) error{c.keys, c.packs, c.points, c.notes, c.hits, c.remember} {
		if err := step(ctx); err != nil {
			return c.report, fmt.Errorf("check vault: %w", err)
		}
	}
	return c.report, nil
}

type checker struct {
	v        *Vault
	o        CheckOptions
	report   CheckReport
	manifest []*point.RecoveryPoint
	done     int64

	mu       sync.Mutex
	bad      map[chunk.ID]bool // chunks and nodes of which a copy is missing or damaged
	badPacks map[pack.Ref]bool
}

func (c *checker) damage(object, format string, args ...any) {
	c.report.Damage = append(c.report.Damage, Damage{Object: object, What: fmt.Sprintf(format, args...)})
}

func (c *checker) keys(ctx context.Context) error {
	_, bad, err := readSlots(ctx, c.v.store)
	for _, b := range bad {
		c.damage(strings.Fields(b)[2], "%s: it opens nothing any more; remove it and add the key again", b)
	}
	return err
}

// packs checks the tables of all packs, and what is in them if asked.
func (c *checker) packs(ctx context.Context) error {
	if err := c.v.index.Refresh(ctx); err != nil {
		return err
	}
	for _, name := range c.v.index.Damaged() {
		c.report.Warnings = append(c.report.Warnings, fmt.Sprintf("%s is damaged; the tables of its packs are used instead, and the next session writes it anew", name))
	}
	snap, err := c.v.index.Snapshot(ctx)
	if err != nil {
		return err
	}
	packs := snap.Packs()
	for ref, size := range snap.Missing() {
		if now, ok := packs[ref]; ok { // one that is gone may have been garbage: the points tell
			c.damage(ref.Name(), "it has %d bytes, %d were written", now, size)
			c.badPacks[ref] = true
		}
	}
	var total int64
	for _, size := range packs {
		total += size
	}
	c.report.Packs, c.report.Bytes = len(packs), total
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.v.opts.Workers)
	for ref, size := range packs {
		g.Go(func() error {
			err := c.pack(gctx, ref, size)
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.done += size; c.o.Progress != nil {
				c.o.Progress(c.done, total)
			}
			return err
		})
	}
	return g.Wait()
}

func (c *checker) pack(ctx context.Context, ref pack.Ref, size int64) error {
	entries, err := c.v.packs.Table(ctx, c.v.store, ref, c.v.id, size)
	if errors.Is(err, blob.ErrNotExist) {
		return nil // deleted since it was listed: nobody needs it, or the points say so
	}
	if err != nil && !damage(err) {
		return err
	}
	c.mu.Lock()
	c.report.Chunks += int64(len(entries))
	if err != nil {
		if !c.badPacks[ref] {
			c.damage(ref.Name(), "%v", err)
		}
		c.badPacks[ref] = true
	}
	c.mu.Unlock()
	if err != nil || !c.o.ReadData {
		return nil
	}
	return c.contents(ctx, ref, entries)
}

// contents reads every chunk of a pack and checks that it is what its ID says.
func (c *checker) contents(ctx context.Context, ref pack.Ref, entries []pack.Entry) error {
	key := c.v.sec.chunks
	if ref.Kind == pack.Meta {
		key = c.v.sec.nodes
	}
	r := &packReader{v: c.v, ref: ref, hash: chunk.NewHasher(key), codec: chunk.NewCodec(chunk.Fast), plain: make([]byte, chunk.MaxSize)}
	for i := 0; i < len(entries); {
		if err := ctx.Err(); err != nil {
			return err
		}
		j, n := i, 0
		for j < len(entries) && (j == i || n+int(entries[j].Stored) <= fetchSize) {
			n += int(entries[j].Stored)
			j++
		}
		bad, err := r.check(ctx, entries[i:j], n)
		if err != nil {
			return err
		}
		c.mu.Lock()
		for _, e := range bad {
			c.damage(ref.Name(), "bytes %d to %d are not what was written", e.Offset, e.Offset+e.Stored-1)
			c.bad[e.ID] = true
			c.badPacks[ref] = true
		}
		c.mu.Unlock()
		i = j
	}
	return nil
}

// packReader checks runs of chunks. It belongs to one goroutine.
type packReader struct {
	v             *Vault
	ref           pack.Ref
	hash          *chunk.Hasher
	codec         *chunk.Codec
	sealed, plain []byte
}

// check returns those of neighbouring entries, of n bytes in all, that are damaged.
func (r *packReader) check(ctx context.Context, entries []pack.Entry, n int) ([]pack.Entry, error) {
	if cap(r.sealed) < n {
		r.sealed = make([]byte, max(n, fetchSize))
	}
	sealed := r.sealed[:n]
	err := r.v.reader.ReadSealed(ctx, r.ref, sealed, int64(entries[0].Offset))
	if damage(err) {
		return entries, nil
	}
	if err != nil {
		return nil, err
	}
	var bad []pack.Entry
	for i := range entries {
		e := &entries[i]
		at := e.Offset - entries[0].Offset
		if !r.whole(e, sealed[at:at+e.Stored]) {
			bad = append(bad, *e)
		}
	}
	return bad, nil
}

func (r *packReader) whole(e *pack.Entry, sealed []byte) bool {
	if !e.SumOK(sealed) {
		return false
	}
	encoded, err := r.v.reader.Unseal(r.ref, e, sealed)
	if err != nil {
		return false
	}
	plain := r.plain[:e.Plain]
	return r.codec.Decode(plain, encoded, e.Encoding) == nil && r.hash.ID(plain) == e.ID
}

// points checks that manifests can be read and that everything they need is in a pack.
func (c *checker) points(ctx context.Context) error {
	before := len(c.report.Damage)
	for try := 0; ; try++ {
		err := c.pointsOnce(ctx)
		if !errors.Is(err, index.ErrStale) || try == maxStale {
			return err
		}
		c.report.Damage, c.report.Points, c.manifest = c.report.Damage[:before], 0, nil
	}
}

// maxStale is how often work on a snapshot of the index begins again because other processes merged its segments.
const maxStale = 5

func (c *checker) pointsOnce(ctx context.Context) error {
	// Points before the index: what a point needs was there before the point was.
	if err := c.manifests(ctx); err != nil {
		return err
	}
	if err := c.v.index.Refresh(ctx); err != nil {
		return err
	}
	snap, err := c.v.index.Snapshot(ctx)
	if err != nil {
		return err
	}
	m := newMarks(snap, c.badPacks)
	lost := make(map[chunk.ID]bool)
	m.missing = func(id chunk.ID) { lost[id] = true }
	for _, p := range c.manifest {
		if err := c.v.markPoint(ctx, m, p); err != nil {
			if !damage(err) {
				return err
			}
			c.damage(pointsPrefix+string(p.ID), "%v", err)
		}
	}
	return c.lost(ctx, lost)
}

// manifests reads all points.
func (c *checker) manifests(ctx context.Context) error {
	return c.v.eachPoint(ctx, func(name string, p *point.RecoveryPoint, err error) error {
		switch {
		case damage(err):
			c.damage(name, "the point cannot be read: %v", err)
			return nil
		case err != nil:
			return err
		}
		c.report.Points++
		c.manifest = append(c.manifest, p)
		return nil
	})
}

// notes opens the notes of points. A damaged one is no loss of data: a warning.
func (c *checker) notes(ctx context.Context) error {
	vms := make(map[point.ID]string)
	for _, p := range c.manifest {
		vms[p.ID] = p.VM
	}
	for info, err := range c.v.store.List(ctx, notesPrefix, "") {
		if err != nil {
			return fmt.Errorf("list notes: %w", err)
		}
		id, note, ok := parseNoteName(info.Name)
		vm, known := vms[id]
		if !ok || !known {
			continue // nobody's, or what garbage collection deletes
		}
		switch _, err := c.v.readNote(ctx, info.Name, "", true); {
		case errors.Is(err, ErrCorrupt):
			c.report.Warnings = append(c.report.Warnings, fmt.Sprintf("note %s of point %s of %s is damaged: %v", note[:8], id.Short(), vm, err))
		case err != nil && !errors.Is(err, blob.ErrNotExist):
			return err
		}
	}
	return nil
}

// lost names the packs that chunks without a place were in, as far as the index remembers.
func (c *checker) lost(ctx context.Context, ids map[chunk.ID]bool) error {
	unknown := 0
	gone := make(map[pack.Ref]int)
	for id := range ids {
		c.bad[id] = true
		refs, err := c.v.index.Remembered(ctx, id)
		if err != nil {
			return err
		}
		if len(refs) == 0 {
			unknown++
		}
		for _, r := range refs {
			gone[r]++
		}
	}
	for ref, n := range gone {
		if !c.badPacks[ref] {
			c.damage(ref.Name(), "it is missing, and with it chunks that points need: %d", n)
			c.badPacks[ref] = true
		}
	}
	if unknown > 0 {
		c.damage("", "chunks that points need and no readable pack holds: %d", unknown)
	}
	return nil
}

// hits finds the ranges of disks that damage hits, where it hits every copy of a chunk.
func (c *checker) hits(ctx context.Context) error {
	for id := range c.bad {
		whole, err := c.readable(ctx, id)
		if err != nil {
			return err
		}
		if whole {
			delete(c.bad, id)
		}
	}
	if len(c.bad) == 0 {
		return nil
	}
	for _, p := range c.manifest {
		roots, err := c.v.roots(p)
		if err != nil {
			return err
		}
		for _, t := range roots {
			ranges, err := c.hitsOf(ctx, t)
			if err != nil {
				return err
			}
			if len(ranges) > 0 {
				c.report.Hits = append(c.report.Hits, Hit{Point: p.ID, VM: p.VM, Disk: t.name, Ranges: ranges})
			}
		}
	}
	return nil
}

// readable reports whether some copy of id is whole, as a chunk or as a node.
func (c *checker) readable(ctx context.Context, id chunk.ID) (bool, error) {
	buf := make([]byte, chunk.MaxSize)
	plain, err := c.v.readAny(ctx, id, buf)
	if damage(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return chunk.NewHasher(c.v.sec.chunks).ID(plain) == id || chunk.NewHasher(c.v.sec.nodes).ID(plain) == id, nil
}

// hitsOf returns the ranges of a tree that are below a damaged node or are a damaged chunk.
func (c *checker) hitsOf(ctx context.Context, t treeOf) (extent.Set, error) {
	var list []extent.Extent
	cs := int64(c.v.conf.ChunkSize)
	add := func(first, count int64) {
		list = append(list, extent.Extent{Off: first * cs, Len: min(count*cs, t.size-first*cs)})
	}
	var walk func(id chunk.ID, level int, first int64) error
	walk = func(id chunk.ID, level int, first int64) error {
		if id.IsHole() {
			return nil
		}
		span := tree.SpanOf(level)
		if c.bad[id] {
			add(first, min(span, t.chunks-first))
			return nil
		}
		n, err := c.v.Node(ctx, id, level)
		if err != nil {
			return err
		}
		for i, child := range n.Slots {
			at := first + int64(i)*(span/tree.FanOut)
			if level > 0 {
				err = walk(child, level-1, at)
			} else if c.bad[child] {
				add(at, 1)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	err := walk(t.root, tree.Levels(t.chunks)-1, 0)
	return extent.Of(list...), err
}

const damagedPrefix = "damaged/"

// remember writes down which packs are damaged, so that sessions do not count on them, and forgets those found whole.
func (c *checker) remember(ctx context.Context) error {
	known, err := c.v.damagedPacks(ctx)
	if err != nil {
		return err
	}
	for ref := range c.badPacks {
		if known[ref] {
			continue
		}
		raw, err := json.Marshal(map[string]string{"pack": ref.Name()})
		if err != nil {
			return err
		}
		err = blob.Put(ctx, c.v.store, damagedName(ref), raw)
		if err != nil && !errors.Is(err, blob.ErrExist) {
			c.report.Warnings = append(c.report.Warnings, fmt.Sprintf("could not note for later sessions that %s is damaged: %v", ref.Name(), err))
		}
	}
	for ref := range known {
		if !c.badPacks[ref] && c.o.ReadData {
			if err := c.v.store.Delete(ctx, damagedName(ref)); err != nil {
				c.report.Warnings = append(c.report.Warnings, fmt.Sprintf("could not forget that %s was damaged: %v", ref.Name(), err))
			}
		}
	}
	slices.SortFunc(c.report.Damage, func(a, b Damage) int { return strings.Compare(a.Object+a.What, b.Object+b.What) })
	return nil
}

func damagedName(ref pack.Ref) string {
	return damagedPrefix + strings.ReplaceAll(ref.Name(), "/", "-")
}

// damagedPacks returns the packs that a check found damaged.
func (v *Vault) damagedPacks(ctx context.Context) (map[pack.Ref]bool, error) {
	out := make(map[pack.Ref]bool)
	for info, err := range v.store.List(ctx, damagedPrefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list damaged packs: %w", err)
		}
		if ref, err := pack.ParseName(strings.ReplaceAll(strings.TrimPrefix(info.Name, damagedPrefix), "-", "/")); err == nil {
			out[ref] = true
		}
	}
	return out, nil
}
