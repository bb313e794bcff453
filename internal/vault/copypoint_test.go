package vault_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/fault"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// otherVault makes a vault whose chunks are factor times as large as those of newVault.
func otherVault(t *testing.T, s blob.Store, factor int) vault.Key {
	t.Helper()
	identity, _ := testKey(t)
	key := vault.Key{Identity: identity}
	_, err := vault.Init(context.Background(), s,
		vault.InitOptions{ChunkSize: factor * testChunk, Keys: []vault.NamedKey{{Name: "test", Key: key}}})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func copyPoint(t *testing.T, from, to *vault.Vault, id point.ID) vault.CopyReport {
	t.Helper()
	r, err := vault.CopyPoint(context.Background(), from, to, id, vault.CopyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// requireSame demands that both vaults hold the same bytes in every disk and file of a point.
func requireSame(t *testing.T, a, b *vault.Vault, id point.ID) {
	t.Helper()
	ctx := context.Background()
	pa, err := a.Point(ctx, string(id))
	if err != nil {
		t.Fatal(err)
	}
	pb, err := b.Point(ctx, string(id))
	if err != nil {
		t.Fatal(err)
	}
	if ha, hb := hashes(t, a, pa), hashes(t, b, pb); fmt.Sprint(ha) != fmt.Sprint(hb) {
		t.Fatalf("point %s holds %v, its copy %v", id, ha, hb)
	}
	for i := range pa.Disks {
		if a.ChunkSize() == b.ChunkSize() && pa.Disks[i].Used != pb.Disks[i].Used {
			t.Fatalf("point %s, %s: used %d, in its copy %d", id, pa.Disks[i].Name, pa.Disks[i].Used, pb.Disks[i].Used)
		}
	}
}

// Points that are copied in any order, between vaults with chunks of any size, back and forth and
// with points deleted on either side, hold the same bytes and need nothing of the source; who has a
// point is not given it again.
func TestCopiesHoldTheSame(t *testing.T) {
	if underRace {
		t.Skip("it counts, or compares, and is run without the race detector")
	}
	ctx := context.Background()
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 31))
		stores := []*mem.Store{mem.New(), mem.New()}
		vaults := []*vault.Vault{openVault(t, stores[0], newVault(t, stores[0])),
			openVault(t, stores[1], otherVault(t, stores[1], 1<<(seed%3)))}
		family(t, vaults[0], rng, 8)
		for range 25 {
			a := rng.IntN(2)
			from, to := vaults[a], vaults[1-a]
			points, err := from.Points(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(points) == 0 {
				continue
			}
			id := points[rng.IntN(len(points))].ID
			r := copyPoint(t, from, to, id)
			if again := copyPoint(t, from, to, id); !again.There || again.ReadBytes+again.SentBytes != 0 ||
				again.Point.ID != r.Point.ID {
				t.Fatalf("seed %d: copied again: %+v", seed, again)
			}
			if r.Point.ID == id {
				requireSame(t, from, to, id)
			}
			if origin := r.Point.CopiedFrom; !r.There && (origin == nil || origin.Vault != from.ID() ||
				origin.Point != id) {
				t.Fatalf("seed %d: its origin is %+v", seed, origin)
			}
			if rng.IntN(3) == 0 {
				if err := from.PurgePoint(ctx, points[rng.IntN(len(points))].ID); err != nil {
					t.Fatal(err)
				}
				collect(t, from)
			}
		}
		for _, v := range vaults {
			if r, err := v.Check(ctx, vault.CheckOptions{ReadData: true}); err != nil || len(r.Damage) > 0 {
				t.Fatalf("seed %d: %+v %v", seed, r.Damage, err)
			}
		}
	}
}

// changed backs up d with n of its chunks changed.
func changed(t *testing.T, v *vault.Vault, d *disk, rng *rand.Rand, n int) *point.RecoveryPoint {
	t.Helper()
	for _, c := range rng.Perm(len(d.data) / testChunk)[:n] {
		for i := range testChunk {
			d.data[c*testChunk+i] = byte(rng.Uint32())
		}
	}
	return backUpWhole(t, v, d)
}

// What is read and sent is what differs from the nearest point that both vaults have: forth, back,
// and when the source has deleted that point but has another with the same disk.
func TestCopiesSendWhatDiffers(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(1, 33))
	east, west := mem.New(), mem.New()
	a, b := openVault(t, east, newVault(t, east)), openVault(t, west, newVault(t, west))
	require := func(from, to *vault.Vault, p *point.RecoveryPoint, chunks int, base point.ID) {
		t.Helper()
		r := copyPoint(t, from, to, p.ID)
		if n := int64(chunks * testChunk); r.ReadBytes != n || r.SentBytes < n || r.SentBytes > n+n/8+8192 ||
			r.Base != base {
			t.Errorf("%+v, want %d bytes against point %s", r, n, base)
		}
		requireSame(t, from, to, p.ID)
	}
	d := randomDisk(1, 100)
	first := backUpWhole(t, a, d)
	require(a, b, first, 100, "")
	second := changed(t, a, d, rng, 5)
	require(a, b, second, 5, first.ID)
	there := &disk{data: bytes.Clone(d.data)}
	third := changed(t, b, there, rng, 7)
	require(b, a, third, 7, second.ID)

	fourth := changed(t, a, &disk{data: there.data}, rng, 2)
	require(a, b, fourth, 2, third.ID)
	same := backUpWhole(t, a, &disk{data: there.data})
	for _, p := range []*point.RecoveryPoint{first, second, third, fourth} {
		if err := a.PurgePoint(ctx, p.ID); err != nil {
			t.Fatal(err)
		}
	}
	collect(t, a)
	require(a, b, same, 0, fourth.ID)
	fifth := changed(t, a, &disk{data: there.data}, rng, 3)
	require(a, b, fifth, 3, same.ID)
}

