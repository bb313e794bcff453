package vault_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
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

// Any flipped bit, missing object or truncated object that matters is found, and the ranges that Check names are exactly those that do
// not read back.
func TestCheckFindsAnyDamage(t *testing.T) {
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
			d := randomDisk(seed, 30)
			p := backUpWhole(t, openVault(t, store, key), d)
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
			if err != nil { // the configuration or the only key: the vault does not open, and says so
				if !strings.HasPrefix(victim, "vault.json") && !strings.HasPrefix(victim, "keys/") {
					t.Fatalf("%s %s, seed %d: %v", name, victim, seed, err)
				}
				continue
			}
			if len(r.Damage) == 0 && !strings.HasPrefix(victim, "keys/") && !(damage == nil && strings.HasPrefix(victim, "points/")) {
				t.Fatalf("%s %s, seed %d: not found", name, victim, seed)
			}
			if r.Points == 1 {
				requireHitsAreExact(t, store, key, r, p.Disks[0].Root, d.data)
			}
		}
	}
}

func objectsThatMatter(t *testing.T, store *mem.Store) (names []string) {
	t.Helper()
	for info, err := range store.List(context.Background(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if info.Name != "gc/reserve" && !strings.HasPrefix(info.Name, "index/") { // zeros, kept to have room when the disk is full, and a cache
			names = append(names, info.Name)
		}
	}
	return names
}

func requireHitsAreExact(t *testing.T, store *mem.Store, key vault.Key, r vault.CheckReport, root string, want []byte) {
	t.Helper()
	var hit extent.Set
	for _, h := range r.Hits {
		hit = hit.Union(h.Ranges)
	}
	d, err := openVault(t, store, key).OpenDisk(root, int64(len(want)))
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

// The index is a cache: without it, or with any of it damaged, everything reads back and the next session works.
func TestTheIndexIsRebuilt(t *testing.T) {
	ctx := context.Background()
	for _, damage := range []func([]byte) []byte{nil, func(b []byte) []byte { b[len(b)/2]++; return b }, func(b []byte) []byte { return b[:len(b)/3] }} {
		store := mem.New()
		key := newVault(t, store)
		d := randomDisk(1, 1100) // enough for a segment
		p := backUpWhole(t, openVault(t, store, key), d)
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

// A full read after damage was found stores the damaged chunks anew, and all points are whole again.
func TestTheNextFullReadHeals(t *testing.T) {
	store := mem.New()
	key := newVault(t, store)
	d := randomDisk(1, 60)
	p := backUpWhole(t, openVault(t, store, key), d)
	for _, name := range objectsThatMatter(t, store) {
		if strings.HasPrefix(name, "data/") {
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
