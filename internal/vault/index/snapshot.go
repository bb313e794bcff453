package index

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Snapshot is the index as it was at one moment: positions in it stay valid. It is safe for
// concurrent use.
type Snapshot struct {
	ix       *Index
	segments []*segment
	base     []int64 // position of each segment's first row, and after the last that of young rows
	young    *young
	first    []int64 // position of each young pack's first row
	rows     int64
	bad      map[log.ObjectID]struct{} // packs that were not good
}

// Snapshot returns the index as it is after a Sync; young rows are given positions too.
func (ix *Index) Snapshot(ctx context.Context) (s *Snapshot, err error) {
	if err := ix.Sync(ctx); err != nil {
		return nil, fmt.Errorf("take a snapshot: %w", err)
	}
	err = ix.retry(ctx, func() error {
		if s, err = ix.snapshot(ctx); err != nil {
			return err
		}
		return s.findBad(ctx)
	})
	if err != nil {
		return nil, fmt.Errorf("take a snapshot of the index: %w", err)
	}
	return s, nil
}

func (ix *Index) snapshot(ctx context.Context) (*Snapshot, error) {
	for {
		ix.mu.RLock()
		if len(ix.missing) == 0 {
			defer ix.mu.RUnlock()
			s := &Snapshot{ix: ix, segments: ix.segments, young: ix.young.clone(), bad: make(map[log.ObjectID]struct{})}
			s.number()
			return s, nil
		}
		ix.mu.RUnlock()
		if err := ix.fill(ctx); err != nil {
			return nil, err
		}
	}
}

// clone returns the packs of which entries tell, and their rows.
func (y *young) clone() *young {
	c := newYoung()
	for _, p := range y.packs {
		if !p.known {
			c.add(p)
		}
	}
	return c
}

func (s *Snapshot) number() {
	for _, seg := range s.segments {
		s.base = append(s.base, s.rows)
		s.rows += seg.rows
	}
	for _, p := range s.young.packs {
		s.first = append(s.first, s.rows)
		s.rows += int64(len(p.entries))
	}
}

// findBad asks of all packs whether they are good.
func (s *Snapshot) findBad(ctx context.Context) error {
	var ids []log.ObjectID
	ask := func() error {
		good, err := s.ix.askGood(ctx, ids)
		for i, yes := range good {
			if !yes {
				s.bad[ids[i]] = struct{}{}
			}
		}
		ids = ids[:0]
		return err
	}
	add := func(o originOf) error {
		if n := len(ids); n > 0 && ids[n-1] == o.object.ID {
			return nil
		}
		if ids = append(ids, o.object.ID); len(ids) == askAtOnce {
			return ask()
		}
		return nil
	}
	for _, seg := range s.segments {
		if err := seg.eachOrigin(ctx, add); err != nil {
			return err
		}
	}
	for _, p := range s.young.packs {
		if err := add(originOf{object: p.object}); err != nil {
			return err
		}
	}
	return ask()
}

// Positions returns how many positions there are.
func (s *Snapshot) Positions() int64 { return s.rows }

// FindAll returns every place of id that was good then, with its position. It returns ErrStale when
// a segment is gone meanwhile.
func (s *Snapshot) FindAll(ctx context.Context, id chunk.ID) ([]Loc, error) {
	var all []Loc
	s.young.find(&id, func(p *youngPack, slot int) {
		l := p.loc(slot)
		l.Pos = s.first[s.young.byID[p.object.ID]] + int64(slot)
		all = append(all, l)
	})
	for i, seg := range s.segments {
		locs, err := s.ix.locs(ctx, seg, &id)
		if err != nil {
			return nil, s.stale(ctx, wrap(id, err))
		}
		for _, l := range locs {
			l.Pos += s.base[i]
			all = append(all, l)
		}
	}
	return slices.DeleteFunc(all, func(l Loc) bool { return !s.good(l.Pack.ID) }), nil
}

func (s *Snapshot) good(id log.ObjectID) bool {
	_, bad := s.bad[id]
	return !bad
}

// stale tells the index of a segment that is lost.
func (s *Snapshot) stale(ctx context.Context, err error) error {
	var lost *lostError
	if !errors.As(err, &lost) {
		return err
	}
	if err := s.ix.lose(ctx, lost); err != nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrStale, err)
}

// Each calls do for every row whose pack was good then, in any order, until it reports false. What
// do is given is its own only until it returns. Each returns ErrStale when a segment is gone
// meanwhile; do has seen some rows then.
func (s *Snapshot) Each(ctx context.Context, do func(*Loc) bool) error {
	for i, seg := range s.segments {
		more, err := s.eachOf(ctx, seg, s.base[i], do)
		if err != nil {
			return s.stale(ctx, fmt.Errorf("walk over the index: %w", err))
		}
		if !more {
			return nil
		}
	}
	for i, p := range s.young.packs {
		if !s.good(p.object.ID) {
			continue
		}
		for slot := range p.entries {
			l := p.loc(slot)
			l.Pos = s.first[i] + int64(slot)
			if !do(&l) {
				return nil
			}
		}
	}
	return nil
}

func (s *Snapshot) eachOf(ctx context.Context, seg *segment, pos int64, do func(*Loc) bool) (more bool, err error) {
	var l Loc
	for c := (cursor{seg: seg}); ; pos++ {
		raw, err := c.head(ctx)
		if err != nil || raw == nil {
			return err == nil, err
		}
		r := parseRow(raw)
		c.pass()
		o, err := seg.origin(ctx, s.ix.cache, r.origin)
		if err != nil {
			return false, err
		}
		l = r.loc(&o, pos)
		if s.good(o.object.ID) && !do(&l) {
			return false, nil
		}
	}
}

// Close gives back what the snapshot holds.
func (s *Snapshot) Close() { s.young, s.segments = newYoung(), nil }
