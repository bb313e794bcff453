package session_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/session"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// spot is a place of a tree and what is there.
type spot struct {
	line   row.Line
	level  int // -1 for a chunk
	number int64
	id     chunk.ID
}

type rowAt struct {
	pack log.ObjectID
	slot uint32
}

// places is a model of what deleting frees, as the design says it: a purge frees what the point has
// and none of its neighbours has at that place, and of each such thing one copy that is not shared.
type places struct {
	r      *room
	rng    *rand.Rand
	points map[state.ID]*placed
	freed  map[rowAt]bool
}

type placed struct {
	id    point.ID
	lives bool
	bases []state.ID
	has   map[spot]bool
	all   []spot // those of each tree, as a walk that goes from tree to tree meets them
	data  [][]byte
}

func newPlaces(r *room, rng *rand.Rand) *places {
	return &places{r: r, rng: rng, points: map[state.ID]*placed{}, freed: map[rowAt]bool{}}
}

// add takes in a point that was committed.
func (m *places) add(t *testing.T, p *point.RecoveryPoint, data ...[]byte) {
	t.Helper()
	of, row := m.r.rowOf(t, p.ID)
	x := &placed{id: p.ID, lives: true, bases: of.Bases, has: map[spot]bool{}}
	for _, d := range data {
		x.data = append(x.data, bytes.Clone(d))
	}
	for _, tr := range row.Trees {
		m.walk(t, x, tr.Line, tr.Root, tree.Levels(tr.Chunks)-1, 0)
	}
	m.points[of.ID] = x
}

func (m *places) walk(t *testing.T, x *placed, line row.Line, id chunk.ID, level int, number int64) {
	if id.IsHole() {
		return
	}
	x.has[spot{line, level, number, id}] = true
	x.all = append(x.all, spot{line, level, number, id})
	if level < 0 {
		return
	}
	n, err := m.r.Content.Node(context.Background(), id, level)
	if err != nil {
		t.Fatal(err)
	}
	for i, child := range n.Slots {
		m.walk(t, x, line, child, level-1, number*tree.FanOut+int64(i))
	}
}

// neighbours returns the living points that are reached over purged ones only.
func (m *places) neighbours(of state.ID) (found []*placed) {
	seen, todo := map[state.ID]bool{of: true}, []state.ID{of}
	for len(todo) > 0 {
		at := todo[0]
		todo = todo[1:]
		near := slices.Clone(m.points[at].bases)
		for id, x := range m.points {
			if slices.Contains(x.bases, at) {
				near = append(near, id)
			}
		}
		for _, id := range near {
			if seen[id] {
				continue
			}
			seen[id] = true
			if x := m.points[id]; x.lives {
				found = append(found, x)
			} else {
				todo = append(todo, id)
			}
		}
	}
	return found
}

// purge purges a point and frees what that frees.
func (m *places) purge(t *testing.T, id point.ID) {
	t.Helper()
	m.r.purge(t, id)
	of := stateID(t, id)
	x := m.points[of]
	x.lives = false
	near := m.neighbours(of)
	shared := m.sharedBits(t)
	for _, at := range x.all {
		if slices.ContainsFunc(near, func(n *placed) bool { return n.has[at] }) {
			continue
		}
		all := m.copies(t, at.id)
		m.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, c := range all {
			if !m.freed[c] && !shared(c) {
				m.freed[c] = true
				break
			}
		}
	}
}

