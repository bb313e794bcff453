package gc

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

const (
	// maxOp is how many bytes an operation takes at most: an entry has room for it.
	maxOp = log.MaxEntry - 1<<10
	// freedPoints is how many purges one entry tells of.
	freedPoints = 256
	// lookAtOnce is how many rows are looked up between two looks at the state.
	lookAtOnce = 256
	// walkWays is how many points are read at the same time, of each warmRows rows that are freed
	// at most; findWays how many rows are looked up.
	walkWays = 8
	warmRows = 256
	findWays = 8
	// manyVoids is how often others may have done what was about to be told, before a run leaves it
	// to them.
	manyVoids = 16
)

// freedSize is about how many bytes a freed entry takes; tests want short ones.
var freedSize = 40 << 10

var (
	errFull     = errors.New("the entry is full") // ends a walk
	errTooLarge = errors.New("the entry would be too large")
)

// walkPurges tells for all pending purges, in their order, what they freed.
func (c *collector) walkPurges(ctx context.Context) error {
	if err := c.Index.Sync(ctx); err != nil {
		return err
	}
	if c.o.DryRun {
		return c.walkDry(ctx)
	}
	for voids := 0; voids < manyVoids; {
		f := c.newFreeing()
		more, err := f.fill(ctx)
		if err == nil && len(f.walks) == 0 {
			return nil
		}
		if err == nil {
			err = f.tell(ctx)
		}
		switch {
		case errors.Is(err, state.ErrVoid) || errors.Is(err, errStale):
			// Another collector was faster, or packs were moved: what is pending now is another
			// matter.
			voids++
			if err := c.Journal.Read(ctx); err != nil {
				return err
			}
			if err := c.Index.Sync(ctx); err != nil {
				return err
			}
		case errors.Is(err, errTooLarge) && c.freedSize > 1<<10:
			c.freedSize /= 2
		case err != nil:
			return err
		case !more:
			return nil
		}
	}
	return nil
}

// walkDry finds out what the pending purges freed and keeps it to itself.
func (c *collector) walkDry(ctx context.Context) error {
	f := c.newFreeing()
	f.limit = 1 << 62
	if _, err := f.fill(ctx); err != nil {
		return err
	}
	c.dry = f.packs
	c.report.PurgedPoints, c.report.FreedChunks = len(f.walks), f.rows
	return nil
}

// freeings gathers what a freed entry is to tell.
type freeings struct {
	*collector
	packs   map[log.ObjectID]*freeing
	walks   []state.Walk
	found   []found // rows that were found and not looked up yet
	last    []byte  // cursor of the last row that was looked up
	size    int     // about what the entry takes
	limit   int
	rows    int64
	condemn uint64 // the last condemnation as of which copies were chosen
}

// found is a row that is to be freed.
type found struct {
	at place
	id chunk.ID
}

// freeing is what is known of a pack, and what is about to be freed of it.
type freeing struct {
	good, damaged bool
	shared, freed bitmap // freed with what is about to be
	share         float64
	slots         bitmap // about to be freed
	bytes         uint64
}

func (c *collector) newFreeing() *freeings {
	return &freeings{collector: c, packs: map[log.ObjectID]*freeing{}, limit: c.freedSize}
}

// fill walks pending purges until the entry is full, and reports whether any may be left.
func (f *freeings) fill(ctx context.Context) (more bool, err error) {
	pending, err := f.pending(ctx)
	if err != nil {
		return false, err
	}
	for i := range pending {
		if f.size >= f.limit {
			return true, nil
		}
		if i%walkWays == 0 {
			if err := f.warm(ctx, pending[i:min(i+walkWays, len(pending))]); err != nil {
				return true, err
			}
		}
		done, err := f.point(ctx, &pending[i])
		if err != nil || !done {
			return true, err
		}
	}
	return len(pending) == freedPoints, nil
}

func (f *freeings) pending(ctx context.Context) (all []state.Pending, err error) {
	err = f.Journal.View(ctx, func(s *state.State) error {
		all = nil
		f.condemn = s.LastCondemn()
		return s.Pending(ctx, func(p state.Pending) bool {
			all = append(all, p)
			return len(all) < freedPoints || f.o.DryRun
		})
	})
	return all, err
}

