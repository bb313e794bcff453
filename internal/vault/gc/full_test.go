package gc_test

import (
	"bytes"
	"context"
	"fmt"
	mrand "math/rand/v2"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/fault"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/gc"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// chain stores points of a disk, each on top of the one before, with so many fresh chunks, and some
// more at the start.
func chain(t testing.TB, p *process, n, start, each int) (ids []state.ID) {
	t.Helper()
	rng := mrand.New(mrand.NewPCG(1, 9))
	disk := modelDisk{chunks: 5000, data: map[int64]string{}}
	for i := range int64(start) {
		disk.data[i] = fmt.Sprint("start ", i)
	}
	var base state.ID
	for i := range n {
		next := modelDisk{line: disk.line, chunks: disk.chunks, data: map[int64]string{}}
		for k, v := range disk.data {
			next.data[k] = v
		}
		for k := range int64(each) {
			next.data[k] = fmt.Sprint("value ", i, k)
		}
		disks := []modelDisk{next}
		id, err := p.put(t.Context(), rng, base, disks, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		disk, base, ids = disks[0], id, append(ids, id)
	}
	return ids
}

// objects returns the objects of a store under a prefix.
func objects(t testing.TB, s blob.Store, prefix string) (names []string) {
	t.Helper()
	for name, err := range blob.Names(t.Context(), s, prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

// crowded is a store of so many bytes.
type crowded struct {
	*mem.Store
	room int64
}

func size(s blob.Store) (n int64) {
	for info := range s.List(context.Background(), "", "") {
		n += info.Size
	}
	return n
}

func (c *crowded) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := c.Store.Create(ctx, name)
	return &crowdedWriter{Writer: w, c: c}, err
}

type crowdedWriter struct {
	blob.Writer
	c *crowded
	n int64
}

func (w *crowdedWriter) Write(p []byte) (int, error) {
	w.n += int64(len(p))
	return w.Writer.Write(p)
}

func (w *crowdedWriter) Commit(ctx context.Context) error {
	if size(w.c.Store)+w.n > w.c.room {
		w.Writer.Abort()
		return blob.ErrNoSpace
	}
	return w.Writer.Commit(ctx)
}

// A store that is full to the last byte is collected by means of the room that was put aside, and
// that is put aside again.
func TestAFullStoreIsCollected(t *testing.T) {
	w, store := newWorld(t), mem.New()
	initVault(t, store)
	if err := gc.KeepReserve(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	p := open(t, w, store)
	ids := chain(t, p, 30, 20, 1)
	if err := p.purge(t.Context(), ids[:25]...); err != nil {
		t.Fatal(err)
	}
	full := &crowded{store, size(store)}
	again := open(t, w, full)
	before := len(objects(t, store, "pack/"))
	r := collect(t, again, gc.Options{Policy: quick})
	if left := len(objects(t, store, "pack/")); left >= before || r.FreedBytes <= 0 {
		t.Errorf("%d of %d packs are left: %+v", left, before, r)
	}
	again.exactly(t, 0)
	if len(objects(t, store, "gc/")) != 1 {
		t.Error("no room is put aside again")
	}
}

// A mirror that copies keeps what was there when it began, and says so; then it goes.
func TestAPinKeepsWhatWasCondemned(t *testing.T) {
	w, store := newWorld(t), mem.New()
	initVault(t, store)
	p := open(t, w, store)
	ids := chain(t, p, 10, 70, 50)
	do := func(op log.Op) {
		t.Helper()
		if _, err := p.Journal.Append(t.Context(), func(context.Context, *state.State) ([]log.Op, error) {
			return []log.Op{op}, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	do(state.Pin(state.ID{7}))
	before := objects(t, store, "pack/")
	if err := p.purge(t.Context(), ids[:8]...); err != nil {
		t.Fatal(err)
	}
	r := collect(t, p, gc.Options{Policy: quick})
	if r.WaitingPacks < 6 || r.WaitingBytes == 0 || len(r.WaitingFor) != 1 {
		t.Errorf("what waits for the mirror: %+v", r)
	}
	for _, name := range before {
		if _, err := store.Stat(t.Context(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r.RewrittenBytes == 0 || len(objects(t, store, "part/")) != 1 {
		t.Errorf("no recipe was stored: %+v", r)
	}
	checkRecipes(t, p)
	do(state.Arrived(state.ID{7}))
	r = collect(t, p, gc.Options{Policy: quick})
	if r.WaitingPacks != 0 || r.DeletedPacks == 0 || len(objects(t, store, "part/")) != 0 {
		t.Errorf("after the mirror has arrived: %+v", r)
	}
	p.exactly(t, 0)
}

// checkRecipes makes each pack of which an entry has a recipe by it, and compares.
func checkRecipes(t *testing.T, p *process) {
	t.Helper()
	head, err := p.Journal.Remember(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	read := func(ctx context.Context, of log.ObjectID, kind log.ObjectKind, b []byte, off int64) error {
		o := log.Object{ID: of, Kind: kind}
		_, err := p.Store.ReadAt(ctx, o.Name(), b, off)
		return err
	}
	made := 0
	err = log.History(t.Context(), p.Store, stateKeys().Log(), head, log.Position{}, func(e log.Past) bool {
		for _, op := range e.Ops {
			for _, r := range op.Recipes {
				var got bytes.Buffer
				if err := pack.Make(t.Context(), r, log.ObjectID{}, read, &got); err != nil {
					t.Error(err)
				}
				o := log.Object{ID: r.Makes, Kind: log.Pack}
				if want, err := blob.Get(t.Context(), p.Store, o.Name()); err != nil ||
					!bytes.Equal(got.Bytes(), want) {
					t.Errorf("pack %s is made otherwise, or not there: %v", r.Makes, err)
				}
				made++
			}
		}
		return true
	})
	if err != nil || made == 0 {
		t.Errorf("%d packs were made by recipes: %v", made, err)
	}
}

// Rows that are not as they were written are not moved, the pack that has them is left and named;
// all else is collected.
func TestDamagedPacksAreLeftAlone(t *testing.T) {
	w, store := newWorld(t), mem.New()
	initVault(t, store)
	p := open(t, w, store)
	ids := chain(t, p, 10, 20, 1)
	first := objects(t, store, "pack/")
	if err := p.purge(t.Context(), ids[:9]...); err != nil {
		t.Fatal(err)
	}
	hurt := 0
	for _, name := range first {
		info, err := store.Stat(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size > 3000 { // the one that has the start
			hurt++
			if err := store.Corrupt(name, func(b []byte) []byte {
				b[64+5*130] ^= 1
				return b
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := collect(t, p, gc.Options{Policy: quick})
	if hurt != 1 || len(r.Troubles) == 0 || r.DeadPacks < 8 {
		t.Errorf("%d hurt, report %+v", hurt, r)
	}
	damaged := 0
	if err := p.Journal.View(t.Context(), func(s *state.State) error {
		return s.DamagedPacks(t.Context(), func(log.ObjectID) bool {
			damaged++
			return true
		})
	}); err != nil || damaged != 1 {
		t.Errorf("%d packs are said to be damaged, %v", damaged, err)
	}
	again := collect(t, p, gc.Options{Policy: quick})
	if again.DeadPacks+again.ThinPacks > 0 || len(again.Troubles) == 0 {
		t.Errorf("again: %+v", again)
	}
}

// Deleting some of very many points costs what they free, not what there is.
func TestCostsFollowWhatIsFreed(t *testing.T) {
	calls := func(all, purged int) int {
		w, store := newWorld(t), fault.New(mem.New())
		initVault(t, store)
		p := open(t, w, store)
		ids := chain(t, p, all, 5, 1)
		if err := p.purge(t.Context(), ids[:purged]...); err != nil {
			t.Fatal(err)
		}
		p.Journal.Close()
		again := open(t, w, store)
		before := store.Calls()
		r := collect(t, again, gc.Options{Policy: quick})
		if r.PurgedPoints != purged {
			t.Fatalf("%+v", r)
		}
		return store.Calls() - before
	}
	few, many := calls(60, 20), calls(600, 20)
	if many > few+few/2 {
		t.Errorf("%d calls where there are 60 points, %d where there are 600", few, many)
	}
}
