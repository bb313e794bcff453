package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// writeSegment writes rows of the given IDs, in their order, all of one pack.
func writeSegment(t testing.TB, src Source, ids []chunk.ID) *segment {
	t.Helper()
	ctx := context.Background()
	w, err := newSegmentWriter(ctx, &src, span{0, 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range ids {
		r := row{entry: pack.Entry{ID: ids[i], Offset: uint32(i)}}
		if err := w.add(r.append(nil)); err != nil {
			t.Fatal(err)
		}
	}
	o := originOf{object: log.Object{ID: log.ObjectID{5}, Kind: log.Pack}}
	if w.endRows() != nil || w.addOrigin(&o) != nil {
		t.Fatal(w.err)
	}
	info, err := w.commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSegment(&src, info)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Every row of a segment is found, with its number, whatever its number of rows is; also where an
// ID has so many rows that they fill blocks and pages.
func TestSegmentHasItsRows(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(13, 14))
	for _, rows := range []int{1, perBlock - 1, perBlock, perBlock + 1, pageRows, pageRows + 1, 2*pageRows + 777} {
		ids := make([]chunk.ID, rows)
		for i := range ids {
			if ids[i] = idOf(i / 3); rows > pageRows && i < pageRows+100 {
				ids[i] = idOf(0)
			}
		}
		slices.SortFunc(ids, func(a, b chunk.ID) int { return bytes.Compare(a[:], b[:]) })
		s := writeSegment(t, source(mem.New(), nil), ids)
		for range 25 {
			n := rng.IntN(rows)
			first := slices.Index(ids, ids[n])
			err := s.find(ctx, newCache(), &ids[n], func(r row, number int64) (bool, error) {
				if number != int64(first) || r.entry.Offset != uint32(first) || r.entry.ID != ids[n] {
					return false, fmt.Errorf("of %d rows %d is found as %d", rows, first, number)
				}
				first++
				return true, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if first < rows && ids[first] == ids[n] {
				t.Fatalf("of %d rows %d is not found", rows, first)
			}
		}
		requireOrder(t, s, ids)
	}
}

// requireOrder fails unless a cursor shows the rows in order.
func requireOrder(t *testing.T, s *segment, ids []chunk.ID) {
	t.Helper()
	c := &cursor{seg: s}
	for i := range ids {
		h, err := c.head(context.Background())
		if err != nil || parseRow(h).entry.Offset != uint32(i) {
			t.Fatalf("row %d is %x, %v", i, h, err)
		}
		c.pass()
	}
	if h, err := c.head(context.Background()); h != nil || err != nil {
		t.Fatalf("after the last row comes %x, %v", h, err)
	}
}

// The filter of a page denies nothing that is there, and all but one in a hundred of what is not;
// in memory page and fence have less than two bytes a row.
func TestFilter(t *testing.T) {
	ids := make([]chunk.ID, pageRows)
	for i := range ids {
		ids[i] = idOf(i)
	}
	slices.SortFunc(ids, func(a, b chunk.ID) int { return bytes.Compare(a[:], b[:]) })
	s := writeSegment(t, source(mem.New(), nil), ids)
	p, err := s.page(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	wrong := 0
	for i := range 2 * pageRows {
		switch id := idOf(i); {
		case i < pageRows && !filterHas(p.filter, &id):
			t.Fatalf("row %d is denied", i)
		case i >= pageRows && filterHas(p.filter, &id):
			wrong++
		}
	}
	if wrong > pageRows/100 {
		t.Errorf("%d of %d are let through", wrong, pageRows)
	}
	if kept := cap(p.fences) + 8; kept >= 2*pageRows { // the filter follows in the same bytes
		t.Errorf("%d bytes are kept for %d rows", kept, pageRows)
	}
}

// However often rows are added, the number of segments and the times a row is rewritten grow with
// the logarithm of the rows.
func TestPlanKeepsSegmentsFew(t *testing.T) {
	var pieces []piece
	var written int64
	const flushes, rows = 4096, 1 << 16
	for i := range uint64(flushes) {
		pieces = append(pieces, piece{span: span{i, i + 1}, rows: rows})
		before := slices.Clone(pieces)
		pieces = plan(pieces, i+1)
		for _, p := range pieces {
			if !slices.ContainsFunc(before[:len(before)-1], func(q piece) bool { return q.span == p.span }) {
				written += p.rows
			}
		}
		if len(pieces) > 3*7 {
			t.Fatalf("after %d flushes there are %d segments", i+1, len(pieces))
		}
	}
	if times := float64(written) / (flushes * rows); times > 7 {
		t.Errorf("a row is written %.1f times", times)
	}
}

// Segments that others wrote of entries that this process has not read are not merged, nor those
// between which something is missing.
func TestPlanLeavesAlone(t *testing.T) {
	var pieces []piece
	for i := range uint64(8) {
		pieces = append(pieces, piece{span: span{i, i + 1}, rows: 70_000})
	}
	if got := plan(slices.Clone(pieces), 3); len(got) != 8 {
		t.Errorf("of 8 segments, 3 of them seen, %d are left", len(got))
	}
	if got := plan(slices.Delete(slices.Clone(pieces), 3, 4), 8); len(got) != 4 || got[3].span != (span{4, 8}) {
		t.Errorf("3 segments, a gap, and 4 become %v", got)
	}
}

// spans behave like the sets of numbers that they are.
func TestSpans(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 16))
	draw := func() (s spans) {
		for at := rng.Uint64N(3); at < 30; {
			to := at + 1 + rng.Uint64N(5)
			s = append(s, span{at, to})
			at = to + rng.Uint64N(4)
		}
		return s
	}
	for range 2000 {
		a, b, most := draw(), draw(), rng.Uint64N(40)
		rest, cut := a.minus(b), a.upTo(most)
		for n := range uint64(45) {
			if rest.has(n) != (a.has(n) && !b.has(n)) || cut.has(n) != (a.has(n) && n <= most) {
				t.Fatalf("%v minus %v is %v; up to %d it is %v", a, b, rest, most, cut)
			}
		}
	}
}

// The table of young rows has what was added and not removed.
func TestYoung(t *testing.T) {
	rng := rand.New(rand.NewPCG(17, 18))
	y := newYoung()
	has := make(map[uint32]*youngPack)
	for n := range uint32(400) {
		p := &youngPack{object: log.Object{ID: log.NewObjectID(log.Volume{}, log.Session{}, n)}}
		for range rng.IntN(40) {
			p.entries = append(p.entries, pack.Entry{ID: idOf(rng.IntN(50))})
		}
		y.add(p)
		has[n] = p
		if rng.IntN(5) == 0 {
			gone := rng.Uint32N(n + 1)
			y.remove(func(p *youngPack) bool { return binary.BigEndian.Uint32(p.object.ID[20:]) == gone })
			delete(has, gone)
		}
	}
	for n := range 50 {
		id, want, got := idOf(n), 0, 0
		for _, p := range has {
			for _, e := range p.entries {
				if e.ID == id {
					want++
				}
			}
		}
		y.find(&id, func(p *youngPack, slot int) {
			if p.entries[slot].ID != id || has[binary.BigEndian.Uint32(p.object.ID[20:])] != p {
				t.Fatalf("chunk %d is found in %v", n, p.object.ID)
			}
			got++
		})
		if got != want {
			t.Errorf("chunk %d has %d rows, not %d", n, got, want)
		}
	}
}
