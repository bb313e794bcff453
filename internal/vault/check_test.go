package vault_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// check opens the vault, if that is still possible, and reads everything.
func check(store *mem.Store, key vault.Key) (vault.CheckReport, error) {
	v, err := vault.Open(context.Background(), store, key, vault.Options{Workers: 2})
	if err != nil {
		return vault.CheckReport{}, err
	}
	return v.Check(context.Background(), vault.CheckOptions{ReadData: true})
}

// Any flipped bit, missing object or truncated object that matters is found, and the ranges that
// Check names are exactly those that do not read back.
func TestCheckFindsAnyDamage(t *testing.T) {
	if underRace {
		t.Skip("it counts, or compares, and is run without the race detector")
	}
	ctx := context.Background()
	damages := map[string]func([]byte, *rand.Rand) []byte{
		"flip": func(b []byte, rng *rand.Rand) []byte { b[rng.IntN(len(b))] ^= 1 << rng.IntN(8); return b },
		"cut":  func(b []byte, rng *rand.Rand) []byte { return b[:rng.IntN(len(b))] },
		"gone": nil,
	}
	for name, damage := range damages {
		for seed := range uint64(25) {
			rng := rand.New(rand.NewPCG(seed, 11))
			store := mem.New()
			key := newVault(t, store)
			d, e := randomDisk(seed, 30), randomDisk(seed+100, 10)
			v := openVault(t, store, key)
			disks := map[point.ID]*disk{backUpWhole(t, v, d).ID: d, backUpWhole(t, v, e).ID: e}
			objects := objectsThatMatter(t, store)
			victim := objects[rng.IntN(len(objects))]
			if damage == nil {
				if err := store.Delete(ctx, victim); err != nil {
					t.Fatal(err)
				}
			} else if err := store.Corrupt(victim, func(b []byte) []byte { return damage(b, rng) }); err != nil {
				t.Fatal(err)
			}
			r, err := check(store, key)
			if err != nil { // what is needed to open the vault is damaged, and opening it says so
				if strings.HasPrefix(victim, "pack/") {
					t.Fatalf("%s %s, seed %d: %v", name, victim, seed, err)
				}
				continue
			}
			last := damage == nil && strings.HasPrefix(victim, "log/") && r.Points < len(disks) // who has seen it knows
			if len(r.Damage) == 0 && !strings.HasPrefix(victim, "keys/") && !last {
				t.Fatalf("%s %s, seed %d: not found", name, victim, seed)
			}
			requireHitsAreExact(t, store, key, r, disks)
		}
	}
}

