// Package index finds chunks: an ID's pack, offset and sizes.
//
// It is a cache, never the truth: what it knows stands in the tables of the packs, and whatever is missing, damaged or out of date
// is read from there. Sorted, immutable segments are kept in the vault beside the packs, so that another process opens a
// large vault without reading every pack, and several processes share them without a lock. In memory an
// [Index] keeps 10 bits of filter and a tenth of a byte of fence per chunk, a bounded cache of blocks, and the entries of young packs that no
// segment covers. It is safe for concurrent use.
package index

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	sealEntries  = 1 << 10   // young entries worth a segment when a session ends
	sealPacks    = 32        // packs without a segment before one is written
	fanIn        = 8         // segments of one size class before they are merged
)

// Loc is where a chunk is stored.
type Loc struct {
	Ref pack.Ref
	pack.Entry
	// Pos numbers the entry among all segments of one Snapshot, from 0; -1 for an entry of a young pack.
	Pos int64
	// Cut says that the pack has not the size it was written with: what is left of it may be readable, but is not to be counted on.
	Cut bool
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
	packs    map[pack.Ref]int64 // all packs, with their size
	bad      map[pack.Ref]error // packs whose table can not be read
	young    map[pack.Ref]young // packs that no segment covers
	delta    map[chunk.ID][]youngLoc
	damaged  []string // names of segments that could not be read

	unreadable map[string]bool // segments that loaded, but have damage further inside
}

// Open reads what the store holds.
func Open(ctx context.Context, src Source) (*Index, error) {
	ix := &Index{src: src, blocks: newBlockCache(), packs: map[pack.Ref]int64{}, bad: map[pack.Ref]error{}, young: map[pack.Ref]young{}, delta: map[chunk.ID][]youngLoc{}, unreadable: map[string]bool{}}
	if err := ix.Refresh(ctx); err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return ix, nil
}

// Refresh takes in what other processes did: new packs and segments, and those gone. It ends all validity of Loc.Pos.
func (ix *Index) Refresh(ctx context.Context) error {
	packs := make(map[pack.Ref]int64)
	for _, prefix := range []string{"data/", "meta/"} {
		for info, err := range ix.src.Store.List(ctx, prefix) {
			if err != nil {
				return fmt.Errorf("list packs: %w", err)
			}
			if ref, err := pack.ParseName(info.Name); err == nil {
				packs[ref] = info.Size
			}
		}
	}
	segments, damaged, err := ix.loadSegments(ctx)
	if err != nil {
		return err
	}
	covered := make(map[pack.Ref]bool)
	for _, s := range segments {
		s.see(packs)
		for i, p := range s.packs {
			if s.now[i] == p.size {
				covered[p.ref] = true
			}
		}
	}
	return ix.adopt(ctx, packs, segments, damaged, covered)
}

func (ix *Index) loadSegments(ctx context.Context) ([]*segment, []string, error) {
	ix.mu.RLock()
	have := make(map[string]*segment, len(ix.segments))
	for _, s := range ix.segments {
		have[s.name] = s
	}
	unreadable := maps.Clone(ix.unreadable)
	ix.mu.RUnlock()
	var segments []*segment
	var damaged []string
	for info, err := range ix.src.Store.List(ctx, Prefix) {
		if err != nil {
			return nil, nil, fmt.Errorf("list index segments: %w", err)
		}
		if unreadable[info.Name] {
			damaged = append(damaged, info.Name)
			continue
		}
		if old := have[info.Name]; old != nil {
			fresh := *old // readers of the old list keep their own
			fresh.now = make([]int64, len(old.packs))
			segments = append(segments, &fresh)
			continue
		}
		s, err := loadSegment(ctx, ix.src.Store, info, ix.src.Vault)
		switch {
		case isDamaged(err):
			damaged = append(damaged, info.Name)
		case errors.Is(err, blob.ErrNotExist): // merged away since the listing; what it covered is covered by another or read from packs
		case err != nil:
			return nil, nil, fmt.Errorf("load index segment %s: %w", info.Name, err)
		default:
			segments = append(segments, s)
		}
	}
	var base int64
	for _, s := range segments {
		s.base = base
		base += s.entries
	}
	return segments, damaged, nil
}

