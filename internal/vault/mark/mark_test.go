package mark_test

import (
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/mark"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// world is packs and what is in them, without bytes.
type world struct {
	rows  []index.Loc
	slots map[int]uint32 // by pack
	byID  map[chunk.ID][]int
	nodes map[chunk.ID]*tree.Node
	ids   *chunk.Hasher
	n     uint64
	reads map[chunk.ID]int
	bad   map[chunk.ID]error // nodes that cannot be read
}

func newWorld() *world {
	return &world{slots: map[int]uint32{}, byID: map[chunk.ID][]int{}, nodes: map[chunk.ID]*tree.Node{},
		ids: chunk.NewHasher([32]byte{1}), reads: map[chunk.ID]int{}, bad: map[chunk.ID]error{}}
}

func packID(n int) log.ObjectID { return log.NewObjectID(log.Volume{}, log.Session{1}, uint32(n)) }

// store puts an ID into a pack.
func (w *world) store(pack int, id chunk.ID) chunk.ID {
	l := index.Loc{Pack: log.Object{ID: packID(pack)}, Slot: w.slots[pack], Pos: int64(len(w.rows))}
	w.slots[pack]++
	l.ID, l.Stored = id, 100
	w.byID[id] = append(w.byID[id], len(w.rows))
	w.rows = append(w.rows, l)
	return id
}

// fresh returns an ID that nothing has.
func (w *world) fresh() chunk.ID {
	w.n++
	return w.ids.ID(binary.LittleEndian.AppendUint64(nil, w.n))
}

// Node implements tree.Writer.
func (w *world) Node(_ context.Context, id chunk.ID, _ int) (*tree.Node, error) {
	return w.nodes[id], nil
}

// Positions, FindAll and Each implement mark.Rows.
func (w *world) Positions() int64 { return int64(len(w.rows)) }

func (w *world) FindAll(_ context.Context, id chunk.ID) (all []index.Loc, err error) {
	for _, i := range w.byID[id] {
		all = append(all, w.rows[i])
	}
	return all, nil
}

func (w *world) Each(_ context.Context, do func(*index.Loc) bool) error {
	for i := range w.rows {
		l := w.rows[i]
		if !do(&l) {
			break
		}
	}
	return nil
}

// ReadNodes implements mark.Nodes.
func (w *world) ReadNodes(_ context.Context, at []index.Loc, level int) ([]*tree.Node, []error) {
	nodes, errs := make([]*tree.Node, len(at)), make([]error, len(at))
	for i := range at {
		id := at[i].ID
		w.reads[id]++
		nodes[i], errs[i] = w.nodes[id], w.bad[id]
		if errs[i] == nil && nodes[i].Level != level {
			errs[i] = content.ErrCorrupt
		}
	}
	return nodes, errs
}

// builder stores the nodes of a tree into a pack.
type builder struct {
	*world
	pack int
}

func (b builder) PutNode(_ context.Context, n *tree.Node) (chunk.ID, error) {
	id := b.ids.ID(n.Append(nil))
	if b.nodes[id] == nil {
		c := *n
		b.nodes[id] = &c
		b.store(b.pack, id)
	}
	return id, nil
}

// disk is a disk as its chunks.
type disk struct {
	chunks []chunk.ID
	root   chunk.ID
}

// put stores the tree of a disk whose chunks are stored.
func (w *world) put(t testing.TB, pack int, chunks []chunk.ID) *disk {
	t.Helper()
	d := &disk{chunks: slices.Clone(chunks)}
	b := builder{w, pack}
	tb := tree.NewBuilder(b, chunk.ID{}, int64(len(chunks)))
	for at := 0; at < len(chunks); at += tree.FanOut {
		n := &tree.Node{}
		if copy(n.Slots[:], chunks[at:]); n.Count() == 0 {
			continue
		}
		id, err := b.PutNode(t.Context(), n)
		if err == nil {
			err = tb.SetLeaf(t.Context(), int64(at/tree.FanOut), id)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if d.root, err = tb.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *disk) tree() row.Tree { return row.Tree{Root: d.root, Chunks: int64(len(d.chunks))} }

func (w *world) options(points ...mark.Point) mark.Options {
	return mark.Options{Rows: w, Nodes: w, Points: pointsOf(points...)}
}

func pointsOf(points ...mark.Point) iter.Seq2[mark.Point, error] {
	return func(yield func(mark.Point, error) bool) {
		for _, p := range points {
			if !yield(p, nil) {
				return
			}
		}
	}
}

// needs adds what a tree needs to a set, the slow way.
func (w *world) needs(set map[chunk.ID]bool, id chunk.ID, level int) {
	if id.IsHole() {
		return
	}
	set[id] = true
	if level < 0 {
		return
	}
	for _, child := range w.nodes[id].Slots {
		w.needs(set, child, level-1)
	}
}

// random makes disks that share much, some of it stored twice.
func random(t testing.TB, rng *rand.Rand) (w *world, points []mark.Point) {
	w = newWorld()
	var pool []chunk.ID
	chunks := make([]chunk.ID, 1+rng.IntN(9000))
	for n := range 1 + rng.IntN(5) {
		for range 1 + rng.IntN(500) {
			at := rng.IntN(len(chunks))
			switch {
			case rng.IntN(10) == 0:
				chunks[at] = chunk.ID{}
			case rng.IntN(5) == 0 && len(pool) > 0:
				chunks[at] = pool[rng.IntN(len(pool))]
			default:
				chunks[at] = w.store(n, w.fresh())
				pool = append(pool, chunks[at])
			}
		}
		points = append(points, mark.Point{Trees: []row.Tree{w.put(t, n, chunks).tree()}})
		if rng.IntN(2) == 0 {
			points[n].Manifest = w.store(n, w.fresh())
		}
	}
	for range rng.IntN(200) { // copies, of whatever kind
		w.store(10+rng.IntN(3), w.rows[rng.IntN(len(w.rows))].ID)
	}
	return w, points
}

// Of all that points need exactly one copy is marked, of whatever they do not nothing, and every
// node is read once; with little memory too.
func TestMarkIsWhatPointsNeed(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w, points := random(t, rng)
		living := points[:rng.IntN(len(points)+1)]
		o := w.options(living...)
		o.Memory = 1 + int64(seed%2)<<20 // of the smallest set there is, and of one that has room for all
		live, err := mark.Mark(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		need := map[chunk.ID]bool{}
		for _, p := range living {
			for _, tr := range p.Trees {
				w.needs(need, tr.Root, tree.Levels(tr.Chunks)-1)
			}
			if !p.Manifest.IsHole() {
				need[p.Manifest] = true
			}
		}
		w.require(t, live, need)
		for id, n := range w.reads {
			if n != 1 {
				t.Fatalf("seed %d: node %s was read %d times", seed, id, n)
			}
		}
	}
}

// require compares what is marked with what is needed.
func (w *world) require(t *testing.T, live *mark.Live, need map[chunk.ID]bool) {
	t.Helper()
	if live.Count() != int64(len(need)) {
		t.Fatalf("%d rows are marked, %d are needed", live.Count(), len(need))
	}
	copies := map[chunk.ID]int{}
	for i := range w.rows {
		if l := &w.rows[i]; live.Has(l.Pos) {
			copies[l.ID]++
			for _, j := range w.byID[l.ID] {
				o := &w.rows[j]
				if c := slices.Compare(o.Pack.ID[:], l.Pack.ID[:]); c < 0 || c == 0 && o.Slot < l.Slot {
					t.Fatalf("a copy of %s in pack %s is marked, and one in %s goes before", l.ID, l.Pack.ID, o.Pack.ID)
				}
			}
		}
	}
	for id := range need {
		if copies[id] != 1 {
			t.Fatalf("%d copies of %s are marked", copies[id], id)
		}
	}
}

// A copy in a pack that is damaged counts only where there is no other.
func TestDamagedPacksAreAvoided(t *testing.T) {
	w := newWorld()
	id := w.fresh()
	for pack := range 4 {
		w.store(pack, id)
	}
	d := w.put(t, 2, []chunk.ID{id})
	for _, tt := range []struct {
		damaged []int
		want    int
	}{{nil, 0}, {[]int{0}, 1}, {[]int{0, 2}, 1}, {[]int{0, 1, 2}, 3}, {[]int{0, 1, 2, 3}, 0}} {
		o := w.options(mark.Point{Trees: []row.Tree{d.tree()}})
		o.Damaged = func(id log.ObjectID) bool {
			return slices.ContainsFunc(tt.damaged, func(n int) bool { return packID(n) == id })
		}
		live, err := mark.Mark(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for pack := range 4 {
			if got := live.Has(w.rows[pack].Pos); got != (pack == tt.want) {
				t.Errorf("damaged %v: pack %d is marked: %v", tt.damaged, pack, got)
			}
		}
	}
}

// What is missing or cannot be read is named, once each, and the rest is marked; who wants no such
// list gets an error.
func TestWhatIsLostIsNamed(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 3))
		w := newWorld()
		chunks := make([]chunk.ID, 3*tree.FanOut)
		for i := range chunks {
			chunks[i] = w.fresh()
			if i != 5 && i != 70 {
				w.store(0, chunks[i])
			}
		}
		chunks[90] = chunks[70]
		d := w.put(t, 0, chunks)
		leaf := w.nodes[d.root].Slots[2]
		w.bad[leaf] = content.ErrCorrupt
		gone := w.fresh() // a manifest
		want := map[chunk.ID]bool{chunks[5]: true, chunks[70]: true, leaf: true, gone: true}
		o := w.options(mark.Point{Trees: []row.Tree{d.tree(), d.tree()}, Manifest: gone})
		o.Memory = rng.Int64N(1 << 20)
		if _, err := mark.Mark(t.Context(), o); !errors.Is(err, content.ErrCorrupt) {
			t.Fatalf("nothing is said of what is lost: %v", err)
		}
		got := map[chunk.ID]bool{}
		o.Lost = func(id chunk.ID, why error) {
			if got[id] || !errors.Is(why, content.ErrCorrupt) {
				t.Errorf("%s is named twice, or as %v", id, why)
			}
			got[id] = true
		}
		live, err := mark.Mark(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Errorf("%d are named, %d are lost", len(got), len(want))
		}
		for id := range want {
			if !got[id] {
				t.Errorf("%s is not named", id)
			}
		}
		for i, id := range chunks[:2*tree.FanOut] {
			if at := w.byID[id]; len(at) > 0 && !live.Has(int64(at[0])) {
				t.Errorf("chunk %d is not marked", i)
			}
		}
	}
}

// What is no damage ends a mark, whatever it may go past.
func TestFaultsEndAMark(t *testing.T) {
	w := newWorld()
	d := w.put(t, 0, []chunk.ID{w.store(0, w.fresh())})
	broken := errors.New("broken")
	o := w.options(mark.Point{Trees: []row.Tree{d.tree()}})
	o.Lost = func(id chunk.ID, why error) { t.Errorf("%s is said to be lost: %v", id, why) }
	w.bad[d.root] = broken
	if _, err := mark.Mark(t.Context(), o); !errors.Is(err, broken) {
		t.Errorf("a node that cannot be fetched: %v", err)
	}
	w.bad = nil
	o.Points = func(yield func(mark.Point, error) bool) { yield(mark.Point{}, broken) }
	if _, err := mark.Mark(t.Context(), o); !errors.Is(err, broken) {
		t.Errorf("points that cannot be read: %v", err)
	}
	o.Points = pointsOf(mark.Point{Trees: []row.Tree{d.tree()}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := mark.Mark(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("a mark that is not wanted any more: %v", err)
	}
}

// Packs says of every pack which of its rows nobody needs.
func TestDeadRowsByPack(t *testing.T) {
	w, points := random(t, rand.New(rand.NewPCG(7, 7)))
	live, err := mark.Mark(t.Context(), w.options(points[0]))
	if err != nil {
		t.Fatal(err)
	}
	packs, err := live.Packs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rows, dead := 0, 0
	byID := map[log.ObjectID]*mark.Pack{}
	for _, p := range packs {
		rows, dead, byID[p.ID] = rows+p.Rows, dead+p.Dead, p
		if p.Live != 100*int64(p.Rows-p.Dead) {
			t.Errorf("pack %s has %d rows, %d dead, and %d bytes that live", p.ID, p.Rows, p.Dead, p.Live)
		}
	}
	if rows != len(w.rows) || int64(rows-dead) != live.Count() {
		t.Errorf("%d rows, %d of them dead, of %d with %d that live", rows, dead, len(w.rows), live.Count())
	}
	for _, l := range w.rows {
		s := byID[l.Pack.ID].Slots
		if is := int(l.Slot/8) < len(s) && s[l.Slot/8]>>(l.Slot%8)&1 == 1; is == live.Has(l.Pos) {
			t.Errorf("slot %d of pack %s: dead %v, live %v", l.Slot, l.Pack.ID, is, live.Has(l.Pos))
		}
	}
}
