package vault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func addNote(t *testing.T, v *vault.Vault, id point.ID, kind string, body []byte) vault.Note {
	t.Helper()
	n, err := v.AddNote(context.Background(), id, kind, body)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func notes(t *testing.T, v *vault.Vault, id point.ID, kind string) []vault.Note {
	t.Helper()
	out, err := v.Notes(context.Background(), id, kind)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// noteObjects returns the names of all notes in the store.
func noteObjects(t *testing.T, s blob.Store) (names []string) {
	t.Helper()
	for info, err := range s.List(context.Background(), "notes/", "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

// sameNotes compares all but what NoteHeads leaves out when bodies is false.
func sameNotes(got, want []vault.Note, bodies bool) bool {
	return slices.EqualFunc(got, want, func(a, b vault.Note) bool {
		return a.ID == b.ID && a.Kind == b.Kind && a.Time.Equal(b.Time) && a.Size == b.Size &&
			(!bodies || bytes.Equal(a.Body, b.Body))
	})
}

// What is attached to points, in any order, reads back oldest first, by point and by kind, until it
// is deleted.
func TestNotesReadBack(t *testing.T) {
	ctx := context.Background()
	store, key, v := memVault(t)
	rng := rand.New(rand.NewPCG(1, 5))
	points := []point.ID{backUpWhole(t, v, randomDisk(1, 1)).ID, backUpWhole(t, v, randomDisk(2, 1)).ID}
	kinds := []string{vault.NoteDrill, vault.NoteScreenshot, vault.NoteBootSet}
	want := map[point.ID][]vault.Note{}
	for i := range 40 {
		id := points[rng.IntN(len(points))]
		body := make([]byte, []int{0, 1, 50, 70000, vault.MaxNote}[min(i, rng.IntN(4))])
		if i == 7 {
			body = make([]byte, vault.MaxNote)
		}
		for j := range body {
			body[j] = byte(rng.Uint32())
		}
		want[id] = append(want[id], addNote(t, v, id, kinds[rng.IntN(3)], body))
		if n := len(want[id]); rng.IntN(4) == 0 {
			gone := rng.IntN(n)
			if err := v.DeleteNote(ctx, id, want[id][gone].ID); err != nil {
				t.Fatal(err)
			}
			want[id] = slices.Delete(want[id], gone, gone+1)
		}
	}
	v = openVault(t, store, key)
	for id, all := range want {
		if got := notes(t, v, id, ""); !sameNotes(got, all, true) {
			t.Errorf("point %s has notes %v, want %v", id, got, all)
		}
		heads, err := v.NoteHeads(ctx, id)
		if err != nil || !sameNotes(heads, all, false) || slices.ContainsFunc(heads, func(n vault.Note) bool {
			return n.Body != nil
		}) {
			t.Errorf("point %s has heads %v, want those of %v: %v", id, heads, all, err)
		}
		for _, kind := range kinds {
			of := slices.DeleteFunc(slices.Clone(all), func(n vault.Note) bool { return n.Kind != kind })
			if got := notes(t, v, id, kind); !sameNotes(got, of, true) {
				t.Errorf("point %s has %s notes %v, want %v", id, kind, got, of)
			}
		}
	}
}

func TestNotesThatAreRefused(t *testing.T) {
	ctx := context.Background()
	store, _, v := memVault(t)
	id := backUpWhole(t, v, randomDisk(1, 1)).ID
	for _, kind := range []string{"", "Drill", "a/b", "a b", strings.Repeat("a", 33)} {
		if _, err := v.AddNote(ctx, id, kind, nil); err == nil {
			t.Errorf("a note of kind %q is added", kind)
		}
	}
	if _, err := v.AddNote(ctx, id, "drill", make([]byte, vault.MaxNote+1)); err == nil {
		t.Error("a note of more than the most bytes is added")
	}
	for _, id := range []point.ID{"", "../x", point.NewID()} {
		if _, err := v.AddNote(ctx, id, "drill", nil); !errors.Is(err, vault.ErrNoPoint) {
			t.Errorf("a note is added to point %q: %v", id, err)
		}
	}
	for _, note := range []string{"", "../x", string(point.NewID())} {
		if err := v.DeleteNote(ctx, id, note); !errors.Is(err, vault.ErrNoNote) {
			t.Errorf("note %q is deleted: %v", note, err)
		}
	}
	if got := noteObjects(t, store); len(got) > 0 {
		t.Errorf("it left %v", got)
	}
}

// Notes go with their point, and with no other.
func TestNotesGoWithTheirPoint(t *testing.T) {
	store, _, v := memVault(t)
	a, b := backUpWhole(t, v, randomDisk(1, 1)), backUpWhole(t, v, randomDisk(2, 1))
	for range 3 {
		addNote(t, v, a.ID, "drill", []byte("{}"))
	}
	kept := addNote(t, v, b.ID, "drill", []byte("{}"))
	deletePoint(t, v, a.ID)
	if got, want := noteObjects(t, store), []string{"notes/" + string(b.ID) + "-" + kept.ID}; !slices.Equal(got, want) {
		t.Errorf("%v are left, want %v", got, want)
	}
}

// A point that is deleted while a note is added to it has none; if the process that adds it dies
// before it finds out, garbage collection deletes the note, and no other.
func TestPointDeletedWhileANoteIsAdded(t *testing.T) {
	ctx := context.Background()
	store, key, v := memVault(t)
	kept := backUpWhole(t, v, randomDisk(1, 1))
	addNote(t, v, kept.ID, "drill", nil)
	gone := backUpWhole(t, v, randomDisk(2, 1))
	addNote(t, v, gone.ID, "drill", nil)
	leftover := noteObjects(t, store)[slices.IndexFunc(noteObjects(t, store), func(n string) bool {
		return strings.Contains(n, string(gone.ID))
	})]
	raw, err := blob.Get(ctx, store, leftover)
	if err != nil {
		t.Fatal(err)
	}
	hook := &hooked{Store: store, prefix: "notes/", before: func() {
		deletePoint(t, v, gone.ID)
	}}
	if _, err := openVault(t, hook, key).AddNote(ctx, gone.ID, "drill", nil); !errors.Is(err, vault.ErrNoPoint) {
		t.Fatalf("a note is added to a point that is gone: %v", err)
	}
	if got := noteObjects(t, store); len(got) != 1 {
		t.Fatalf("%v are left", got)
	}
	if err := blob.Put(ctx, store, leftover, raw); err != nil { // as if the process had died
		t.Fatal(err)
	}
	if r, err := v.CollectGarbage(ctx, vault.GCOptions{DryRun: true}); err != nil || r.Notes != 1 ||
		len(noteObjects(t, store)) != 2 {
		t.Fatalf("a dry run finds %+v: %v", r, err)
	}
	if r := collect(t, v); r.Notes != 1 || len(noteObjects(t, store)) != 1 || len(notes(t, v, kept.ID, "")) != 1 {
		t.Fatalf("%v are left, report %+v", noteObjects(t, store), r)
	}
}

// Notes of points that come while garbage is collected stay.
func TestNotesAddedWhileGarbageIsCollected(t *testing.T) {
	ctx := context.Background()
	for _, prefix := range []string{"notes/"} {
		store := mem.New()
		key := newVault(t, store)
		other := openVault(t, store, key)
		added, seed := 0, uint64(1)
		hook := &listed{Store: store, prefix: prefix, before: func() {
			seed++
			addNote(t, other, backUpWhole(t, other, randomDisk(seed, 1)).ID, "drill", nil)
			added++
		}}
		if r, err := openVault(t, hook, key).CollectGarbage(ctx, vault.GCOptions{}); err != nil || r.Notes != 0 {
			t.Fatalf("%+v %v", r, err)
		}
		if got := noteObjects(t, store); len(got) != added || added == 0 {
			t.Errorf("%d of %d notes are left", len(got), added)
		}
	}
}

// A note under the name of another point or note, or with any byte changed or missing, is never
// read: the others are, and check warns of it by the name of its point.
func TestDamagedNotesAreNamed(t *testing.T) {
	ctx := context.Background()
	store, _, v := memVault(t)
	a, b := backUpWhole(t, v, randomDisk(1, 1)), backUpWhole(t, v, randomDisk(2, 1))
	whole := addNote(t, v, a.ID, "drill", []byte(`{"verified":true}`))
	victim := addNote(t, v, a.ID, "screenshot", bytes.Repeat([]byte("png"), 100))
	name := "notes/" + string(a.ID) + "-" + victim.ID
	raw, err := blob.Get(ctx, store, name)
	if err != nil {
		t.Fatal(err)
	}
	require := func(name string, id point.ID, others []vault.Note, bad []byte) {
		t.Helper()
		if err := store.Delete(ctx, name); err != nil {
			t.Fatal(err)
		}
		if err := blob.Put(ctx, store, name, bad); err != nil {
			t.Fatal(err)
		}
		if got, err := v.Notes(ctx, id, ""); !errors.Is(err, vault.ErrCorrupt) || !sameNotes(got, others, true) {
			t.Fatalf("%s reads as %v, %v", name, got, err)
		}
		r, err := v.Check(ctx, vault.CheckOptions{})
		if err != nil || len(r.Damage) > 0 || len(r.Warnings) != 1 ||
			!strings.Contains(r.Warnings[0], "of point "+id.Short()) {
			t.Fatalf("check of %s: %+v %v", name, r, err)
		}
	}
	for i := 0; i < len(raw); i += 3 {
		bad := bytes.Clone(raw)
		bad[i] ^= 1 << (i % 8)
		require(name, a.ID, []vault.Note{whole}, bad)
		require(name, a.ID, []vault.Note{whole}, raw[:i])
	}
	require(fmt.Sprintf("notes/%s-%s", a.ID, victim.ID), a.ID, []vault.Note{whole},
		mustGet(t, store, "notes/"+string(a.ID)+"-"+whole.ID))
	if err := v.DeleteNote(ctx, a.ID, victim.ID); err != nil {
		t.Fatal(err)
	}
	require(fmt.Sprintf("notes/%s-%s", b.ID, victim.ID), b.ID, nil, raw)
}

func mustGet(t *testing.T, s blob.Store, name string) []byte {
	t.Helper()
	raw, err := blob.Get(context.Background(), s, name)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