// adopt reads the tables of packs that no segment covers and installs the new state.
func (ix *Index) adopt(ctx context.Context, packs map[pack.Ref]int64, segments []*segment, damaged []string, covered map[pack.Ref]bool) error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.segments, ix.packs, ix.damaged = segments, packs, damaged
	clear(ix.bad) // what a mirror has repaired since is read again
	maps.DeleteFunc(ix.young, func(r pack.Ref, y young) bool {
		size, exists := packs[r]
		return !exists || covered[r] || size != y.size
	})
	keep := make(map[chunk.ID][]youngLoc, len(ix.delta))
	for id, locs := range ix.delta {
		for _, l := range locs {
			if _, stays := ix.young[l.ref]; stays {
				keep[id] = append(keep[id], l)
			}
		}
	}
	ix.delta = keep
	for ref, size := range packs {
		if covered[ref] {
			continue
		}
		if _, known := ix.young[ref]; known {
			continue
		}
		entries, err := ix.src.Secret.Table(ctx, ix.src.Store, ref, ix.src.Vault, size)
		switch {
		case errors.Is(err, pack.ErrCorrupt):
			ix.bad[ref] = err
		case errors.Is(err, blob.ErrNotExist):
			delete(packs, ref)
		case err != nil:
			return err
		default:
			ix.addLocked(ref, size, entries)
		}
	}
	return nil
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

// Find returns a place of id that skip does not pass over; skip may be nil.
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
			if s.holds(r) && !yield(s.loc(r, int64(b)*perBlock+int64(i))) {
				return false, nil
			}
		}
	}
	return true, nil
}

func (s *segment) loc(r row, at int64) Loc {
	return Loc{Ref: s.packs[r.pack].ref, Pos: s.base + at, Cut: s.now[r.pack] != s.packs[r.pack].size, Entry: pack.Entry{
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

// Snapshot is the index as it was at one moment: positions in it stay valid. It is safe for concurrent use.
type Snapshot struct {
	ix       *Index
	segments []*segment
	young    map[chunk.ID][]youngLoc
}

// Snapshot returns the index as it is now.
func (ix *Index) Snapshot() *Snapshot {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return &Snapshot{ix: ix, segments: ix.segments, young: maps.Clone(ix.delta)}
}

// ErrStale reports that a segment of a Snapshot is gone or damaged: take a new Snapshot and begin again.
var ErrStale = errors.New("the index was rewritten meanwhile")

// FindAll returns every place of id. It returns ErrStale when another process has merged the segments of s.
func (s *Snapshot) FindAll(ctx context.Context, id chunk.ID) ([]Loc, error) {
	var all []Loc
	for _, l := range s.young[id] {
		all = append(all, Loc{Ref: l.ref, Entry: l.entry, Pos: -1})
	}
	err := s.ix.eachSegment(ctx, s.segments, id, func(l Loc) bool { all = append(all, l); return true })
	if isDamaged(err) || errors.Is(err, blob.ErrNotExist) {
		if err := s.ix.dropUnreadable(ctx, err); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %v", ErrStale, err)
	}
	return all, err
}

// Positions returns how many entries all segments have: Loc.Pos is below it.
func (s *Snapshot) Positions() int64 {
	var n int64
	for _, seg := range s.segments {
		n += seg.entries
	}
	return n
}

// Packs returns all packs with their sizes in bytes.
func (ix *Index) Packs() map[pack.Ref]int64 {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return maps.Clone(ix.packs)
}

// Bad returns the packs whose tables can not be read, with the reason.
func (ix *Index) Bad() map[pack.Ref]error {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return maps.Clone(ix.bad)
}

// Missing returns the packs that segments name and the store does not hold in the size they had.
func (ix *Index) Missing() map[pack.Ref]int64 {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	gone := make(map[pack.Ref]int64)
	for _, s := range ix.segments {
		for _, p := range s.packs {
			if size, ok := ix.packs[p.ref]; !ok || size != p.size {
				gone[p.ref] = p.size
			}
		}
	}
	return gone
}

// Damaged returns the names of segments that could not be read. Their packs' tables were read instead.
func (ix *Index) Damaged() []string {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return slices.Clone(ix.damaged)
}
