package vault_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// storedBytes sums the packs.
func storedBytes(t *testing.T, s blob.Store) (n int64) {
	t.Helper()
	for info, err := range s.List(context.Background(), "pack/", "") {
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size
	}
	return n
}

func randomDisk(seed uint64, chunks int) *disk {
	rng := rand.New(rand.NewPCG(seed, 99))
	d := &disk{data: make([]byte, chunks*testChunk)}
	for i := range d.data {
		d.data[i] = byte(rng.Uint32())
	}
	return d
}

func backUpWhole(t *testing.T, v *vault.Vault, d *disk) *point.RecoveryPoint {
	t.Helper()
	s := begin(t, v)
	if err := put(context.Background(), s, d, extent.Of(extent.Extent{Len: int64(len(d.data))}), nil); err != nil {
		t.Fatal(err)
	}
	p := newPoint("vm", d)
	if err := s.Commit(context.Background(), p); err != nil {
		t.Fatal(err)
	}
	return p
}

func begin(t *testing.T, v *vault.Vault) *vault.Session {
	t.Helper()
	s, err := v.Begin(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func collect(t *testing.T, v *vault.Vault) vault.GCReport {
	t.Helper()
	r, err := v.CollectGarbage(context.Background(), vault.GCOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func requireContent(t *testing.T, v *vault.Vault, p *point.RecoveryPoint, want []byte) {
	t.Helper()
	got, err := restore(context.Background(), v, p.Disks[0])
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("point %s differs: %v", p.ID, err)
	}
}

// Deleting a point and collecting frees what only it held, at once, and nothing else.
func TestCollectingFreesWhatADeletedPointHeld(t *testing.T) {
	store, _, v := memVault(t)
	a, b := randomDisk(1, 100), randomDisk(2, 50)
	pa, pb := backUpWhole(t, v, a), backUpWhole(t, v, b)
	deletePoint(t, v, pa.ID)
	r := collect(t, v)
	if left := storedBytes(t, store); left > 51*testChunk+8192 || r.FreedBytes < 100*testChunk {
		t.Fatalf("%d bytes left, report %+v", left, r)
	}
	requireContent(t, v, pb, b.data)
}

// A pack of which little is needed is rewritten; the points that need it read back.
func TestThinPacksAreRewritten(t *testing.T) {
	store, _, v := memVault(t)
	a := randomDisk(1, 100)
	pa := backUpWhole(t, v, a)
	part := &disk{data: bytes.Clone(a.data[:20*testChunk])}
	pp := backUpWhole(t, v, part) // shares the pack
	deletePoint(t, v, pa.ID)
	if r := collect(t, v); r.ThinPacks == 0 {
		t.Fatalf("nothing rewritten: %+v", r)
	}
	if left := storedBytes(t, store); left > 21*testChunk+8192 {
		t.Fatalf("%d bytes left", left)
	}
	requireContent(t, v, pp, part.data)
}

// A session that counts on what was purged and collected meanwhile is told that it is lost, and
// makes no point; one that is done anew is whole.
func TestASessionWhoseChunksWentIsToldSo(t *testing.T) {
	ctx := context.Background()
	store, key, v := memVault(t)
	d := randomDisk(1, 40)
	old := backUpWhole(t, v, d)

	s := begin(t, openVault(t, store, key))
	clone := &disk{data: bytes.Clone(d.data)}
	if err := put(ctx, s, clone, extent.Of(extent.Extent{Len: int64(len(d.data))}), nil); err != nil {
		t.Fatal(err)
	}
	deletePoint(t, v, old.ID)
	collect(t, v)
	if err := s.Commit(ctx, newPoint("clone", clone)); !errors.Is(err, vault.ErrLost) {
		t.Fatalf("committed what is gone: %v", err)
	}
	again := openVault(t, store, key)
	p := backUpWhole(t, again, &disk{data: bytes.Clone(d.data)})
	requireContent(t, again, p, d.data)
	if points, err := again.Points(ctx); err != nil || len(points) != 1 {
		t.Fatalf("%d points, %v", len(points), err)
	}
}

// What a session counted on and committed before a collection stays, whatever else goes.
func TestWhatWasCommittedMeanwhileStays(t *testing.T) {
	ctx := context.Background()
	store, key, v := memVault(t)
	d := randomDisk(1, 40)
	old := backUpWhole(t, v, d)
	p := backUpWhole(t, openVault(t, store, key), &disk{data: bytes.Clone(d.data)})
	if err := v.PurgePoint(ctx, old.ID); err != nil {
		t.Fatal(err)
	}
	collect(t, v)
	collect(t, v)
	requireContent(t, openVault(t, store, key), p, d.data)
	if left := storedBytes(t, store); left > 41*testChunk+16384 {
		t.Fatalf("%d bytes are left", left)
	}
}

// Two collections at once do each other no harm.
func TestTwoCollectAtOnce(t *testing.T) {
	store, key, v := memVault(t)
	a, b := randomDisk(1, 30), randomDisk(2, 30)
	pa, pb := backUpWhole(t, v, a), backUpWhole(t, v, b)
	deletePoint(t, v, pa.ID)
	var nested error
	_, err := v.CollectGarbage(context.Background(), vault.GCOptions{Log: func(string, ...any) {
		_, nested = openVault(t, store, key).CollectGarbage(context.Background(), vault.GCOptions{})
	}})
	if err != nil || nested != nil {
		t.Fatalf("%v, the second: %v", err, nested)
	}
	requireContent(t, openVault(t, store, key), pb, b.data)
}

// Sessions, readers, deletions and collections of several open vaults at once: every point that is
// there reads back.
func TestEverythingAtOnce(t *testing.T) {
	ctx := context.Background()
	store := mem.New()
	key := newVault(t, store)
	var wg sync.WaitGroup
	for w := range uint64(3) {
		v := openVault(t, store, key)
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(w, 3))
			d := &disk{data: make([]byte, 20*testChunk)}
			for range 8 {
				data, zero := d.scribble(rng)
				s, err := v.Begin(ctx, "")
				if err != nil {
					t.Error(err)
					return
				}
				if err := put(ctx, s, d, data, zero); err != nil {
					t.Error(err)
				}
				p := newPoint("vm", d)
				if err := s.Commit(ctx, p); err != nil {
					t.Error(err)
				}
				if got, err := restore(ctx, v, p.Disks[0]); err != nil || !bytes.Equal(got, d.data) {
					t.Errorf("point differs: %v", err)
				}
				if rng.IntN(2) == 0 {
					if err := v.PurgePoint(ctx, p.ID); err != nil {
						t.Error(err)
					}
					d.root, d.used = "", 0
					clear(d.data)
				}
			}
		}()
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		v := openVault(t, store, key)
		for range 15 {
			if _, err := v.CollectGarbage(ctx, vault.GCOptions{}); err != nil {
				t.Error(err)
			}
		}
	}()
	wg.Wait()
	v := openVault(t, store, key)
	collect(t, v)
	r, err := v.Check(ctx, vault.CheckOptions{ReadData: true})
	if err != nil || len(r.Damage) > 0 {
		t.Fatalf("%v %v", r.Damage, err)
	}
}

// A vault in which everything is needed is left as it is, however small its packs.
func TestNothingIsRewrittenInVain(t *testing.T) {
	_, _, v := memVault(t)
	backUpWhole(t, v, randomDisk(1, 1))
	if r := collect(t, v); r.DeadPacks+r.ThinPacks > 0 || r.FreedBytes != 0 {
		t.Fatalf("%+v", r)
	}
}
