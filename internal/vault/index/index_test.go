package index

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// truth is a log's state and the packs' tables, as a model. It is safe for concurrent use.
type truth struct {
	mu    sync.Mutex
	count uint64
	packs []*packModel
	reads int // of tables
}

type packModel struct {
	object  log.Object
	added   uint64 // 0: no entry tells of it
	bad     bool
	broken  error // what reading its table says
	entries []pack.Entry
}

func (w *truth) Since(_ context.Context, count uint64, do func(log.Object, uint64) bool) (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.since(w.count, count, do)
}

func (w *truth) since(end, count uint64, do func(log.Object, uint64) bool) (uint64, error) {
	packs := slices.Clone(w.packs)
	slices.SortStableFunc(packs, func(a, b *packModel) int { return cmp.Compare(a.added, b.added) })
	for _, p := range packs {
		if p.added > count && p.added <= end && !p.bad && !do(p.object, p.added) {
			return p.added - 1, nil
		}
	}
	return end, nil
}

func (w *truth) Good(_ context.Context, ids []log.ObjectID) ([]bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.goodAt(w.count, ids), nil
}

func (w *truth) goodAt(end uint64, ids []log.ObjectID) []bool {
	good := make([]bool, len(ids))
	for i, id := range ids {
		p := w.pack(id)
		good[i] = p != nil && p.added > 0 && p.added <= end && !p.bad
	}
	return good
}

func (w *truth) pack(id log.ObjectID) *packModel {
	n := int(binary.BigEndian.Uint32(id[20:]))
	if n >= len(w.packs) {
		return nil
	}
	return w.packs[n]
}

func (w *truth) table(_ context.Context, o log.Object) ([]pack.Entry, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads++
	p := w.pack(o.ID)
	if p.object != o {
		return nil, fmt.Errorf("asked for %+v", o)
	}
	return p.entries, p.broken
}

// idOf is the ID of chunk n, spread as those of real ones.
func idOf(n int) chunk.ID { return blake3.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(n))) }

// add makes a pack of some of the first most chunks, which no entry tells of yet.
func (w *truth) add(rng *rand.Rand, rows, most int) *packModel {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.packs)
	p := &packModel{object: log.Object{ID: log.NewObjectID(log.Volume{Number: 7}, log.Session{1}, uint32(n)),
		Kind: log.Pack, Copy: byte(rng.IntN(2)), Size: rng.Uint64N(1 << 30), Sum: log.Hash{byte(n), 9}}}
	for slot := range rows {
		p.entries = append(p.entries, pack.Entry{ID: idOf(rng.IntN(most)), Kind: pack.Kind(1 + rng.IntN(3)),
			Encoding: chunk.Encoding(rng.IntN(3)), Offset: rng.Uint32(), Stored: rng.Uint32(), Plain: rng.Uint32(),
			Sum: rng.Uint32(), Nonce: uint32(slot), Salt: log.Salt{byte(n), byte(rng.IntN(2))}})
	}
	w.packs = append(w.packs, p)
	return p
}

// commit has the next entry add packs.
func (w *truth) commit(packs ...*packModel) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count++
	for _, p := range packs {
		p.added = w.count
	}
}

// want returns where chunks are.
func (w *truth) want(counts func(*packModel) bool) map[chunk.ID][]Loc {
	all := make(map[chunk.ID][]Loc)
	for _, p := range w.packs {
		if !counts(p) {
			continue
		}
		for slot, e := range p.entries {
			all[e.ID] = append(all[e.ID], Loc{Pack: p.object, Slot: uint32(slot), Entry: e, Pos: -1})
		}
	}
	return all
}

func sorted(locs []Loc) []Loc {
	slices.SortFunc(locs, func(a, b Loc) int {
		return cmp.Or(slices.Compare(a.Pack.ID[:], b.Pack.ID[:]), cmp.Compare(a.Slot, b.Slot))
	})
	return locs
}

func source(store blob.Store, w Packs) Source {
	return Source{Store: store, Key: [32]byte{1}, Vault: [16]byte{2}, Packs: w}
}

// open opens an index that reads the tables of w, with small limits.
func open(t testing.TB, src Source, w *truth) *Index {
	t.Helper()
	ix, err := Open(context.Background(), src)
	if err != nil {
		t.Fatal(err)
	}
	ix.tables = w.table
	ix.limits = limits{rows: 300, packs: 20, most: 2000, batch: 4}
	return ix
}

func places(locs []Loc) (s []string) {
	for _, l := range locs {
		s = append(s, fmt.Sprintf("%d:%d", binary.BigEndian.Uint32(l.Pack.ID[20:]), l.Slot))
	}
	return s
}

