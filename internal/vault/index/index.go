// Package index finds chunks: an ID's pack, offset and sizes.
//
// It is a cache, never the truth: what it knows stands in the tables of the packs, and whatever is missing, damaged or out of date
// is read from there. Sorted, immutable segments are kept in the vault beside the packs, so that another process opens a
// large vault without reading every pack, and several processes share them without a lock. Opening reads the segments alone and takes no
// longer the more packs there are: whether a pack is there is looked at when that matters, and Refresh lists them all. In memory an
// [Index] keeps 10 bits of filter and a tenth of a byte of fence per chunk, a bounded cache of blocks, and the entries of young packs that no
// segment covers. It is safe for concurrent use.
package index

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// Prefix is where segments lie in the store.
const Prefix = "index/"

// Thresholds. A segment costs an object and a filter lookup, a pack without one costs a read when the vault is opened.
const (
	spillEntries = 128 << 10 // young entries in memory before they are written out
	fanIn        = 8         // segments of one size class before they are merged
	maxLooks     = 256       // packs looked for one by one before all are listed
)

// Loc is where a chunk is stored.
type Loc struct {
	Ref pack.Ref
	pack.Entry
	// Pos numbers the entry among all segments of one Snapshot, from 0; -1 for an entry of a young pack.
	Pos int64
	// Cut says that the pack has not the size it was written with: what is left of it may be readable, but is not to be counted on.
	Cut bool

	written int64 // size of the pack when it was written
}

// Source reads tables of packs.
type Source struct {
	Store  blob.Store
	Secret *pack.Secret
	Vault  [16]byte
}

type young struct {
	size    int64
	entries int
}

type youngLoc struct {
	ref   pack.Ref
	entry pack.Entry
}

// Index knows every chunk of every pack.
type Index struct {
	src    Source
	blocks *blockCache
	seal   sync.Mutex // one writer of segments at a time

	mu       sync.RWMutex
	segments []*segment
	listed   bool               // packs has all that there were at the last Refresh
	looks    int                // packs that were looked for since the last Reload
	packs    map[pack.Ref]int64 // packs that are known to be there, with their size
	bad      map[pack.Ref]error // packs whose table cannot be read
	young    map[pack.Ref]young // packs that no segment covers
	delta    map[chunk.ID][]youngLoc
	damaged  []string // names of segments that could not be read

	unreadable map[string]bool // segments that loaded, but have damage further inside
}

// Open reads which segments the store holds.
func Open(ctx context.Context, src Source) (*Index, error) {
	ix := &Index{src: src, blocks: newBlockCache(), packs: map[pack.Ref]int64{}, bad: map[pack.Ref]error{}, young: map[pack.Ref]young{}, delta: map[chunk.ID][]youngLoc{}, unreadable: map[string]bool{}}
	if err := ix.Reload(ctx); err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return ix, nil
}

func (ix *Index) addLocked(ref pack.Ref, size int64, entries []pack.Entry) {
	ix.packs[ref] = size
	ix.young[ref] = young{size: size, entries: len(entries)}
	for _, e := range entries {
		ix.delta[e.ID] = append(ix.delta[e.ID], youngLoc{ref, e})
	}
}

// Add takes in a pack that was just committed, and writes a segment when many entries have gathered.
func (ix *Index) Add(ctx context.Context, ref pack.Ref, size int64, entries []pack.Entry) error {
	ix.mu.Lock()
	ix.addLocked(ref, size, entries)
	spill := len(ix.delta) >= spillEntries
	ix.mu.Unlock()
	if spill {
		return ix.Seal(ctx)
	}
	return nil
}

// Find returns a place of id that skip does not pass over; skip may be nil. Whether the pack is still there is not looked at: who reads finds
// out, and who counts on it asks FindKept.
func (ix *Index) Find(ctx context.Context, id chunk.ID, skip func(Loc) bool) (Loc, bool, error) {
	var found Loc
	ok := false
	err := ix.each(ctx, id, func(l Loc) bool {
		if skip != nil && skip(l) {
			return true
		}
		found, ok = l, true
		return false
	})
	return found, ok, err
}

// FindKept returns a place of id that skip does not pass over, in a pack that is in the store now, whole.
func (ix *Index) FindKept(ctx context.Context, id chunk.ID, skip func(Loc) bool) (Loc, bool, error) {
	var failed error
	loc, found, err := ix.Find(ctx, id, func(l Loc) bool {
		if failed != nil || skip(l) {
			return true
		}
		kept := l.Pos < 0
		if !kept {
			var size int64
			size, failed = ix.look(ctx, l.Ref)
			kept = failed == nil && size == l.written
		}
		return !kept
	})
	return loc, found, errors.Join(err, failed)
}

