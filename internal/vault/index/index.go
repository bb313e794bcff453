// Package index knows where every chunk is stored. It is a cache, never the truth: what it knows
// stands in the tables of the packs that the log's state calls good.
//
// Sorted, immutable segments lie in the store, and a small root says which there are and which
// entries of the log each covers; docs/formats/index.md has both. Whatever of it is missing,
// damaged or out of date is made up for from the packs' tables. In memory an [Index] keeps filter
// and fences, 1.7 bytes a row, of the stretches that were asked for; a bounded cache of blocks; and
// the rows of young packs, which no segment has.
package index

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// ErrStale reports that a segment of a Snapshot is gone or damaged: take a new one and begin again.
var ErrStale = errors.New("the index was rewritten meanwhile")

// Packs is what the log's state says of packs. An Index never holds its lock while it asks.
type Packs interface {
	// Since calls do for the good packs that entries after count added, in the order of the
	// entries, with the count of the entry, until it reports false; and returns the count of the
	// last entry that the answer takes in.
	Since(ctx context.Context, count uint64, do func(o log.Object, added uint64) bool) (upTo uint64, err error)
	// Good reports for each of the packs whether it is good now.
	Good(ctx context.Context, ids []log.ObjectID) ([]bool, error)
}

// Source is what an index is made of.
type Source struct {
	Store  blob.Store
	Secret *pack.Secret
	Key    [32]byte // segments and roots authenticate under it
	Vault  [16]byte
	Packs  Packs
}

// Loc is where a chunk is stored.
type Loc struct {
	Pack log.Object
	Slot uint32
	pack.Entry
	Pos int64 // numbers the row among those of a Snapshot, from 0; -1 in what Index.Find returns
}

// Index knows every row of every good pack. It is safe for concurrent use.
type Index struct {
	src      Source
	tables   func(context.Context, log.Object) ([]pack.Entry, error)
	limits   limits
	cache    *cache
	syncing  gate // one reads tables at a time
	flushing gate // one writes segments at a time; whoever syncs may wait for it, not the other way

	mu         sync.RWMutex
	root       *root      // on which segments stand; nil without one
	segments   []*segment // in the order of their spans; the slice is never changed
	version    int        // of segments
	young      *young
	done       uint64 // packs of entries up to this are known: covered by segments, young, or missing
	seen       uint64 // Packs has told of the entries up to this
	missing    spans  // of entries whose packs' tables must be read, as their segment is lost
	holes      []hole // packs of which the table could not be read
	retryHoles bool
	synced     bool
	begun      uint64          // number of the last Sync that began
	ended      uint64          // number of the last that succeeded
	good       *goodPacks      // what Packs said since the last Sync began
	useless    map[string]bool // names of segments that could not be read
}

// limits are when young rows are written; tests have smaller ones.
type limits struct {
	rows, packs int // a Flush writes what is more
	most        int // rows; a Sync does not gather more
	batch       int // packs whose tables are read before they are taken in
}

var usual = limits{rows: 64 << 10, packs: 64, most: 512 << 10, batch: 32}

// Open reads which segments the store holds. Nothing that is wrong with them is an error: packs'
// tables are read instead.
func Open(ctx context.Context, s Source) (*Index, error) {
	ix := newIndex(s, func(ctx context.Context, o log.Object) ([]pack.Entry, error) {
		return s.Secret.Table(ctx, s.Store, s.Vault, o)
	})
	r, err := s.newestRoot(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	if r != nil {
		ix.done = r.count()
		ix.missing = spans{{0, ix.done}} // until the root says what of it segments cover
		err = ix.adopt(r)
	}
	return ix, err
}

func newIndex(s Source, tables func(context.Context, log.Object) ([]pack.Entry, error)) *Index {
	return &Index{src: s, tables: tables, limits: usual, cache: newCache(), syncing: newGate(), flushing: newGate(),
		young: newYoung(), good: newGoodPacks(), useless: make(map[string]bool)}
}

// gate lets one through at a time.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) enter(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g gate) leave() { <-g }

// Know takes in a pack that this process has just committed, and of which an entry tells soon: its
// rows are found at once, and Sync does not read its table.
func (ix *Index) Know(o log.Object, entries []pack.Entry) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if _, ok := ix.young.byID[o.ID]; !ok {
		ix.young.add(&youngPack{object: o, known: true, entries: entries})
	}
}

