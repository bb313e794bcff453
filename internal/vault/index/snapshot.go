package index

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// Snapshot is the index as it was at one moment: positions in it stay valid. It is safe for concurrent use.
type Snapshot struct {
	ix       *Index
	segments []*segment
	young    map[chunk.ID][]youngLoc
	packs    map[pack.Ref]int64
}

// Snapshot returns the index as it is now, after a Refresh if packs were not listed since the last Reload: it knows all of them.
func (ix *Index) Snapshot(ctx context.Context) (*Snapshot, error) {
	ix.mu.RLock()
	var s *Snapshot
	if ix.listed {
		s = ix.snapshot()
	}
	ix.mu.RUnlock()
	if s != nil {
		return s, nil
	}
	return ix.refresh(ctx)
}

// snapshot is for who holds ix.mu.
func (ix *Index) snapshot() *Snapshot {
	return &Snapshot{ix: ix, segments: ix.segments, young: maps.Clone(ix.delta), packs: maps.Clone(ix.packs)}
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

// Packs returns all packs with their sizes in bytes. The caller must not change it.
func (s *Snapshot) Packs() map[pack.Ref]int64 { return s.packs }

// Missing returns the packs that segments name and the store does not hold in the size they had.
func (s *Snapshot) Missing() map[pack.Ref]int64 {
	gone := make(map[pack.Ref]int64)
	for _, seg := range s.segments {
		for _, p := range seg.packs {
			if size, ok := s.packs[p.ref]; !ok || size != p.size {
				gone[p.ref] = p.size
			}
		}
	}
	return gone
}