func (m *places) copies(t *testing.T, id chunk.ID) (all []rowAt) {
	locs, err := m.r.Index.FindAll(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range locs {
		all = append(all, rowAt{l.Pack.ID, l.Slot})
	}
	return all
}

// sharedBits returns a function that reports whether a row has the shared bit.
func (m *places) sharedBits(t *testing.T) func(rowAt) bool {
	bits := map[log.ObjectID][]byte{}
	m.r.view(t, func(ctx context.Context, st *state.State) (err error) {
		var bad error
		err = st.Packs(ctx, func(o log.Object) bool {
			bits[o.ID], _, bad = st.Bits(ctx, o.ID)
			return bad == nil
		})
		if err == nil {
			err = bad
		}
		return err
	})
	return func(at rowAt) bool {
		b := bits[at.pack]
		return int(at.slot/8) < len(b) && b[at.slot/8]>>(at.slot%8)&1 == 1
	}
}

// check demands that everything that a living point needs has a copy that was not freed, or was
// shared since.
func (m *places) check(t *testing.T) {
	t.Helper()
	shared := m.sharedBits(t)
	sound := map[chunk.ID]bool{}
	for _, x := range m.points {
		if !x.lives {
			continue
		}
		for at := range x.has {
			if sound[at.id] {
				continue
			}
			all := m.copies(t, at.id)
			if !slices.ContainsFunc(all, func(c rowAt) bool { return !m.freed[c] || shared(c) }) {
				t.Fatalf("point %s needs %s at level %d, place %d: its %d copies are freed", x.id, at.id, at.level,
					at.number,
					len(all))
			}
			sound[at.id] = true
		}
	}
}

// world is disks that are changed, copied and stored at random.
type world struct {
	*places
	disks []*disk
	next  uint64
}

// paint changes some chunks of a disk: to something new, or to one of few that are often the same.
func (w *world) paint(d *disk) (data, zero extent.Set) {
	var dl, zl []extent.Extent
	chunks := int64(len(d.data)) / testChunk
	for range w.rng.IntN(5) {
		at := w.rng.Int64N(chunks)
		e := extent.Extent{Off: at * testChunk, Len: testChunk}
		p := d.data[e.Off:e.End()]
		switch w.rng.IntN(5) {
		case 0:
			clear(p)
			zl = append(zl, e)
			continue
		case 1, 2:
			w.next++
			binary.LittleEndian.PutUint64(p, w.next<<8)
		default:
			binary.LittleEndian.PutUint64(p, uint64(1+w.rng.IntN(3)))
		}
		dl = append(dl, e)
	}
	data = extent.Of(dl...)
	return data, extent.Of(zl...).Subtract(data)
}

// put stores a batch or several of a disk, on what it was, on what another disk was, or on nothing.
func (w *world) put(ctx context.Context, s *session.Session, d *disk) error {
	switch w.rng.IntN(6) {
	case 0: // a clone
		*d = *w.disks[w.rng.IntN(len(w.disks))].fork()
	case 1:
		d.root, d.of = "", ""
	}
	for range 1 + w.rng.IntN(3) {
		data, zero := w.paint(d)
		if d.root == "" {
			data, zero = whole(d), nil
		}
		if err := put(ctx, s, d, data, zero); err != nil {
			return err
		}
	}
	return nil
}

// living returns a point that lives, nil if there is none.
func (w *world) living() *placed {
	var all []*placed
	for _, x := range w.points {
		if x.lives {
			all = append(all, x)
		}
	}
	slices.SortFunc(all, func(a, b *placed) int { return bytes.Compare([]byte(a.id), []byte(b.id)) })
	if len(all) == 0 {
		return nil
	}
	return all[w.rng.IntN(len(all))]
}

// purgeSome purges a point, if no open session builds on it. Disks that were of it are read whole
// next time.
func (w *world) purgeSome(t *testing.T) {
	x := w.living()
	if x == nil || w.isInUse(t, x.id) {
		return
	}
	w.purge(t, x.id)
	for _, d := range w.disks {
		if d.of == x.id {
			d.root, d.of = "", ""
		}
	}
}

func (w *world) isInUse(t *testing.T, id point.ID) (is bool) {
	w.r.view(t, func(ctx context.Context, st *state.State) error {
		all, err := st.Sessions(ctx)
		for _, s := range all {
			for _, p := range s.Progress {
				is = is || slices.Contains(p.Bases, stateID(t, id))
			}
		}
		return err
	})
	return is
}

// point stores a point. Meanwhile points that it builds on may be purged, and the session may die
// after it has told of its progress.
func (w *world) point(t *testing.T) {
	ctx := context.Background()
	w.r.EveryBytes = int64(w.rng.IntN(2)) // with 0, the default
	before := make([]*disk, len(w.disks))
	for i, d := range w.disks {
		before[i] = d.fork()
	}
	s := w.r.begin(t, "vm")
	var of []*disk
	for _, d := range w.disks {
		if w.rng.IntN(3) == 0 {
			continue
		}
		if err := w.put(ctx, s, d); err != nil {
			t.Fatal(err)
		}
		of = append(of, d)
	}
	if w.rng.IntN(4) == 0 {
		if err := s.Tell(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if w.rng.IntN(4) == 0 {
		s.Abort()
		for i, d := range before {
			*w.disks[i] = *d
		}
		return
	}
	if x := w.living(); x != nil && w.rng.IntN(3) == 0 {
		if err := s.Keep(ctx, x.id); err != nil {
			t.Fatal(err)
		}
		_, row := w.r.rowOf(t, x.id)
		of = append(of, &disk{data: bytes.Clone(x.data[0]), root: row.Point.Disks[0].Root})
	}
	if len(of) == 0 {
		return
	}
	if w.rng.IntN(4) == 0 {
		of = append(of, of[w.rng.IntN(len(of))].fork())
	}
	if w.rng.IntN(5) == 0 {
		if x := w.living(); x != nil && !w.isInUse(t, x.id) {
			w.purge(t, x.id)
		}
	}
	p, err := commit(ctx, s, of...)
	if err != nil {
		t.Fatal(err)
	}
	var data [][]byte
	for _, d := range of {
		data = append(data, d.data)
	}
	w.r.require(t, p.ID, data...)
	w.add(t, p, data...)
}

// pointElsewhere stores a disk whole, by one who has not heard of what was stored last.
func (w *world) pointElsewhere(t *testing.T, other *room) {
	x := w.disks[w.rng.IntN(len(w.disks))].again()
	s := other.begin(t, "elsewhere")
	if err := put(t.Context(), s, x, whole(x), nil); err != nil {
		t.Fatal(err)
	}
	p, err := commit(t.Context(), s, x)
	if err != nil {
		t.Fatal(err)
	}
	w.r.require(t, p.ID, x.data)
	w.add(t, p, x.data)
}

// Whatever points build on, in how many batches, and in which order they are purged: nothing that a
// living point needs is freed.
func TestNothingNeededIsFreed(t *testing.T) {
	for seed := range uint64(worlds) {
		rng := rand.New(rand.NewPCG(seed, 3))
		r := newRoom(t, mem.New())
		r.PackSize = int64(1+rng.IntN(20)) << 10 // what is stored is small
		w := &world{places: newPlaces(r, rng)}
		for range 3 {
			d := &disk{data: make([]byte, (60+rng.IntN(9))*testChunk)}
			for at := 0; at < len(d.data); at += testChunk * (1 + rng.IntN(12)) {
				binary.LittleEndian.PutUint64(d.data[at:], uint64(1+rng.IntN(20)))
			}
			w.disks = append(w.disks, d)
		}
		other, err := openRoom(t, r.Store)
		if err != nil {
			t.Fatal(err)
		}
		for range 14 {
			w.point(t)
			if rng.IntN(4) == 0 {
				w.pointElsewhere(t, other)
			}
			if rng.IntN(2) == 0 {
				w.purgeSome(t)
			}
			// Those that were purged while a session was at work are not built on again.
			for _, d := range w.disks {
				if d.of != "" && !w.points[stateID(t, d.of)].lives {
					d.root, d.of = "", ""
				}
			}
			w.check(t)
		}
		for range 2 * len(w.points) {
			w.purgeSome(t)
			w.check(t)
		}
	}
}

// What is stored once and inherited is never marked as shared: purging it needs no mark.
func TestIncrementsShareNothing(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(2, 3))
	r := newRoom(t, mem.New())
	m := newPlaces(r, rng)
	d := &disk{data: make([]byte, 130*testChunk)}
	fill(rng, d.data)
	m.add(t, r.backUp(t, d))
	for range 5 {
		s := r.begin(t, "vm")
		for range 2 {
			e := extent.Extent{Off: rng.Int64N(128) * testChunk, Len: 2 * testChunk}
			fill(rng, d.data[e.Off:e.End()])
			if err := put(ctx, s, d, extent.Of(e), nil); err != nil {
				t.Fatal(err)
			}
		}
		p, err := commit(ctx, s, d)
		if err != nil {
			t.Fatal(err)
		}
		m.add(t, p)
	}
	shared := m.sharedBits(t)
	lines := map[row.Line]bool{}
	for _, x := range m.points {
		for at := range x.has {
			lines[at.line] = true
			if all := m.copies(t, at.id); len(all) != 1 || shared(all[0]) {
				t.Fatalf("%d copies of %s", len(all), at.id)
			}
		}
	}
	if len(lines) != 1 {
		t.Errorf("one disk has %d lines", len(lines))
	}
}
