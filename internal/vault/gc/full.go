package gc

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/mark"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// manyMarks is how often a full collection begins again because others collected meanwhile.
const manyMarks = 3

// full marks what all points need and frees the rest: what was shared and nobody needs any more,
// what a walk could not tell, copies that are stored twice.
func (c *collector) full(ctx context.Context) error {
	if !c.o.Full {
		return nil
	}
	var err error
	for range manyMarks {
		if err = c.markAndFree(ctx); !isOvertaken(err) {
			break
		}
		if err := c.Journal.Read(ctx); err != nil {
			return err
		}
	}
	switch {
	case errors.Is(err, errLost) || isOvertaken(err):
		c.trouble("the full collection did not come to its end: %v", err)
		return nil
	case err != nil:
		return fmt.Errorf("full collection: %w", err)
	}
	c.report.Full = true
	return nil
}

// isOvertaken reports whether others collected while this one did.
func isOvertaken(err error) bool {
	return errors.Is(err, errStale) || errors.Is(err, index.ErrStale) || errors.Is(err, state.ErrVoid)
}

// errLost reports that it cannot be known what a point needs.
var errLost = errors.New("what points need is not known, as part of it is lost")

// marking is a full mark.
type marking struct {
	*collector
	asOf
	condemn uint64 // the last condemnation before it
	points  []state.ID
	damaged map[log.ObjectID]bool
	open    map[log.ObjectID]bool // packs that sessions needed which were open as of the mark
	snap    *index.Snapshot
	live    *mark.Live
	lost    error

	free  map[log.ObjectID]*freeing // packs, as they are known
	slots map[log.ObjectID]*freeing // what the next entry frees
	keep  map[log.ObjectID]bitmap   // and shares
	size  int
	rows  int64
}

func (c *collector) markAndFree(ctx context.Context) error {
	m := &marking{collector: c, damaged: map[log.ObjectID]bool{}, free: map[log.ObjectID]*freeing{}}
	m.reset()
	if err := m.begin(ctx); err != nil {
		return err
	}
	if err := c.Index.Sync(ctx); err != nil {
		return err
	}
	var err error
	if m.snap, err = c.Index.Snapshot(ctx); err != nil {
		return err
	}
	defer m.snap.Close()
	c.o.Log("marking what %d points need", len(m.points))
	m.live, err = mark.Mark(ctx, mark.Options{Rows: m.snap, Nodes: c.Nodes, Points: m.each(ctx), Memory: c.o.Memory,
		Damaged: func(id log.ObjectID) bool { return m.damaged[id] },
		Lost:    func(id chunk.ID, why error) { m.lost = cmp.Or(m.lost, fmt.Errorf("%w: %s: %w", errLost, id, why)) }})
	if err = errors.Join(err, m.lost); err != nil {
		return m.overtaken(ctx, err)
	}
	packs, err := m.doubtful(ctx)
	if err != nil {
		return err
	}
	for _, p := range packs {
		if err := m.settle(ctx, p); err != nil {
			return err
		}
	}
	return m.tell(ctx)
}

// overtaken returns errStale where others condemned packs since the mark began: what could not be
// read may be gone for that. Otherwise it returns why.
func (m *marking) overtaken(ctx context.Context, why error) error {
	if !errors.Is(why, errLost) {
		return why
	}
	if err := m.Journal.Read(ctx); err != nil {
		return err
	}
	return m.Journal.View(ctx, func(s *state.State) error {
		if s.LastCondemn() != m.condemn {
			return errStale
		}
		return why
	})
}

func (m *marking) reset() {
	m.slots, m.keep, m.size, m.rows = map[log.ObjectID]*freeing{}, map[log.ObjectID]bitmap{}, 0, 0
}

// begin notes as of which entry is marked, and which points live there. Purged ones that nobody has
// walked count as living: what they free is said by the walk, copy by copy. So do the packs of open
// sessions: their commit does not count on them anew.
func (m *marking) begin(ctx context.Context) error {
	return m.scan(ctx, func(s *state.State) (err error) {
		m.at, m.count, m.condemn, m.points = s.At(), s.Count(), s.LastCondemn(), nil
		if m.open, err = openNeeds(ctx, s); err != nil {
			return err
		}
		if err := s.Pending(ctx, func(p state.Pending) bool {
			if !m.o.DryRun { // what a dry run walked is still pending
				m.points = append(m.points, p.ID)
			}
			return true
		}); err != nil {
			return err
		}
		if err := s.DamagedPacks(ctx, func(id log.ObjectID) bool {
			m.damaged[id] = true
			return true
		}); err != nil {
			return err
		}
		return s.Points(ctx, func(p state.Point) bool {
			m.points = append(m.points, p.ID)
			return true
		})
	})
}

