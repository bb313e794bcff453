package index

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// Two processes with many goroutines each sync, look up, write and merge at once: what was
// committed before a Sync is found after it.
func TestManyAtOnce(t *testing.T) {
	ctx := context.Background()
	store, w := mem.New(), &truth{}
	indexes := []*Index{open(t, source(store, w), w), open(t, source(store, w), w)}
	var wg sync.WaitGroup
	for i := range 8 {
		ix, rng := indexes[i%2], rand.New(rand.NewPCG(uint64(i), 20))
		wg.Go(func() {
			for range 20 {
				m := w.add(rng, 30, chunks)
				if rng.IntN(2) == 0 {
					ix.Know(m.object, m.entries)
				}
				w.commit(m)
				if err := ix.Sync(ctx); err != nil {
					t.Error(err)
					return
				}
				_, ok, err := ix.Find(ctx, m.entries[7].ID, func(l *Loc) bool { return l.Pack != m.object })
				if err != nil || !ok {
					t.Errorf("what was just committed is found: %v, %v", ok, err)
					return
				}
				if err := ix.Flush(ctx); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, ix := range append(indexes, open(t, source(store, w), w)) {
		if err := ix.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		requireRows(t, ix, w, chunks, isGood)
	}
}

// asking is a truth whose answers need the index.
type asking struct {
	*truth
	ix *Index
}

func (a *asking) Good(ctx context.Context, ids []log.ObjectID) ([]bool, error) {
	if _, _, err := a.ix.Find(ctx, chunk.ID{1}, nil); err != nil {
		return nil, err
	}
	a.ix.Know(log.Object{}, nil)
	a.ix.Forget(log.ObjectID{})
	return a.truth.Good(ctx, ids)
}

// Who is asked whether packs are good, or whether to skip a place, may use the index meanwhile.
func TestWhoIsAskedMayAsk(t *testing.T) {
	ctx := context.Background()
	w := &truth{}
	a := &asking{truth: w}
	a.ix = open(t, source(mem.New(), a), w)
	rng := rand.New(rand.NewPCG(21, 22))
	w.commit(w.add(rng, 400, chunks))
	for range 2 {
		if err := errors.Join(a.ix.Sync(ctx), a.ix.Flush(ctx)); err != nil {
			t.Fatal(err)
		}
		_, ok, err := a.ix.Find(ctx, w.packs[0].entries[0].ID, func(l *Loc) bool {
			locs, err := a.ix.FindAll(ctx, l.ID)
			return err != nil || len(locs) == 0
		})
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
}

// An end of the context ends each call, and harms nothing.
func TestContextEnds(t *testing.T) {
	w := &truth{}
	ix := open(t, source(mem.New(), w), w)
	rng := rand.New(rand.NewPCG(23, 24))
	w.commit(w.add(rng, 400, chunks))
	ended, end := context.WithCancel(context.Background())
	if err := ix.Sync(ended); err != nil {
		t.Fatal(err)
	}
	end()
	if err := ix.Flush(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Flush says %v", err)
	}
	if err := ix.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ix.Find(ended, w.packs[0].entries[0].ID, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Find says %v", err)
	}
	requireRows(t, ix, w, chunks, isGood)
	if len(ix.Damaged()) > 0 {
		t.Errorf("%v are taken to be damaged", ix.Damaged())
	}
}

// Real packs are read by their tables, also what of one was moved from another.
func TestRealPacks(t *testing.T) {
	ctx := context.Background()
	src := source(mem.New(), nil)
	src.Secret = pack.NewSecret([32]byte{3})
	w := &truth{}
	src.Packs = w
	put := func(fill func(*pack.Writer) error) *packModel {
		t.Helper()
		id := log.NewObjectID(log.Volume{Number: 7}, log.Session{1}, uint32(len(w.packs)))
		pw := src.Secret.Begin(src.Store, src.Vault, id)
		if err := fill(pw); err != nil {
			t.Fatal(err)
		}
		o, entries, err := pw.Commit(ctx)
		if err != nil {
			t.Fatal(err)
		}
		m := &packModel{object: o, entries: entries}
		w.packs = append(w.packs, m)
		w.commit(m)
		return m
	}
	first := put(func(pw *pack.Writer) (err error) {
		for n := 0; n < chunks && err == nil; n++ {
			plain := bytes.Repeat([]byte{byte(n + 1)}, 100)
			_, err = pw.Append(ctx, pack.Data, idOf(n), len(plain), plain, chunk.Plain)
		}
		return err
	})
	sealed := make([]byte, first.entries[3].Stored)
	r := pack.NewReader(src.Secret, src.Store)
	if err := r.ReadSealed(ctx, first.object, sealed, int64(first.entries[3].Offset)); err != nil {
		t.Fatal(err)
	}
	put(func(pw *pack.Writer) error {
		_, err := pw.Move(ctx, first.object.ID, &first.entries[3], sealed)
		return err
	})
	for range 2 {
		ix, err := Open(ctx, src)
		if err != nil {
			t.Fatal(err)
		}
		ix.limits.rows = 50
		if err := errors.Join(ix.Sync(ctx), ix.Flush(ctx)); err != nil {
			t.Fatal(err)
		}
		requireRows(t, ix, w, chunks, isGood)
	}
}
