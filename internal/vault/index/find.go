package index

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// maxTries is how often a look-up begins again because segments are lost.
const maxTries = 2 * maxSegments

// goodPacks remembers which packs are good, between one Sync and the next.
type goodPacks struct {
	mu  sync.RWMutex
	ids map[log.ObjectID]struct{}
}

const maxGood = 1 << 17

func newGoodPacks() *goodPacks { return &goodPacks{ids: make(map[log.ObjectID]struct{})} }

func (g *goodPacks) has(id log.ObjectID) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	_, ok := g.ids[id]
	return ok
}

func (g *goodPacks) add(id log.ObjectID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.ids) >= maxGood {
		clear(g.ids)
	}
	g.ids[id] = struct{}{}
}

// look is what a look-up works on.
type look struct {
	young    []Loc
	known    int // the first so many of young need not be asked for
	segments []*segment
	good     *goodPacks
	missing  bool
}

func (ix *Index) look(id *chunk.ID) (l look) {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	ix.young.find(id, func(p *youngPack, slot int) {
		l.young = append(l.young, p.loc(slot))
		if p.known {
			last := len(l.young) - 1
			l.young[l.known], l.young[last] = l.young[last], l.young[l.known]
			l.known++
		}
	})
	l.segments, l.good, l.missing = ix.segments, ix.good, len(ix.missing) > 0
	return l
}

func (p *youngPack) loc(slot int) Loc {
	return Loc{Pack: p.object, Slot: uint32(slot), Entry: p.entries[slot], Pos: -1}
}

// Find returns a place of id in a good pack, or one of Know, that skip does not pass over; skip may
// be nil.
func (ix *Index) Find(ctx context.Context, id chunk.ID, skip func(*Loc) bool) (found Loc, ok bool, err error) {
	err = ix.retry(ctx, func() error {
		return ix.each(ctx, &id, func(l *Loc) bool {
			if skip != nil && skip(l) {
				return true
			}
			found, ok = *l, true
			return false
		})
	})
	return found, ok, wrap(id, err)
}

// FindAll returns every such place of id.
func (ix *Index) FindAll(ctx context.Context, id chunk.ID) (all []Loc, err error) {
	err = ix.retry(ctx, func() error {
		all = nil
		return ix.each(ctx, &id, func(l *Loc) bool {
			for i := range all {
				if all[i].Pack.ID == l.Pack.ID && all[i].Slot == l.Slot {
					return true
				}
			}
			all = append(all, *l)
			return true
		})
	})
	return all, wrap(id, err)
}

func wrap(id chunk.ID, err error) error {
	if err != nil {
		return fmt.Errorf("look chunk %s up: %w", id, err)
	}
	return nil
}

// retry does something until it meets no lost segment.
func (ix *Index) retry(ctx context.Context, do func() error) error {
	for try := 0; ; try++ {
		err := do()
		if err == nil {
			return nil
		}
		var lost *lostError
		if !errors.As(err, &lost) || try == maxTries {
			return err
		}
		if err := ix.lose(ctx, lost); err != nil {
			return err
		}
	}
}

// each calls yield with each place of id that counts, until it reports false.
func (ix *Index) each(ctx context.Context, id *chunk.ID, yield func(*Loc) bool) error {
	l := ix.look(id)
	for l.missing {
		if err := ix.fill(ctx); err != nil {
			return err
		}
		l = ix.look(id)
	}
	for i := range l.young[:l.known] {
		if !yield(&l.young[i]) {
			return nil
		}
	}
	if more, err := ix.eachGood(ctx, l.good, l.young[l.known:], yield); err != nil || !more {
		return err
	}
	for i := len(l.segments) - 1; i >= 0; i-- {
		locs, err := ix.locs(ctx, l.segments[i], id)
		if err != nil {
			return err
		}
		if more, err := ix.eachGood(ctx, l.good, locs, yield); err != nil || !more {
			return err
		}
	}
	return nil
}

// locs returns the rows of id in a segment; Pos is their number in it.
func (ix *Index) locs(ctx context.Context, s *segment, id *chunk.ID) (locs []Loc, err error) {
	err = s.find(ctx, ix.cache, id, func(r row, number int64) (bool, error) {
		o, err := s.origin(ctx, ix.cache, r.origin)
		if err == nil {
			locs = append(locs, r.loc(&o, number))
		}
		return true, err
	})
	return locs, err
}

func (r *row) loc(o *originOf, pos int64) Loc {
	l := Loc{Pack: o.object, Slot: uint32(r.slot), Entry: r.entry, Pos: pos}
	l.Salt = o.salt
	return l
}

func (ix *Index) eachGood(ctx context.Context, good *goodPacks, locs []Loc, yield func(*Loc) bool) (more bool,
	err error) {
	if len(locs) == 0 {
		return true, nil
	}
	ok, err := ix.areGood(ctx, good, locs)
	if err != nil {
		return false, err
	}
	for i := range locs {
		locs[i].Pos = -1
		if ok[i] && !yield(&locs[i]) {
			return false, nil
		}
	}
	return true, nil
}

// areGood reports which of locs stand in packs that are good.
func (ix *Index) areGood(ctx context.Context, good *goodPacks, locs []Loc) ([]bool, error) {
	ok := make([]bool, len(locs))
	var ids []log.ObjectID
	var of []int
	for i := range locs {
		if ok[i] = good.has(locs[i].Pack.ID); !ok[i] {
			ids, of = append(ids, locs[i].Pack.ID), append(of, i)
		}
	}
	if len(ids) == 0 {
		return ok, nil
	}
	answer, err := ix.askGood(ctx, ids)
	if err != nil {
		return nil, err
	}
	for k, yes := range answer {
		if ok[of[k]] = yes; yes {
			good.add(ids[k])
		}
	}
	return ok, nil
}

func (ix *Index) askGood(ctx context.Context, ids []log.ObjectID) ([]bool, error) {
	answer, err := ix.src.Packs.Good(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("ask whether packs are good: %w", err)
	}
	if len(answer) != len(ids) {
		return nil, fmt.Errorf("ask whether %d packs are good: %d answers", len(ids), len(answer))
	}
	return answer, nil
}