// Forget takes back what Know was told: the pack's entry was never made, or a Sync after it did not
// tell of the pack as it is not good any more. A pack of which Sync has learned stays.
func (ix *Index) Forget(id log.ObjectID) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if i, ok := ix.young.byID[id]; ok && ix.young.packs[i].known {
		ix.young.remove(func(p *youngPack) bool { return p.object.ID == id })
	}
}

// Damaged returns the names of segments that could not be read.
func (ix *Index) Damaged() []string {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	var names []string
	for name := range ix.useless {
		names = append(names, name)
	}
	for i := range ix.holes {
		names = append(names, ix.holes[i].object.Name())
	}
	slices.Sort(names)
	return names
}

// covered returns the spans of segments.
func covered(segments []*segment) (s spans) {
	for _, seg := range segments {
		s = append(s, seg.span)
	}
	return s
}

// adopt makes the segments of r those of the index.
func (ix *Index) adopt(r *root) error {
	ix.mu.RLock()
	old := ix.segments
	ix.mu.RUnlock()
	var segments []*segment
	for _, info := range r.segments {
		s, err := ix.segmentOf(old, info)
		if err != nil {
			return err
		}
		segments = append(segments, s)
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	segments = slices.DeleteFunc(segments, func(s *segment) bool { return ix.useless[s.name] })
	before, now := covered(ix.segments), covered(segments)
	all := spans{{0, ix.done}}
	read := all.minus(before).minus(ix.missing)
	ix.install(r, segments)
	ix.missing = all.minus(now).minus(read)
	ix.young.remove(func(p *youngPack) bool { return !p.known && now.has(p.added) })
	ix.holes = slices.DeleteFunc(ix.holes, func(h hole) bool { return now.has(h.added) })
	for _, h := range r.holes {
		if now.has(h.added) {
			ix.holes, ix.retryHoles = append(ix.holes, h), true
		}
	}
	return nil
}

// install is for who holds ix.mu.
func (ix *Index) install(r *root, segments []*segment) {
	var old []*segment
	for _, s := range ix.segments {
		if !hasSegment(segments, s.name) {
			old = append(old, s)
		}
	}
	ix.root, ix.segments = r, segments
	ix.version++
	ix.cache.drop(old)
}

func hasSegment(list []*segment, name string) bool {
	return slices.ContainsFunc(list, func(s *segment) bool { return s.name == name })
}

// segmentOf returns the segment that a root tells of, with what one of old that is the same has
// read.
func (ix *Index) segmentOf(old []*segment, info segmentInfo) (*segment, error) {
	for _, s := range old {
		if s.name == info.name && s.rows == info.rows && s.origins == info.origins {
			same := *s
			same.span = info.span
			return &same, nil
		}
	}
	return newSegment(&ix.src, info)
}

// lose does without a segment that cannot be read: one that is gone was merged by another process,
// whose root tells by what; otherwise the tables of its packs are read before the next look-up.
func (ix *Index) lose(ctx context.Context, e *lostError) error {
	ix.mu.RLock()
	has, mine := hasSegment(ix.segments, e.seg.name), ix.root
	ix.mu.RUnlock()
	if has && e.gone {
		r, err := ix.src.newestRoot(ctx, mine)
		if err != nil {
			return err
		}
		if r.newerThan(mine) {
			if err := ix.adopt(r); err != nil {
				return err
			}
		}
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if !hasSegment(ix.segments, e.seg.name) {
		return nil
	}
	ix.useless[e.seg.name] = true
	var rest []*segment
	for _, s := range ix.segments {
		if s.name == e.seg.name {
			ix.missing = append(ix.missing, spans{s.span}.upTo(ix.done)...)
			slices.SortFunc(ix.missing, func(a, b span) int { return compare(a.from, b.from) })
		} else {
			rest = append(rest, s)
		}
	}
	ix.install(ix.root, rest)
	return nil
}
