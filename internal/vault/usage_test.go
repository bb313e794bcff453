package vault_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// neededBytes is what is needed of those disks and files for which keep reports true.
func neededBytes(t *testing.T, v *vault.Vault, keep func(p *point.RecoveryPoint, d *point.Disk) bool) int64 {
	t.Helper()
	n, err := vault.NeededBytes(context.Background(), v, keep)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What a point, or any group, holds alone is by how much less is needed without it; what it holds
// is what is needed with nothing but it.
func TestUsageIsWhatDeletingFrees(t *testing.T) {
	if underRace {
		t.Skip("it counts, or compares, and is run without the race detector")
	}
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
		fresh := openVault(t, store, key)
		all := neededBytes(t, fresh, func(*point.RecoveryPoint, *point.Disk) bool { return true })
		r, err := fresh.Usage(ctx, vault.UsageOptions{})
		if err != nil || r.Stored != all {
			t.Fatalf("seed %d: %d bytes are stored, not %d: %v", seed, r.Stored, all, err)
		}
		require := func(what string, u vault.Usage, in func(p *point.RecoveryPoint, d *point.Disk) bool) {
			t.Helper()
			out := func(p *point.RecoveryPoint, d *point.Disk) bool { return !in(p, d) }
			if want := all - neededBytes(t, fresh, out); u.Alone != want {
				t.Errorf("seed %d: %s holds %d bytes alone, deleting it frees %d", seed, what, u.Alone, want)
			}
			if want := neededBytes(t, fresh, in); u.Held != want {
				t.Errorf("seed %d: %s holds %d bytes, it needs %d", seed, what, u.Held, want)
			}
		}
		for _, p := range r.Points {
			require("point "+p.ID.Short(), p.Usage, func(q *point.RecoveryPoint, _ *point.Disk) bool {
				return p.ID == q.ID
			})
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

// A disk counts with its size and with what is not a hole, in a point and in every group that has
// it.
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
			n := int64(len(r.Points))
			if g.Points != int(n) || g.Size != n*64*testChunk || g.Used != n*10*testChunk {
				t.Errorf("%+v of %d points", g, n)
			}
			if g.By == "vm" && g.Alone != r.Stored {
				t.Errorf("the only machine holds %d bytes alone of %d", g.Alone, r.Stored)
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

// A point that was deleted and can be brought back is in no list, and what it needs nobody holds
// alone.
func TestUsageOfDeletedPoints(t *testing.T) {
	ctx := context.Background()
	_, _, v := memVault(t)
	d := randomDisk(3, 20)
	gone, left := backUpWhole(t, v, d), backUpWhole(t, v, d)
	if err := v.DeletePoint(ctx, gone.ID, 48*time.Hour); err != nil {
		t.Fatal(err)
	}
	r, err := v.Usage(ctx, vault.UsageOptions{})
	if err != nil || len(r.Points) != 1 || r.Points[0].ID != left.ID {
		t.Fatalf("%+v, %v", r, err)
	}
	if p := r.Points[0]; p.Alone >= testChunk || p.Held < 20*testChunk || r.Stored < p.Held+p.Alone {
		t.Errorf("of %d bytes %d are held, %d alone", r.Stored, p.Held, p.Alone)
	}
	for _, g := range r.Groups {
		if g.Points != 1 {
			t.Errorf("%+v", g)
		}
	}
}