// What became a hole is a hole in the copy, without reading zeros; a disk that grew is compared
// with nothing.
func TestCopiesOfHolesAndOfGrownDisks(t *testing.T) {
	east, west := mem.New(), mem.New()
	a, b := openVault(t, east, newVault(t, east)), openVault(t, west, otherVault(t, west, 4))
	d := randomDisk(1, 90)
	copyPoint(t, a, b, backUpWhole(t, a, d).ID)
	clear(d.data[8*testChunk : 72*testChunk])
	p := backUpWhole(t, a, d)
	if r := copyPoint(t, a, b, p.ID); r.ReadBytes != 0 || r.Point.Disks[0].Used != 26*testChunk {
		t.Errorf("%+v", r)
	}
	requireSame(t, a, b, p.ID)
	grown := &disk{data: append(bytes.Clone(d.data), randomDisk(2, 10).data...)}
	p = backUpWhole(t, a, grown)
	if r := copyPoint(t, a, b, p.ID); r.Base != "" || r.ReadBytes < 36*testChunk || r.ReadBytes > 40*testChunk ||
		r.SentBytes > 16*testChunk {
		t.Errorf("%+v", r)
	}
	requireSame(t, a, b, p.ID)
}

func TestCopyOfNoPoint(t *testing.T) {
	east, west := mem.New(), mem.New()
	a, b := openVault(t, east, newVault(t, east)), openVault(t, west, newVault(t, west))
	for _, id := range []point.ID{"", "../x", point.NewID()} {
		if _, err := vault.CopyPoint(context.Background(), a, b, id, vault.CopyOptions{}); !errors.Is(err,
			vault.ErrNoPoint) {
			t.Errorf("%q is copied: %v", id, err)
		}
	}
	p := backUpWhole(t, a, randomDisk(1, 1))
	if r := copyPoint(t, a, a, p.ID); !r.There {
		t.Errorf("copied onto itself: %+v", r)
	}
}

