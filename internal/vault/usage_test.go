package vault_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// copyStore returns a store with the same objects.
func copyStore(t *testing.T, from blob.Store) *mem.Store {
	t.Helper()
	to := mem.New()
	for info, err := range from.List(context.Background(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if err := blob.Put(context.Background(), to, info.Name, mustGet(t, from, info.Name)); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// family makes points of machines that share much and in many ways: chunks within a disk and across disks, subtrees at equal and at other places, whole
// disks, clones that went their own way, and files.
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
				disks = append(disks, &disk{data: bytes.Clone(d.data), root: d.root, used: d.used})
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
			p.Files = []point.File{{Role: "nvram", Name: "x", Size: int64(len(f.data)), Root: f.root}}
		}
		if err := s.Commit(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
}

func live(t *testing.T, v *vault.Vault) int64 {
	t.Helper()
	r, err := v.CollectGarbage(context.Background(), vault.GCOptions{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	return r.LiveBytes
}

// liveWithout returns the live bytes of a copy of the vault in which the disks, and with d nil the files, that gone names are missing.
func liveWithout(t *testing.T, store blob.Store, key vault.Key, gone func(p *point.RecoveryPoint, d *point.Disk) bool) int64 {
	t.Helper()
	ctx := context.Background()
	v := openVault(t, copyStore(t, store), key)
	points, err := v.Points(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		left := *p
		left.ID, left.Disks, left.Files = point.NewID(), nil, nil
		for i := range p.Disks {
			if !gone(p, &p.Disks[i]) {
				left.Disks = append(left.Disks, p.Disks[i])
			}
		}
		if !gone(p, nil) {
			left.Files = p.Files
		}
		if len(left.Disks) == len(p.Disks) && len(left.Files) == len(p.Files) {
			continue
		}
		if err := begin(t, v).Commit(ctx, &left); err != nil {
			t.Fatal(err)
		}
		deletePoint(t, v, p.ID)
	}
	return live(t, v)
}

// What a point, or any group, holds alone is by how much the live bytes fall without it; what it holds is what is left with nothing but it.
func TestUsageIsWhatDeletingFrees(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 21))
		store, key, v := memVault(t)
		family(t, v, rng, 14)
		if seed%2 == 1 { // segments, deleted points and rewritten packs
			points, err := v.Points(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range points[:4] {
				deletePoint(t, v, p.ID)
			}
			collect(t, v)
			family(t, v, rng, 3) // young packs beside
		}
		all := live(t, v)
		r, err := openVault(t, store, key).Usage(ctx, vault.UsageOptions{})
		if err != nil || r.Stored != all {
			t.Fatalf("seed %d: %d bytes are stored, not %d: %v", seed, r.Stored, all, err)
		}
		require := func(what string, u vault.Usage, in func(p *point.RecoveryPoint, d *point.Disk) bool) {
			t.Helper()
			if want := all - liveWithout(t, store, key, in); u.Alone != want {
				t.Errorf("seed %d: %s holds %d bytes alone, deleting it frees %d", seed, what, u.Alone, want)
			}
			out := func(p *point.RecoveryPoint, d *point.Disk) bool { return !in(p, d) }
			if want := liveWithout(t, store, key, out); u.Held != want {
				t.Errorf("seed %d: %s holds %d bytes, it needs %d", seed, what, u.Held, want)
			}
		}
		for _, p := range r.Points {
			require("point "+p.ID.Short(), p.Usage, func(q *point.RecoveryPoint, _ *point.Disk) bool { return p.ID == q.ID })
		}
		for _, g := range r.Groups {
			require(g.By+" "+g.Name, g.Usage, func(q *point.RecoveryPoint, d *point.Disk) bool {
				for _, of := range vault.GroupsOf(q, d) {
					if of == g.Group {
						return true
					}
				}
				return false
			})
		}
	}
}

// A disk counts with its size and with what is not a hole, in a point and in every group that has it.
func TestUsageOfSizes(t *testing.T) {
	ctx := context.Background()
	_, _, v := memVault(t)
	d := &disk{data: make([]byte, 64*testChunk)}
	copy(d.data, randomDisk(1, 10).data)
	for range 2 {
		p := backUpWhole(t, v, d)
		r, err := v.Usage(ctx, vault.UsageOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range r.Points {
			if u.Size != 64*testChunk || u.Used != 10*testChunk {
				t.Errorf("point %s: %+v", p.ID, u)
			}
		}
		for _, g := range r.Groups {
			if n := int64(len(r.Points)); g.Points != int(n) || g.Size != n*64*testChunk || g.Used != n*10*testChunk || g.Alone != r.Stored {
				t.Errorf("%+v of %d points", g, n)
			}
		}
		if len(r.Groups) != 2 {
			t.Errorf("groups %+v", r.Groups)
		}
	}
}

func TestUsageOfAnEmptyVault(t *testing.T) {
	store := mem.New()
	r, err := openVault(t, store, newVault(t, store)).Usage(context.Background(), vault.UsageOptions{})
	if err != nil || r.Stored != 0 || r.Points == nil || r.Groups == nil || len(r.Points)+len(r.Groups) > 0 {
		t.Fatalf("%+v %v", r, err)
	}
}