// point walks one purged point, and reports whether it came to its end.
func (f *freeings) point(ctx context.Context, p *state.Pending) (done bool, err error) {
	walk := state.Walk{Point: p.ID, At: p.At, From: p.Cursor}
	f.last = p.Cursor
	visit := func(at place, id chunk.ID) error { return f.add(ctx, at, id) }
	err = f.walkPoint(ctx, p, visit, func(err error) { f.trouble("beside purged point %x: %v", p.ID, err) })
	if err == nil || isDamage(err) {
		if lookErr := f.lookUp(ctx); lookErr != nil {
			err = lookErr
		}
	}
	f.found = nil
	switch {
	case errors.Is(err, errFull):
		walk.To = f.last
	case isDamage(err):
		if stale := f.stillPending(ctx, p); stale != nil {
			return false, stale
		}
		f.trouble("what purged point %x freed is not known to the end, and waits for a full collection: %v", p.ID, err)
		walk.Done = true
	case err != nil:
		return false, fmt.Errorf("walk purged point %x: %w", p.ID, err)
	default:
		walk.Done = true
	}
	f.walks = append(f.walks, walk)
	f.size += 16 + 8 + 4 + 1 + 8 + len(walk.From) + len(walk.To) + 80 // and a link of the graph
	return walk.Done, nil
}

// add takes in a row that is to be freed. It returns errFull if the entry has enough.
func (f *freeings) add(ctx context.Context, at place, id chunk.ID) error {
	f.found = append(f.found, found{at, id})
	if len(f.found) < lookAtOnce {
		return nil
	}
	return f.lookUp(ctx)
}

// lookUp chooses for each row that was found the copy that is freed, until the entry has enough.
func (f *freeings) lookUp(ctx context.Context) error {
	places := make([][]index.Loc, len(f.found))
	numbers := make([]int, len(f.found))
	for i := range numbers {
		numbers[i] = i
	}
	if err := each(ctx, findWays, numbers, func(ctx context.Context, i int) (err error) {
		places[i], err = f.Index.FindAll(ctx, f.found[i].id)
		return err
	}); err != nil {
		return err
	}
	return f.Journal.View(ctx, func(s *state.State) error {
		for i, all := range places {
			if f.size >= f.limit {
				return errFull
			}
			if err := f.choose(ctx, s, all); err != nil {
				return err
			}
			f.last = f.found[i].at.cursor()
		}
		f.found = f.found[:0]
		return nil
	})
}

// choose frees one copy that is neither freed nor shared, if there is one: rather of a damaged
// pack, or of one in which little lives.
func (f *freeings) choose(ctx context.Context, s *state.State, all []index.Loc) error {
	var best *index.Loc
	var of *freeing
	for i := range all {
		l := &all[i]
		p, err := f.pack(ctx, s, l.Pack.ID)
		if err != nil {
			return err
		}
		if !p.good || p.shared.has(l.Slot) || p.freed.has(l.Slot) {
			continue
		}
		if best == nil || p.damaged && !of.damaged || p.damaged == of.damaged && p.share < of.share {
			best, of = l, p
		}
	}
	if best == nil {
		return nil // all copies are shared, and wait for a full mark
	}
	if len(of.slots) == 0 {
		f.size += 24 + 4 + 8
	}
	n := len(of.slots)
	of.slots.set(best.Slot)
	of.freed.set(best.Slot)
	of.bytes += uint64(best.Stored)
	f.size += len(of.slots) - n
	f.rows++
	return nil
}

// pack returns what is known of a pack.
func (f *freeings) pack(ctx context.Context, s *state.State, id log.ObjectID) (*freeing, error) {
	if p := f.packs[id]; p != nil {
		return p, nil
	}
	known, good, err := s.Pack(ctx, id)
	if err != nil {
		return nil, err
	}
	damaged, err := s.IsDamaged(ctx, id)
	if err != nil {
		return nil, err
	}
	p := &freeing{good: good, damaged: damaged, shared: known.Shared, freed: bytes.Clone(known.Freed)}
	p.share = 1 - float64(known.FreedBytes)/float64(known.Object.Size+1)
	f.packs[id] = p
	return p, nil
}

// tell appends the entry. Copies are chosen anew, errStale, where packs were condemned since: the
// rows have moved.
func (f *freeings) tell(ctx context.Context) error {
	var slots []state.Count
	for id, p := range f.packs {
		if len(p.slots) > 0 {
			slots = append(slots, state.Count{Pack: id, Shared: p.slots, Bytes: p.bytes})
		}
	}
	sortCounts(slots)
	err := f.append(ctx, func(ctx context.Context, s *state.State) ([]log.Op, error) {
		if s.LastCondemn() != f.condemn {
			return nil, errStale
		}
		op := state.Freed{Slots: slots, Walk: f.walks}
		if err := op.Check(ctx, s); err != nil {
			return nil, err
		}
		out := op.Op()
		if out.Size() > maxOp {
			return nil, errTooLarge
		}
		return []log.Op{out}, nil
	})
	if err != nil {
		return err
	}
	for _, w := range f.walks {
		if w.Done {
			f.report.PurgedPoints++
		}
	}
	f.report.FreedChunks += f.rows
	return nil
}
