package vault_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// lose deletes the objects whose names begin with a prefix.
func lose(t *testing.T, s blob.Store, prefix string) {
	t.Helper()
	for name, err := range blob.Names(t.Context(), s, prefix, "") {
		if err == nil {
			err = s.Delete(t.Context(), name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// entry returns the name of the n-th entry of the first volume.
func entry(t *testing.T, s blob.Store, n int) string {
	t.Helper()
	for name, err := range blob.Names(t.Context(), s, "log/", "") {
		if err != nil {
			t.Fatal(err)
		}
		if n--; n < 0 {
			return name
		}
	}
	t.Fatal("there are not so many entries")
	return ""
}

// Whatever of log, checkpoints and index is gone or damaged, a repair brings every point back whose
// packs are there, keeps what is known of deletions and holds, and leaves a vault without damage
// that works on.
func TestRepair(t *testing.T) {
	if underRace {
		t.Skip("it counts, or compares, and is run without the race detector")
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 4; return b }
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, s *mem.Store)
		whole  bool // the log is
		knows  bool // what was purged, deleted and held
	}{
		{"nothing", func(*testing.T, *mem.Store) {}, true, true},
		{"the index", func(t *testing.T, s *mem.Store) { lose(t, s, "index/") }, true, true},
		{"checkpoints", func(t *testing.T, s *mem.Store) {
			lose(t, s, "checkpoint/")
			lose(t, s, "state/")
		}, true, true},
		{"parts of the state", func(t *testing.T, s *mem.Store) { lose(t, s, "state/") }, true, true},
		{"an entry and all checkpoints", func(t *testing.T, s *mem.Store) {
			lose(t, s, "checkpoint/")
			if err := s.Corrupt(entry(t, s, 20), flip); err != nil {
				t.Fatal(err)
			}
		}, false, true},
		{"the log", func(t *testing.T, s *mem.Store) { lose(t, s, "log/") }, false, false},
		{"all that is not a pack", func(t *testing.T, s *mem.Store) {
			for _, p := range []string{"log/", "next/", "checkpoint/", "state/", "index/", "part/"} {
				lose(t, s, p)
			}
		}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			store := mem.New()
			key := newVault(t, store)
			v := openVault(t, store, key)
			want := map[point.ID][]byte{}
			var ids []point.ID
			for i := range 70 { // over a checkpoint
				d := randomDisk(uint64(i), 2)
				p := backUpWhole(t, v, d)
				want[p.ID] = d.data
				ids = append(ids, p.ID)
			}
			deletePoint(t, v, ids[3])
			delete(want, ids[3])
			if err := v.DeletePoint(ctx, ids[5], 0); err != nil {
				t.Fatal(err)
			}
			if err := v.Hold(ctx, ids[7], "web in /a"); err != nil {
				t.Fatal(err)
			}
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			tt.damage(t, store)
			plan, err := vault.Repair(ctx, store, key, vault.RepairOptions{DryRun: true})
			if err != nil {
				t.Fatal(err)
			}
			r, err := vault.Repair(ctx, store, key, vault.RepairOptions{})
			if err != nil || r.Whole != tt.whole || plan.Whole != tt.whole || plan.Points != r.Points {
				t.Fatalf("%+v, planned %+v: %v", r, plan, err)
			}
			again := openVault(t, store, key)
			found := map[point.ID]bool{}
			for p, err := range again.EachPoint(ctx, nil) {
				if err != nil {
					t.Fatal(err)
				}
				found[p.ID] = true
				if data, ok := want[p.ID]; ok {
					requireContent(t, again, p, data)
				}
			}
			for id := range want {
				if !found[id] && (id != ids[5] || !tt.knows) {
					t.Errorf("point %s is gone", id)
				}
			}
			if tt.knows {
				if found[ids[3]] || found[ids[5]] {
					t.Errorf("what was purged or deleted is there again: %v %v", found[ids[3]], found[ids[5]])
				}
				if err := again.PurgePoint(ctx, ids[7]); !errors.Is(err, vault.ErrHeld) {
					t.Errorf("purging what was held: %v", err)
				}
				if err := again.UndeletePoint(ctx, ids[5]); err != nil {
					t.Error(err)
				}
			} else if len(r.Unknown) == 0 {
				t.Error("it says of nothing that it cannot be known")
			}
			next := randomDisk(1000, 3)
			p := backUpWhole(t, again, next)
			deletePoint(t, again, ids[9])
			if _, err := again.CollectGarbage(ctx, vault.GCOptions{Full: true}); err != nil {
				t.Fatal(err)
			}
			last := openVault(t, store, key)
			requireContent(t, last, p, next.data)
			if report, err := last.Check(ctx, vault.CheckOptions{ReadData: true}); err != nil ||
				len(report.Damage) > 0 {
				t.Errorf("check: %+v, %v", report.Damage, err)
			}
		})
	}
}

// A repair of a vault whose packs are damaged too brings back what is whole, and names the others.
func TestRepairNamesWhatIsLost(t *testing.T) {
	store := mem.New()
	key := newVault(t, store)
	v := openVault(t, store, key)
	a, b := randomDisk(1, 3), randomDisk(2, 3)
	backUpWhole(t, v, a)
	var pack string
	for name := range blob.Names(t.Context(), store, "pack/", "") {
		pack = name
	}
	pb := backUpWhole(t, v, b)
	if err := store.Corrupt(pack, func(b []byte) []byte { return b[:len(b)-7] }); err != nil {
		t.Fatal(err)
	}
	lose(t, store, "log/")
	r, err := vault.Repair(t.Context(), store, key, vault.RepairOptions{})
	if err != nil || len(r.LostPacks) != 1 || !strings.HasPrefix(r.LostPacks[0], "pack/") || r.Points != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	requireContent(t, openVault(t, store, key), pb, b.data)
	if bytes.Equal(a.data, b.data) {
		t.Fatal("the disks are alike")
	}
}