// Whichever call of either store fails, there is no half point, and the next attempt does not store
// again what was stored.
func TestCopyGoesOnAfterAFault(t *testing.T) {
	if underRace {
		t.Skip("it counts, or compares, and is run without the race detector")
	}
	ctx := context.Background()
	boom := errors.New("boom")
	east := mem.New()
	eastKey := newVault(t, east)
	p := backUpWhole(t, openVault(t, east, eastKey), randomDisk(1, 40))
	small := func(s blob.Store, key vault.Key) *vault.Vault {
		v, err := vault.Open(ctx, s, key, vault.Options{Workers: 1, PackSize: 3 * testChunk})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, source := range []bool{true, false} {
		for i := 0; ; i += stride {
			west := mem.New()
			westKey := newVault(t, west)
			stores := []*fault.Store{fault.New(east), fault.New(west)}
			from, to := small(stores[0], eastKey), small(stores[1], westKey)
			f := stores[1]
			if source {
				f = stores[0]
			}
			last := f.Calls() + i
			f.FailCall(last, boom)
			_, err := vault.CopyPoint(ctx, from, to, p.ID, vault.CopyOptions{})
			if err != nil && !errors.Is(err, boom) {
				t.Fatalf("call %d: %v", i, err)
			}
			if err == nil && f.Calls() <= last {
				break
			}
			to = small(west, westKey)
			copyPoint(t, openVault(t, east, eastKey), to, p.ID)
			requireSame(t, openVault(t, east, eastKey), to, p.ID)
			if left := storedBytes(t, west); left > 2*41*testChunk {
				t.Fatalf("call %d: %d bytes are stored", i, left)
			}
		}
	}
}

// Points may be copied by many at once.
func TestCopiesAtOnce(t *testing.T) {
	ctx := context.Background()
	east, west := mem.New(), mem.New()
	eastKey, westKey := newVault(t, east), newVault(t, west)
	a := openVault(t, east, eastKey)
	family(t, a, rand.New(rand.NewPCG(3, 3)), 6)
	points, err := a.Points(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 3 {
		to := openVault(t, west, westKey)
		wg.Go(func() {
			for _, p := range points {
				if _, err := vault.CopyPoint(ctx, a, to, p.ID, vault.CopyOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, p := range points {
		requireSame(t, a, openVault(t, west, westKey), p.ID)
	}
}

func hashes(t *testing.T, v *vault.Vault, p *point.RecoveryPoint) map[string]string {
	t.Helper()
	out := map[string]string{}
	read := func(name, root string, size int64) {
		b, err := restore(context.Background(), v, point.Disk{Root: root, Size: size})
		if err != nil {
			t.Fatalf("point %s, %s: %v", p.ID, name, err)
		}
		out[name] = hashOf(b)
	}
	for _, d := range p.Disks {
		read(d.Name, d.Root, d.Size)
	}
	for _, f := range p.Files {
		read(f.Role+"/"+f.Name, f.Root, f.Size)
	}
	return out
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// family makes points of machines that share much and in many ways: chunks within a disk and across
// disks, subtrees at equal and at other places, whole disks, clones that went their own way, and
// files.
func family(t *testing.T, v *vault.Vault, rng *rand.Rand, n int) {
	t.Helper()
	ctx := context.Background()
	fresh := func() *disk { return &disk{data: make([]byte, (rng.IntN(4)*64+rng.IntN(70)+1)*testChunk)} }
	machines := [][]*disk{{fresh()}, {fresh(), fresh()}}
	for i := range n {
		if rng.IntN(4) == 0 { // a clone of one, and one of its disks twice
			from := machines[rng.IntN(len(machines))]
			var disks []*disk
			for _, d := range append(from[:len(from):len(from)], from[0]) {
				disks = append(disks, &disk{data: bytes.Clone(d.data), root: d.root, used: d.used, of: d.of})
			}
			machines = append(machines, disks[:rng.IntN(len(disks))+1])
		}
		m := rng.IntN(len(machines))
		s := begin(t, v)
		for _, d := range machines[m] {
			data, zero := d.scribble(rng)
			if err := put(ctx, s, d, data, zero); err != nil {
				t.Fatal(err)
			}
		}
		p := newPoint(fmt.Sprintf("vm%d", m), machines[m]...)
		p.Tags = map[string]string{"round": fmt.Sprint(i % 3)}
		if rng.IntN(2) == 0 {
			f := machines[rng.IntN(len(machines))][0]
			if f.root != "" && f.of != p.ID {
				if err := s.Keep(ctx, f.of); err != nil {
					t.Fatal(err)
				}
			}
			p.Files = []point.File{{Role: "nvram", Name: "x", Size: int64(len(f.data)), Root: f.root}}
		}
		if err := s.Commit(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
}
