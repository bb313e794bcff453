package index

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/blob/fault"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/durable"
)

var errFault = errors.New("injected")

// rounds has two processes take packs in, condemn some, and write and merge segments, and returns
// the first error. What they find on the way must be right whatever fails.
func rounds(t *testing.T, store blob.Store, w *truth) (ix *Index, err error) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(1, 2))
	keep := func(e error) { err = errors.Join(err, e) }
	for round := range 7 {
		if round%4 == 0 {
			opened, e := Open(ctx, source(store, w))
			if keep(e); e != nil {
				continue
			}
			opened.tables = w.table
			opened.limits = limits{rows: 50, packs: 20, most: 2000, batch: 4}
			ix = opened
		}
		w.commit(w.add(rng, 40, chunks), w.add(rng, 40, chunks))
		w.packs[rng.IntN(len(w.packs))].bad = true
		if ix == nil {
			continue
		}
		e := ix.Sync(ctx)
		if keep(e); e == nil {
			keep(findSome(t, ix, w))
		}
		keep(ix.Flush(ctx))
	}
	return ix, err
}

// findSome looks some chunks up. What is found must be right; an error is handed back.
func findSome(t *testing.T, ix *Index, w *truth) error {
	all := w.want(isGood)
	for n := range 5 {
		got, err := ix.FindAll(context.Background(), idOf(n))
		if err != nil {
			return err
		}
		if len(got) != len(all[idOf(n)]) {
			t.Fatalf("chunk %d is in %v, not %v", n, places(got), places(all[idOf(n)]))
		}
	}
	return nil
}

// Whichever call of the store fails, or loses its answer, what is found is right; and once the
// store works again nothing is the worse for it.
func TestFailingCallHarmsNothing(t *testing.T) {
	for _, lost := range []bool{false, true} {
		for i := 0; ; i++ {
			store, w := fault.New(mem.New()), &truth{}
			if lost {
				store.LoseReply(i, errFault)
			} else {
				store.FailCall(i, errFault)
			}
			ix, err := rounds(t, store, w)
			if err != nil && !errors.Is(err, errFault) {
				t.Fatalf("call %d: %v", i, err)
			}
			if store.Calls() <= i {
				break
			}
			for _, ix := range []*Index{ix, open(t, source(store, w), w)} {
				if err := ix.Sync(context.Background()); err != nil {
					t.Fatal(err)
				}
				requireRows(t, ix, w, chunks, isGood)
			}
		}
	}
}

// A store to which nothing can be written, or from which nothing can be deleted, costs nothing but
// time.
func TestUnwritableStoreHarmsNothing(t *testing.T) {
	for _, method := range []fault.Method{fault.Create, fault.Write, fault.Commit, fault.Delete, fault.List} {
		store, w := fault.New(mem.New()), &truth{}
		store.FailMethod(method, errFault)
		ix, err := rounds(t, store, w)
		if err != nil && !errors.Is(err, errFault) {
			t.Fatalf("%s: %v", method, err)
		}
		if err := ix.Sync(context.Background()); err != nil {
			t.Fatal(err)
		}
		requireRows(t, ix, w, chunks, isGood)
	}
}

// Wherever the power fails, who opens the index afterwards finds what the log says.
func TestIndexSurvivesCrash(t *testing.T) {
	for n := 0; ; n += 2 {
		fs, w := durable.NewCrashable(n), &truth{}
		if err := durable.MkdirAll(fs, "/v"); err == nil {
			_, _ = rounds(t, dir.On(fs, "/v"), w)
		}
		after := fs.AfterCrash(rand.New(rand.NewPCG(uint64(n), 1)))
		if err := durable.MkdirAll(after, "/v"); err != nil {
			t.Fatal(err)
		}
		ix := open(t, source(dir.On(after, "/v"), w), w)
		if err := ix.Sync(context.Background()); err != nil {
			t.Fatal(err)
		}
		requireRows(t, ix, w, chunks, isGood)
		if err := ix.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
		requireRows(t, ix, w, chunks, isGood)
		if fs.Calls() <= n {
			return
		}
	}
}

// What a flush replaces is deleted, and what a crash or a failed deletion left behind is, some
// flushes later.
func TestNothingIsLeftBehind(t *testing.T) {
	ctx := context.Background()
	inner := mem.New()
	store, w := fault.New(inner), &truth{}
	ix := open(t, source(store, w), w)
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 24 {
		store.FailMethod(fault.Delete, nil)
		if round < 12 {
			store.FailMethod(fault.Delete, errFault)
		}
		w.commit(w.add(rng, 400, 5000))
		if err := errors.Join(ix.Sync(ctx), ix.Flush(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	if roots := (&world{store: inner}).names(t, rootPrefix); len(roots) != 1 {
		t.Errorf("there are the roots %v", roots)
	}
	if segments := (&world{store: inner}).names(t, segmentPrefix); len(segments) != len(ix.segments) {
		t.Errorf("of the segments %v the index has %d", segments, len(ix.segments))
	}
}