// each yields what the points need. One that was purged since counts: others may have built on it.
func (m *marking) each(ctx context.Context) iter.Seq2[mark.Point, error] {
	return func(yield func(mark.Point, error) bool) {
		for _, id := range m.points {
			p, err := m.point(ctx, id)
			if !yield(p, err) || err != nil {
				return
			}
		}
	}
}

func (m *marking) point(ctx context.Context, id state.ID) (p mark.Point, err error) {
	var of state.Point
	if err := m.Journal.View(ctx, func(s *state.State) error {
		var there bool
		of, there, err = s.PointOrPending(ctx, id)
		if err == nil && !there {
			err = errStale
		}
		return err
	}); err != nil {
		return p, err
	}
	if p.Trees, err = m.Trees(ctx, &of); isDamage(err) {
		err = fmt.Errorf("%w: point %x: %w", errLost, id, err)
	}
	p.Manifest, _ = m.Manifest(&of)
	return p, err
}

// doubtful returns the packs that have rows of which the mark says something else than their bits,
// with those rows.
func (m *marking) doubtful(ctx context.Context) (packs []*doubt, err error) {
	bits := map[log.ObjectID]*freeing{}
	if err := m.scan(ctx, func(s *state.State) error {
		return s.EachPack(ctx, func(p state.Pack) bool {
			if p.Object.Kind == log.Pack && p.Added <= m.count && !m.open[p.Object.ID] {
				freed := bitmap(bytes.Clone(p.Freed))
				if f := m.dry[p.Object.ID]; f != nil {
					freed = bytes.Clone(f.freed)
				}
				bits[p.Object.ID] = &freeing{good: true, shared: p.Shared, freed: freed,
					damaged: m.damaged[p.Object.ID]}
			}
			return true
		})
	}); err != nil {
		return nil, err
	}
	m.free = bits
	found := map[log.ObjectID]*doubt{}
	if err := m.snap.Each(ctx, func(l *index.Loc) bool {
		b := bits[l.Pack.ID]
		if b == nil || m.live.Has(l.Pos) != b.freed.has(l.Slot) {
			return ctx.Err() == nil
		}
		d := found[l.Pack.ID]
		if d == nil {
			d = &doubt{pack: l.Pack}
			found[l.Pack.ID] = d
			packs = append(packs, d)
		}
		d.slots.set(l.Slot)
		return ctx.Err() == nil
	}); err != nil {
		return nil, err
	}
	slices.SortFunc(packs, func(a, b *doubt) int { return bytes.Compare(a.pack.ID[:], b.pack.ID[:]) })
	return packs, ctx.Err()
}

// doubt is the rows of a pack that are marked and freed, or neither.
type doubt struct {
	pack  log.Object
	slots bitmap
}

// tell appends what was gathered.
func (m *marking) tell(ctx context.Context) error {
	op := state.Freed{FromMark: true, Mark: m.at, MarkAt: m.count, Last: m.condemn}
	for id, f := range m.slots {
		op.Slots = append(op.Slots, state.Count{Pack: id, Shared: f.slots, Bytes: f.bytes})
	}
	for id, b := range m.keep {
		op.Keep = append(op.Keep, state.Count{Pack: id, Shared: b})
	}
	sortCounts(op.Slots)
	sortCounts(op.Keep)
	rows := m.rows
	if len(op.Slots)+len(op.Keep) == 0 {
		return nil
	}
	if m.o.DryRun {
		m.addDry()
	} else if err := m.append(ctx, func(ctx context.Context, s *state.State) ([]log.Op, error) {
		op := op
		if err := op.Check(ctx, s); err != nil {
			return nil, err
		}
		return []log.Op{op.Op()}, nil
	}); err != nil && !errors.Is(err, state.ErrNoChange) {
		return err
	}
	m.report.FreedChunks += rows
	m.reset()
	return nil
}

// addDry keeps what would have been freed.
func (m *marking) addDry() {
	for id, f := range m.slots {
		d := m.dry[id]
		if d == nil {
			d = &freeing{}
			m.dry[id] = d
		}
		d.freed, d.bytes = m.free[id].freed, d.bytes+f.bytes
		for i := range uint32(len(f.slots)) * 8 {
			if f.slots.has(i) {
				d.slots.set(i)
			}
		}
	}
}
