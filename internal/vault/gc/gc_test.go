package gc_test

import (
	"context"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/gc"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// quick is a policy that rewrites at once.
var quick = gc.Policy{Settle: -1, KeepParts: -1, SmallAge: -1}

func open(t testing.TB, w *world, s blob.Store) *process {
	t.Helper()
	p, err := w.open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Journal.Close)
	return p
}

func collect(t testing.TB, p *process, o gc.Options) gc.Report {
	t.Helper()
	o.Now = p.w.clock
	r, err := gc.Collect(t.Context(), p.Vault, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// spots are chunks of disks that are written in tests: of few leaves, of several levels.
var spots = []int64{0, 1, 2, 3, 63, 64, 65, 130, 4095, 4096, 4097, 9000}

// fresh is so many values that none comes twice; then no node comes again either.
const fresh = 1 << 40

// change returns disks that differ a little from a point's.
func (w *world) change(rng *mrand.Rand, id state.ID, values int) (disks []modelDisk) {
	w.mu.Lock()
	of := w.points[id]
	w.mu.Unlock()
	if of == nil {
		disks = []modelDisk{{chunks: 5000, data: map[int64]string{}}, {chunks: 50, data: map[int64]string{}}}[:1+
			rng.IntN(2)]
	} else {
		for _, d := range of.disks {
			disks = append(disks, modelDisk{line: d.line, chunks: d.chunks, data: maps.Clone(d.data)})
		}
	}
	for i := range disks {
		d := &disks[i]
		if rng.IntN(8) == 0 {
			size := []int64{50, 200, 5000, 10000}[rng.IntN(4)]
			if values == fresh {
				size = max(size, d.chunks)
			}
			d.chunks = size
			maps.DeleteFunc(d.data, func(n int64, _ string) bool { return n >= d.chunks })
		}
		for range 1 + rng.IntN(4) {
			at := spots[rng.IntN(len(spots))]
			if at >= d.chunks {
				continue
			}
			if values != fresh && rng.IntN(6) == 0 {
				delete(d.data, at)
			} else {
				d.data[at] = fmt.Sprint("value ", rng.IntN(values))
			}
		}
	}
	return disks
}

// ids returns the living points.
func (w *world) ids() []state.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.SortedFunc(maps.Keys(w.points), func(a, b state.ID) int {
		return strings.Compare(string(a[:]), string(b[:]))
	})
}

func (w *world) any(rng *mrand.Rand) (id state.ID) {
	if ids := w.ids(); len(ids) > 0 {
		return ids[rng.IntN(len(ids))]
	}
	return id
}

// act does something at random.
func (p *process) act(ctx context.Context, rng *mrand.Rand, values, dedup, twice int) error {
	p.w.pass(time.Second)
	if ids := p.w.ids(); len(ids) > 1 && rng.IntN(5) < 2 {
		return p.purge(ctx, p.w.any(rng))
	}
	base := p.w.any(rng)
	if rng.IntN(8) == 0 {
		base = state.ID{}
	}
	_, err := p.putAgain(ctx, rng, base, p.w.change(rng, base, values), dedup, twice)
	return err
}

// Where no content comes twice, exactly what is needed is left after whatever was purged in
// whatever order, and every point reads back.
func TestExactlyWhatPurgesFreedIsFreed(t *testing.T) {
	t.Run("in one piece", func(t *testing.T) { freesExactly(t, 8) })
	t.Run("in many pieces", func(t *testing.T) {
		gc.ShortEntries(t, 60)
		freesExactly(t, 8)
	})
}

func freesExactly(t *testing.T, seeds uint64) {
	for seed := range seeds {
		rng := mrand.New(mrand.NewPCG(seed, 1))
		w, store := newWorld(t), mem.New()
		initVault(t, store)
		p := open(t, w, store)
		for i := range 40 {
			if err := p.act(t.Context(), rng, fresh, 0, 0); err != nil {
				t.Fatal(err)
			}
			if i%7 == 6 {
				collect(t, p, gc.Options{Policy: quick})
			}
		}
		collect(t, p, gc.Options{Policy: quick})
		p.exactly(t, seed)
		p.Journal.Close()
	}
}

// Whatever is shared, stored twice and purged, every point reads back.
func TestPointsReadBackWhateverIsShared(t *testing.T) {
	for seed := range uint64(20) {
		rng := mrand.New(mrand.NewPCG(seed, 2))
		w, store := newWorld(t), mem.New()
		initVault(t, store)
		p := open(t, w, store)
		dedup, twice := rng.IntN(257), rng.IntN(128)
		for i := range 50 {
			if err := p.act(t.Context(), rng, 12, dedup, twice); err != nil {
				t.Fatal(err)
			}
			if i%5 == 4 {
				collect(t, p, gc.Options{Policy: quick})
				if _, err := p.check(t.Context()); err != nil {
					t.Fatalf("seed %d, step %d: %v", seed, i, err)
				}
			}
		}
		p.Journal.Close()
	}
}

// exactly demands that good packs hold one copy of each row that is needed, and nothing else that
// lives.
func (p *process) exactly(t *testing.T, seed uint64) {
	t.Helper()
	needed, err := p.check(t.Context())
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	stored, err := p.stored(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id, n := range stored {
		if !needed[id] || n != 1 {
			t.Errorf("seed %d: row %s: %d copies, needed: %v", seed, id, n, needed[id])
		}
	}
}

// A full collection leaves one copy of what is needed, whatever was shared or stored twice; and
// what it says of the rows holds for all that comes after.
func TestAFullCollectionLeavesWhatIsNeeded(t *testing.T) {
	for seed := range uint64(12) {
		rng := mrand.New(mrand.NewPCG(seed, 5))
		w, store := newWorld(t), mem.New()
		initVault(t, store)
		p := open(t, w, store)
		dedup, twice := rng.IntN(257), rng.IntN(128)
		for round := range 4 {
			for range 15 {
				if err := p.act(t.Context(), rng, 12, dedup, twice); err != nil {
					t.Fatal(err)
				}
				if rng.IntN(8) == 0 {
					collect(t, p, gc.Options{Policy: quick})
				}
			}
			would := collect(t, p, gc.Options{Policy: quick, Full: true, DryRun: true})
			did := collect(t, p, gc.Options{Policy: quick, Full: true})
			if would.FreedChunks != did.FreedChunks || would.PurgedPoints != did.PurgedPoints ||
				would.DeadPacks != did.DeadPacks {
				t.Errorf("seed %d, round %d: it would have freed %+v, and did %+v", seed, round, would, did)
			}
			p.exactly(t, seed)
		}
		p.Journal.Close()
	}
}