func objectsThatMatter(t *testing.T, store *mem.Store) (names []string) {
	t.Helper()
	for info, err := range store.List(context.Background(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		// But for zeros, kept to have room when the disk is full, and a cache.
		if info.Name != "gc/reserve" && !strings.HasPrefix(info.Name, "index/") {
			names = append(names, info.Name)
		}
	}
	return names
}

// requireHitsAreExact compares what Check names with what reads back of the points that are there.
func requireHitsAreExact(t *testing.T, store *mem.Store, key vault.Key, r vault.CheckReport,
	disks map[point.ID]*disk) {
	t.Helper()
	v := openVault(t, store, key)
	points, err := v.Summaries(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(points) != r.Points {
		t.Fatalf("%d points were checked, %d are there", r.Points, len(points))
	}
	for _, p := range points {
		want := disks[p.ID].data
		var hit extent.Set
		for _, h := range r.Hits {
			if h.Point == p.ID {
				hit = hit.Union(h.Ranges)
			}
		}
		d, err := v.OpenDisk(p.Disks[0].Root, int64(len(want)))
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, testChunk)
		for at := 0; at < len(want); at += testChunk {
			_, err := d.ReadAt(buf, int64(at))
			reads := err == nil && bytes.Equal(buf, want[at:at+testChunk])
			named := len(hit.Clip(extent.Extent{Off: int64(at), Len: 1})) > 0
			if reads == named {
				t.Fatalf("chunk at %d reads: %v, named as damaged: %v (%v)", at, reads, named, r.Damage)
			}
		}
		bad, err := d.Verify(context.Background(), nil)
		if err != nil || bad.Bytes() != hit.Bytes() {
			t.Fatalf("verify says %v, check says %v: %v", bad, hit, err)
		}
	}
}

// copyStore returns a store with the same objects.
func copyStore(t *testing.T, from blob.Store) *mem.Store {
	t.Helper()
	to := mem.New()
	for name, err := range blob.Names(t.Context(), from, "", "") {
		var b []byte
		if err == nil {
			b, err = blob.Read(t.Context(), from, name, 1<<30)
		}
		if err == nil {
			err = blob.Put(t.Context(), to, name, b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// The index is a cache: without it, or with any of it damaged, everything reads back and the next
// session works.
func TestTheIndexIsRebuilt(t *testing.T) {
	if underRace {
		t.Skip("it counts, or compares, and is run without the race detector")
	}
	ctx := context.Background()
	whole := mem.New()
	key := newVault(t, whole)
	d := randomDisk(1, 3)
	first := openVault(t, whole, key)
	p := backUpWhole(t, first, d)
	for i := range uint64(260) { // enough packs for a segment
		backUpWhole(t, first, randomDisk(2+i, 1))
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	flip, cut := func(b []byte) []byte { b[len(b)/2]++; return b }, func(b []byte) []byte { return b[:len(b)/3] }
	for _, damage := range []func([]byte) []byte{nil, flip, cut} {
		store := copyStore(t, whole)
		segments := 0
		for info, err := range store.List(ctx, "index/", "") {
			if err != nil {
				t.Fatal(err)
			}
			segments++
			if damage == nil {
				err = store.Delete(ctx, info.Name)
			} else {
				err = store.Corrupt(info.Name, damage)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if segments == 0 {
			t.Fatal("no segment was written")
		}
		v := openVault(t, store, key)
		requireContent(t, v, p, d.data)
		if p2 := backUpWhole(t, v, &disk{data: bytes.Clone(d.data)}); p2.Disks[0].Root != p.Disks[0].Root {
			t.Fatal("the same disk has another root")
		}
		if r, err := check(store, key); err != nil || len(r.Damage) > 0 {
			t.Fatalf("%+v %v", r, err)
		}
	}
}

// A manifest that is damaged is named with its point and its machine, and hides nothing else:
// whether what the point needs is there is still seen, and what is wrong with others.
func TestADamagedManifestStopsNothing(t *testing.T) {
	store := mem.New()
	key := newVault(t, store)
	v := openVault(t, store, key)
	a, b := randomDisk(1, 20), randomDisk(2, 20)
	first := backUpWhole(t, v, a)
	packs := packNames(t, store)
	if len(packs) != 1 {
		t.Fatalf("a small point is in packs %v", packs)
	}
	second := backUpWhole(t, v, b)
	at, err := vault.ManifestOffset(t.Context(), v, first.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Corrupt(packs[0], func(b []byte) []byte { b[at] ^= 1; return b }); err != nil {
		t.Fatal(err)
	}
	for _, name := range packNames(t, store) {
		if name != packs[0] {
			if err := store.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	r, err := openVault(t, store, key).Check(t.Context(), vault.CheckOptions{})
	if err != nil || r.Points != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	named := false
	for _, d := range r.Damage {
		named = named || strings.Contains(d.What, string(first.ID)) && strings.Contains(d.What, "vm")
	}
	if !named {
		t.Errorf("the point is not named: %v", r.Damage)
	}
	for _, h := range r.Hits {
		if h.Point != second.ID || h.Ranges.Bytes() != int64(len(b.data)) {
			t.Errorf("%+v", h)
		}
	}
	if len(r.Hits) != 1 {
		t.Errorf("hits are %v", r.Hits)
	}
}

func packNames(t *testing.T, store *mem.Store) (names []string) {
	t.Helper()
	for name, err := range blob.Names(t.Context(), store, "pack/", "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

// Without reading data too what is missing is found, and named for later sessions; the ranges that
// it hits are exact.
func TestAMissingPackIsFoundWithoutReadingData(t *testing.T) {
	store := mem.New()
	key := newVault(t, store)
	v := openVault(t, store, key)
	d := randomDisk(1, 20)
	p := backUpWhole(t, v, d)
	e := &disk{data: append(bytes.Clone(d.data), randomDisk(2, 5).data...)}
	before := packNames(t, store)
	q := backUpWhole(t, v, e)
	for _, name := range packNames(t, store) {
		if name != before[0] {
			if err := store.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	c := openVault(t, store, key)
	r, err := c.Check(t.Context(), vault.CheckOptions{})
	if err != nil || len(r.Damage) == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	requireHitsAreExact(t, store, key, r, map[point.ID]*disk{p.ID: d, q.ID: e})
	damaged := false
	err = c.History(t.Context(), func(e vault.Event) bool {
		damaged = damaged || e.What == "damaged"
		return true
	})
	if err != nil || !damaged {
		t.Errorf("the log does not tell of the damage: %v", err)
	}
}

// A full read after damage was found stores the damaged chunks anew, and all points are whole
// again.
func TestTheNextFullReadHeals(t *testing.T) {
	store := mem.New()
	key := newVault(t, store)
	d := randomDisk(1, 60)
	p := backUpWhole(t, openVault(t, store, key), d)
	for _, name := range objectsThatMatter(t, store) {
		if strings.HasPrefix(name, "pack/") {
			if err := store.Corrupt(name, func(b []byte) []byte { b[1000]++; return b }); err != nil {
				t.Fatal(err)
			}
		}
	}
	if r, err := check(store, key); err != nil || len(r.Hits) == 0 {
		t.Fatalf("%+v %v", r, err)
	}
	backUpWhole(t, openVault(t, store, key), &disk{data: bytes.Clone(d.data)})
	requireContent(t, openVault(t, store, key), p, d.data)
	if r, err := check(store, key); err != nil || len(r.Hits) > 0 {
		t.Fatalf("still hit: %+v %v", r.Hits, err)
	}
}