// FindAll returns every place of id.
func (ix *Index) FindAll(ctx context.Context, id chunk.ID) ([]Loc, error) {
	var all []Loc
	err := ix.each(ctx, id, func(l Loc) bool { all = append(all, l); return true })
	return all, err
}

// each calls yield with each place of id until it returns false. A segment that another process merged away meanwhile makes it start anew.
func (ix *Index) each(ctx context.Context, id chunk.ID, yield func(Loc) bool) error {
	for try := 0; ; try++ {
		err := ix.eachOnce(ctx, id, yield)
		if try == 2 || !(errors.Is(err, blob.ErrNotExist) || isDamaged(err)) {
			return err
		}
		if err := ix.dropUnreadable(ctx, err); err != nil {
			return err
		}
	}
}

// dropUnreadable makes the index whole again after a segment could not be read: one that is damaged is passed over from now on, so
// that its packs' tables are read instead. Merge deletes it.
func (ix *Index) dropUnreadable(ctx context.Context, cause error) error {
	var damaged *damagedError
	if errors.As(cause, &damaged) {
		ix.mu.Lock()
		ix.unreadable[damaged.name] = true
		ix.mu.Unlock()
	}
	return ix.Refresh(ctx)
}

func (ix *Index) eachOnce(ctx context.Context, id chunk.ID, yield func(Loc) bool) error {
	ix.mu.RLock()
	young, segments := ix.delta[id], ix.segments
	ix.mu.RUnlock()
	for _, l := range young {
		if !yield(Loc{Ref: l.ref, Entry: l.entry, Pos: -1}) {
			return nil
		}
	}
	return ix.eachSegment(ctx, segments, id, yield)
}

// eachSegment looks id up in segments, which nobody changes.
func (ix *Index) eachSegment(ctx context.Context, segments []*segment, id chunk.ID, yield func(Loc) bool) error {
	for _, s := range segments {
		if s.entries == 0 || !s.mayHave(&id) {
			continue
		}
		more, err := ix.eachIn(ctx, s, id, yield)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

func (ix *Index) eachIn(ctx context.Context, s *segment, id chunk.ID, yield func(Loc) bool) (more bool, err error) {
	f := fenceOf(&id)
	for b := s.firstBlock(&id); b < s.blocks && s.fence[b] <= f; b++ {
		rows, err := ix.blocks.get(ctx, ix.src.Store, s, b)
		if err != nil {
			return false, err
		}
		for i := searchRows(rows, &id); i < len(rows)/entrySize; i++ {
			r := parseRow(rows[i*entrySize:])
			if r.id != id {
				break
			}
			if size, ok := s.holds(r); ok && !yield(s.loc(r, int64(b)*perBlock+int64(i), size)) {
				return false, nil
			}
		}
	}
	return true, nil
}

// loc returns the place of a row, whose pack has size bytes now.
func (s *segment) loc(r row, at, size int64) Loc {
	return Loc{Ref: s.packs[r.pack].ref, Pos: s.base + at, Cut: size != s.packs[r.pack].size, written: s.packs[r.pack].size, Entry: pack.Entry{
		ID: r.id, Offset: r.offset, Stored: r.stored, Plain: r.plain & 0xffffff, Encoding: chunk.Encoding(r.plain >> 24)}}
}

// Remembered returns the packs that segments say hold id, even those that are gone.
func (ix *Index) Remembered(ctx context.Context, id chunk.ID) ([]pack.Ref, error) {
	ix.mu.RLock()
	segments := ix.segments
	ix.mu.RUnlock()
	var refs []pack.Ref
	for _, s := range segments {
		if s.entries == 0 || !s.mayHave(&id) {
			continue
		}
		for b := s.firstBlock(&id); b < s.blocks && s.fence[b] <= fenceOf(&id); b++ {
			rows, err := ix.blocks.get(ctx, ix.src.Store, s, b)
			if isDamaged(err) || errors.Is(err, blob.ErrNotExist) {
				break // it remembers no more
			}
			if err != nil {
				return nil, err
			}
			for i := searchRows(rows, &id); i < len(rows)/entrySize; i++ {
				if r := parseRow(rows[i*entrySize:]); r.id == id && int(r.pack) < len(s.packs) {
					refs = append(refs, s.packs[r.pack].ref)
				}
			}
		}
	}
	return refs, nil
}

// Damaged returns the names of segments that could not be read. Their packs' tables were read instead.
func (ix *Index) Damaged() []string {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return slices.Clone(ix.damaged)
}
