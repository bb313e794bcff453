package index

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

const (
	fanIn     = 4  // segments of one class before they are merged
	tooMany   = 64 // segments, before all are merged
	askAtOnce = 1024
)

// piece is a stretch of the log of which a flush writes the rows: segments, or young packs, or
// both.
type piece struct {
	span     span
	rows     int64
	segments []*segment
	young    []*youngPack
	strays   []*youngPack // that belong to what the segments cover
}

// stays reports whether the piece is one segment, as it is.
func (p *piece) stays() bool { return len(p.segments) == 1 && len(p.young) == 0 }

// class grows by one where the number of rows is four times as large.
func class(rows int64) (c int) {
	for rows >>= 15; rows > 0; rows >>= 2 {
		c++
	}
	return c
}

// plan joins pieces, so that the number of segments grows with the logarithm of the rows' and each
// row is rewritten as often. Segments of later entries than seen are left alone: nobody here knows
// which of their packs are good.
func plan(pieces []piece, seen uint64) []piece {
	for {
		from, to := nextMerge(pieces, seen)
		if from == to {
			return pieces
		}
		pieces = slices.Replace(pieces, from, to, join(pieces[from:to]))
	}
}

// nextMerge returns which pieces to join next: the smallest class of which there are fanIn in a row
// of pieces that are no larger.
func nextMerge(pieces []piece, seen uint64) (from, to int) {
	if len(pieces) > tooMany {
		if from, to = stretch(pieces, 0, 1<<30, seen); to-from > 1 {
			return from, to
		}
	}
	for c := range class(maxRows) + 1 {
		for i := 0; i < len(pieces); i = max(to, i+1) {
			from, to = stretch(pieces, i, c, seen)
			n := 0
			for _, p := range pieces[from:to] {
				if class(p.rows) == c {
					n++
				}
			}
			if n >= fanIn {
				return from, to
			}
		}
	}
	return 0, 0
}

// stretch returns the pieces from i on that adjoin each other and are at most of class c.
func stretch(pieces []piece, i, c int, seen uint64) (from, to int) {
	for to = i; to < len(pieces); to++ {
		p := &pieces[to]
		if class(p.rows) > c || p.span.to > seen || to > i && pieces[to-1].span.to != p.span.from {
			break
		}
	}
	return i, to
}

func join(pieces []piece) (all piece) {
	all.span = span{pieces[0].span.from, pieces[len(pieces)-1].span.to}
	for _, p := range pieces {
		all.rows += p.rows
		all.segments = append(all.segments, p.segments...)
		all.young = append(all.young, p.young...)
		all.strays = append(all.strays, p.strays...)
	}
	return all
}

// rowSource yields rows in the order of their IDs, in their stored form.
type rowSource interface {
	head(ctx context.Context) ([]byte, error) // the row at which it stands; nil at the end
	pass()
	eachOrigin(ctx context.Context, do func(originOf) error) error
}

// youngRows are the rows of young packs, sorted.
type youngRows struct {
	packs   []*youngPack
	order   []youngRow
	origins []originOf
	numbers []map[log.Salt]uint32 // of origins, per pack
	buf     []byte
}

// youngRow is where a row stands, with what it is sorted by first.
type youngRow struct {
	fence      uint64
	pack, slot uint32
}

func newYoungRows(packs []*youngPack) *youngRows {
	y := &youngRows{packs: packs, numbers: make([]map[log.Salt]uint32, len(packs))}
	for i, p := range packs {
		y.numbers[i] = make(map[log.Salt]uint32, 1)
		for slot := range p.entries {
			y.order = append(y.order, youngRow{fenceOf(&p.entries[slot].ID), uint32(i), uint32(slot)})
			salt := p.entries[slot].Salt
			if _, ok := y.numbers[i][salt]; !ok {
				y.numbers[i][salt] = uint32(len(y.origins))
				y.origins = append(y.origins, originOf{p.object, salt})
			}
		}
	}
	slices.SortFunc(y.order, func(a, b youngRow) int {
		if a.fence != b.fence {
			return cmp.Compare(a.fence, b.fence)
		}
		return bytes.Compare(y.entry(a).ID[:], y.entry(b).ID[:])
	})
	return y
}

func (y *youngRows) entry(r youngRow) *pack.Entry { return &y.packs[r.pack].entries[r.slot] }