// requireRows fails unless ix knows of the first most chunks what w says.
func requireRows(t testing.TB, ix *Index, w *truth, most int, counts func(*packModel) bool) {
	t.Helper()
	ctx := context.Background()
	all := w.want(counts)
	for n := range most {
		id := idOf(n)
		got, err := ix.FindAll(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		want := all[id]
		if !slices.Equal(sorted(got), sorted(want)) {
			t.Fatalf("chunk %d is in %v, not %v", n, places(got), places(want))
		}
		l, ok, err := ix.Find(ctx, id, nil)
		if err != nil || ok != (len(want) > 0) || ok && !slices.Contains(want, l) {
			t.Fatalf("found %v, %v, %v", l, ok, err)
		}
	}
}

func isGood(p *packModel) bool { return p.added > 0 && !p.bad && p.broken == nil }

// process is one of several that use an index at once. What it sees of the log lags.
type process struct {
	*truth
	ix    *Index
	saw   uint64
	known map[*packModel]bool // packs that Know was told of, and whose entry it has not seen
}

func (p *process) Since(_ context.Context, count uint64, do func(log.Object, uint64) bool) (uint64, error) {
	return p.since(p.saw, count, do)
}

func (p *process) Good(_ context.Context, ids []log.ObjectID) ([]bool, error) {
	return p.goodAt(p.saw, ids), nil
}

func (p *process) counts(m *packModel) bool {
	return isGood(m) && m.added <= p.saw || p.known[m]
}

// world is a log, a store and some processes.
type world struct {
	*truth
	store *mem.Store
	procs []*process
	rng   *rand.Rand
}

const chunks = 60

func (w *world) start(t testing.TB) *process {
	p := &process{truth: w.truth, saw: w.count, known: make(map[*packModel]bool)}
	p.ix = open(t, source(w.store, p), w.truth)
	p.sync(t)
	return p
}

func (p *process) sync(t testing.TB) {
	t.Helper()
	p.saw = p.count
	if err := p.ix.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	for m := range p.known {
		if m.added > 0 {
			p.ix.Forget(m.object.ID) // in vain, unless it was condemned meanwhile
			delete(p.known, m)
		}
	}
}

func (w *world) names(t testing.TB, prefix string) (names []string) {
	for name, err := range blob.Names(context.Background(), w.store, prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

// step does something to the world.
func (w *world) step(t testing.TB) {
	ctx := context.Background()
	i := w.rng.IntN(len(w.procs))
	p := w.procs[i]
	switch k := w.rng.IntN(20); {
	case k < 8: // one or several packs by one entry
		var packs []*packModel
		for range 1 + w.rng.IntN(4) {
			packs = append(packs, w.add(w.rng, w.rng.IntN(60), chunks))
		}
		w.commit(packs...)
	case k < 10:
		m := w.add(w.rng, 20, chunks)
		p.ix.Know(m.object, m.entries)
		p.known[m] = true
		if w.rng.IntN(2) == 0 {
			w.commit(m)
		}
	case k < 11:
		for m := range p.known {
			if m.added == 0 {
				p.ix.Forget(m.object.ID)
				delete(p.known, m)
			}
		}
	case k < 13:
		p.sync(t)
	case k < 16:
		if err := p.ix.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	case k < 17:
		w.procs[i] = w.start(t)
	case k < 18:
		for _, m := range w.packs {
			if m.added > 0 && w.rng.IntN(5) == 0 {
				m.bad = true
				for _, p := range w.procs {
					p.sync(t)
				}
			}
		}
	case k < 19:
		names := w.names(t, "index/")
		if len(names) > 0 {
			w.damage(t, names[w.rng.IntN(len(names))])
		}
	default:
		for _, m := range w.packs {
			if m.added == 0 && w.rng.IntN(4) == 0 && !w.isKnown(m) {
				m.broken = pack.ErrCorrupt
				w.commit(m)
			}
		}
	}
}

func (w *world) isKnown(m *packModel) bool {
	return slices.ContainsFunc(w.procs, func(p *process) bool { return p.known[m] })
}

func (w *world) damage(t testing.TB, name string) {
	if w.rng.IntN(2) == 0 {
		if err := w.store.Delete(context.Background(), name); err != nil {
			t.Fatal(err)
		}
		return
	}
	cut := w.rng.IntN(4) == 0
	err := w.store.Corrupt(name, func(b []byte) []byte {
		at := w.rng.IntN(len(b))
		if cut {
			return b[:at]
		}
		b[at] ^= 1 << w.rng.IntN(8)
		return b
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever is added, condemned, flushed, merged by whichever process, damaged or lost: every
// process finds the rows of the packs that are good as far as it has read the log, and of no
// others.
func TestIndexKnowsWhatTheLogSays(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			w := &world{truth: &truth{}, store: mem.New(), rng: rng}
			for range 1 + rng.IntN(3) {
				w.procs = append(w.procs, w.start(t))
			}
			for range 120 {
				w.step(t)
				if p := w.procs[rng.IntN(len(w.procs))]; rng.IntN(8) == 0 {
					requireRows(t, p.ix, w.truth, chunks, p.counts)
				}
			}
			for _, p := range w.procs {
				p.sync(t)
				requireRows(t, p.ix, w.truth, chunks, p.counts)
				requireSnapshot(t, p)
			}
		})
	}
}

// requireSnapshot fails unless a snapshot has every good row at one position of its own.
func requireSnapshot(t testing.TB, p *process) {
	t.Helper()
	ctx := context.Background()
	for {
		s, err := p.ix.Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		at := make(map[int64]Loc)
		err = s.Each(ctx, func(l *Loc) bool {
			if _, ok := at[l.Pos]; ok || l.Pos < 0 || l.Pos >= s.Positions() {
				t.Fatalf("position %d of %d is taken twice", l.Pos, s.Positions())
			}
			at[l.Pos] = *l
			return true
		})
		if err == nil {
			err = requireFound(t, p, s, at)
		}
		s.Close()
		if !errors.Is(err, ErrStale) {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

func requireFound(t testing.TB, p *process, s *Snapshot, at map[int64]Loc) error {
	t.Helper()
	total := 0
	all := p.want(func(m *packModel) bool { return isGood(m) && m.added <= p.saw })
	for n := range chunks {
		got, err := s.FindAll(context.Background(), idOf(n))
		if err != nil {
			return err
		}
		for i := range got {
			if at[got[i].Pos] != got[i] {
				t.Fatalf("found %v, which Each did not show", got[i])
			}
			got[i].Pos = -1
		}
		total += len(got)
		if want := all[idOf(n)]; !slices.Equal(sorted(got), sorted(want)) {
			t.Fatalf("chunk %d is in %v, not %v", n, places(got), places(want))
		}
	}
	if total != len(at) {
		t.Fatalf("%d rows were found, and %d shown", total, len(at))
	}
	return nil
}
