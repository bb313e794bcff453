package session_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/session"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

func randomDisk(seed uint64, chunks int) *disk {
	d := &disk{data: make([]byte, chunks*testChunk)}
	fill(rand.New(rand.NewPCG(seed, 11)), d.data)
	return d
}

// again returns a disk of the same content of which nothing is known.
func (d *disk) again() *disk { return &disk{data: bytes.Clone(d.data)} }

// packsOf returns the good packs.
func (r *room) packsOf(t *testing.T) (all []log.ObjectID) {
	t.Helper()
	r.view(t, func(ctx ctxt, st *state.State) error {
		return st.Packs(ctx, func(o log.Object) bool {
			all = append(all, o.ID)
			return true
		})
	})
	return all
}

// A pack that is condemned between the look-up and the commit makes no point that cannot be read.
func TestCountedPackIsCollected(t *testing.T) {
	r := newRoom(t, mem.New())
	d := randomDisk(1, 5)
	p := r.backUp(t, d)
	old := r.packsOf(t)
	s := r.begin(t, "other")
	if err := put(t.Context(), s, d.again(), whole(d), nil); err != nil {
		t.Fatal(err)
	}
	again := d.again()
	if err := put(t.Context(), s, again, whole(d), nil); err != nil {
		t.Fatal(err)
	}
	r.purge(t, p.ID)
	r.condemn(t, old...)
	if _, err := commit(t.Context(), s, again); !errors.Is(err, session.ErrLost) {
		t.Fatalf("committed a point that cannot be read: %v", err)
	}
	s = r.begin(t, "other")
	again = d.again()
	if err := put(t.Context(), s, again, whole(d), nil); err != nil {
		t.Fatal(err)
	}
	q, err := commit(t.Context(), s, again)
	if err != nil {
		t.Fatal(err)
	}
	r.require(t, q.ID, d.data)
}

// What was collected, and is elsewhere too, is counted on there.
func TestCountedPackIsElsewhereToo(t *testing.T) {
	store := mem.New()
	r := newRoom(t, store)
	other, err := openRoom(t, store)
	if err != nil {
		t.Fatal(err)
	}
	d := randomDisk(1, 5)
	// Two who store the same at once store it twice.
	one, two := d.again(), d.again()
	s, s2 := r.begin(t, "vm"), other.begin(t, "vm2")
	for _, x := range []struct {
		s *session.Session
		d *disk
	}{{s, one}, {s2, two}} {
		if err := put(t.Context(), x.s, x.d, whole(d), nil); err != nil {
			t.Fatal(err)
		}
	}
	p, err := commit(t.Context(), s, one)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := commit(t.Context(), s2, two); err != nil {
		t.Fatal(err)
	}
	// A third counts on one of the copies, which is collected.
	if err := r.Journal.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = r.begin(t, "vm3")
	three := d.again()
	if err := put(t.Context(), s, three, whole(d), nil); err != nil {
		t.Fatal(err)
	}
	loc, ok, err := r.Index.Find(t.Context(), rootID(t, three), nil)
	if err != nil || !ok {
		t.Fatal(err)
	}
	if loc.Pack.ID.Session() == packOf(t, r, p.ID).Session() {
		r.purge(t, p.ID)
	}
	r.condemn(t, loc.Pack.ID)
	q, err := commit(t.Context(), s, three)
	if err != nil {
		t.Fatal(err)
	}
	r.require(t, q.ID, d.data)
	r.requireShared(t, three, true)
}

// A point whose base was purged under the session counts on all it needs, one by one.
func TestBaseIsPurgedUnderASession(t *testing.T) {
	r := newRoom(t, mem.New())
	d := randomDisk(2, 70)
	p := r.backUp(t, d)
	s := r.begin(t, "vm")
	fill(rand.New(rand.NewPCG(5, 5)), d.data[:testChunk])
	if err := put(t.Context(), s, d, extent.Of(extent.Extent{Len: testChunk}), nil); err != nil {
		t.Fatal(err)
	}
	r.purge(t, p.ID)
	q, err := commit(t.Context(), s, d)
	if err != nil {
		t.Fatal(err)
	}
	r.require(t, q.ID, d.data)
	if of, _ := r.rowOf(t, q.ID); len(of.Bases) != 0 {
		t.Errorf("it has bases that do not live: %v", of.Bases)
	}
	// The first chunk is its own; the second it had inherited.
	r.requireSharedChunk(t, d, 0, false)
	r.requireSharedChunk(t, d, 1, true)
}

// What only the purged base had is lost with it.
func TestBaseIsPurgedAndCollectedUnderASession(t *testing.T) {
	r := newRoom(t, mem.New())
	d := randomDisk(2, 70)
	p := r.backUp(t, d)
	old := r.packsOf(t)
	s := r.begin(t, "vm")
	fill(rand.New(rand.NewPCG(5, 5)), d.data[:testChunk])
	if err := put(t.Context(), s, d, extent.Of(extent.Extent{Len: testChunk}), nil); err != nil {
		t.Fatal(err)
	}
	r.purge(t, p.ID)
	r.condemn(t, old...)
	if _, err := commit(t.Context(), s, d); !errors.Is(err, session.ErrLost) {
		t.Fatalf("committed a point that cannot be read: %v", err)
	}
}

// What lies in a pack that a check found damaged is stored anew.
func TestDamagedPacksAreNotCountedOn(t *testing.T) {
	r := newRoom(t, mem.New())
	d := randomDisk(3, 5)
	r.backUp(t, d)
	old := r.packsOf(t)
	r.op(t, func(ctxt, *state.State) (log.Op, error) {
		x := state.Damaged{Packs: old}
		return x.Op(), nil
	})
	again := d.again()
	q := r.backUp(t, again)
	for _, id := range old {
		o := log.Object{ID: id, Kind: log.Pack}
		if err := r.Store.Delete(t.Context(), o.Name()); err != nil {
			t.Fatal(err)
		}
	}
	fresh, err := openRoom(t, r.Store)
	if err != nil {
		t.Fatal(err)
	}
	fresh.require(t, q.ID, d.data)
	r.requireShared(t, again, false)
}

// A session that stored a thing anew, as the pack that had it is damaged, and inherited it
// elsewhere from a point that is purged meanwhile, uses its copy twice.
func TestOwnCopyIsUsedForWhatWasInherited(t *testing.T) {
	r := newRoom(t, mem.New())
	d := randomDisk(4, 5)
	p := r.backUp(t, d)
	old := r.packsOf(t)
	r.op(t, func(ctxt, *state.State) (log.Op, error) {
		x := state.Damaged{Packs: old}
		return x.Op(), nil
	})
	s := r.begin(t, "vm")
	other := d.again()
	if err := put(t.Context(), s, other, whole(d), nil); err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), s, d, nil, nil); err != nil {
		t.Fatal(err)
	}
	r.purge(t, p.ID)
	q, err := commit(t.Context(), s, d, other)
	if err != nil {
		t.Fatal(err)
	}
	r.require(t, q.ID, d.data, d.data)
	r.requireShared(t, d, true)
}