func (y *youngRows) head(context.Context) ([]byte, error) {
	if len(y.order) == 0 {
		return nil, nil
	}
	if len(y.buf) == 0 {
		at := y.order[0]
		r := row{entry: *y.entry(at), slot: uint16(at.slot)}
		r.origin = y.numbers[at.pack][r.entry.Salt]
		y.buf = r.append(y.buf)
	}
	return y.buf, nil
}

func (y *youngRows) pass() { y.order, y.buf = y.order[1:], y.buf[:0] }

func (y *youngRows) eachOrigin(_ context.Context, do func(originOf) error) error {
	for _, o := range y.origins {
		if err := do(o); err != nil {
			return err
		}
	}
	return nil
}

// merger writes the rows of several sources as one segment, without those of packs that are no
// longer good.
type merger struct {
	ix      *Index
	sources []rowSource
	numbers [][]uint32 // of each source's origins in what is written, or dead
	heads   [][]byte
	live    uint32
}

const dead = ^uint32(0)

// merge returns what it wrote, without a name if no row was left.
func (ix *Index) merge(ctx context.Context, p *piece) (info segmentInfo, err error) {
	m := &merger{ix: ix}
	for _, s := range p.segments {
		m.sources = append(m.sources, &cursor{seg: s})
	}
	if young := append(slices.Clone(p.young), p.strays...); len(young) > 0 {
		m.sources = append(m.sources, newYoungRows(young))
	}
	if err := m.number(ctx); err != nil || m.live == 0 {
		return segmentInfo{}, err
	}
	w, err := newSegmentWriter(ctx, &ix.src, p.span)
	if err != nil {
		return segmentInfo{}, err
	}
	defer w.abort()
	if err := m.writeRows(ctx, w); err != nil || w.info.rows == 0 {
		return segmentInfo{}, err
	}
	if err := m.writeOrigins(ctx, w); err != nil {
		return segmentInfo{}, err
	}
	return w.commit(ctx)
}

// number gives the origins of good packs their numbers.
func (m *merger) number(ctx context.Context) error {
	for _, src := range m.sources {
		var numbers []uint32
		var ids []log.ObjectID
		ask := func() error {
			good, err := m.ix.askGood(ctx, ids)
			for _, yes := range good {
				n := dead
				if yes {
					n = m.live
					m.live++
				}
				numbers = append(numbers, n)
			}
			ids = ids[:0]
			return err
		}
		err := src.eachOrigin(ctx, func(o originOf) error {
			if ids = append(ids, o.object.ID); len(ids) == askAtOnce {
				return ask()
			}
			return nil
		})
		if err == nil && len(ids) > 0 {
			err = ask()
		}
		if err != nil {
			return err
		}
		m.numbers = append(m.numbers, numbers)
	}
	return nil
}

func (m *merger) writeRows(ctx context.Context, w *segmentWriter) (err error) {
	m.heads = make([][]byte, len(m.sources))
	for i := range m.sources {
		if err := m.advance(ctx, i); err != nil {
			return err
		}
	}
	for {
		least := -1
		for i, h := range m.heads {
			if h != nil && (least < 0 || bytes.Compare(h[:chunk.IDSize], m.heads[least][:chunk.IDSize]) < 0) {
				least = i
			}
		}
		if least < 0 {
			return w.endRows()
		}
		if err := w.add(m.heads[least]); err != nil {
			return err
		}
		m.sources[least].pass()
		if err := m.advance(ctx, least); err != nil {
			return err
		}
	}
}

// advance sets the head of source i to its next row of a good pack.
func (m *merger) advance(ctx context.Context, i int) error {
	for {
		h, err := m.sources[i].head(ctx)
		if err != nil || h == nil {
			m.heads[i] = nil
			return err
		}
		n := originNumber(h)
		if int64(n) >= int64(len(m.numbers[i])) {
			return &lostError{seg: m.sources[i].(*cursor).seg, why: errDamaged}
		}
		if n = m.numbers[i][n]; n != dead {
			setOriginNumber(h, n)
			m.heads[i] = h
			return nil
		}
		m.sources[i].pass()
	}
}

func (m *merger) writeOrigins(ctx context.Context, w *segmentWriter) error {
	for i, src := range m.sources {
		n := 0
		err := src.eachOrigin(ctx, func(o originOf) error {
			n++
			if m.numbers[i][n-1] == dead {
				return nil
			}
			return w.addOrigin(&o)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
