package protect_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/protect"
)

// only returns the disks of at that p has.
func only(at map[string][]byte, p *point.RecoveryPoint) map[string][]byte {
	out := map[string][]byte{}
	for _, d := range p.Disks {
		out[d.Name] = at[d.Name]
	}
	return out
}

// Snapshots of any disks, tracked or not, between backups, with points deleted and runs failed or
// killed at any step: every point is exact.
func TestSnapshotsAndBackupsAreExact(t *testing.T) {
	steps := []string{"", "", "", "", "begin", "instant", "sink", "commit"}
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 2))
		store := mem.New()
		v := newVault(t, store)
		m := newModel(rng, 1+rng.IntN(3))
		d := deps(t, v, m)
		sealed := map[point.ID]map[string][]byte{}
		for range 12 {
			for range rng.IntN(5) {
				m.write()
			}
			if rng.IntN(12) == 0 { // QEMU died
				for n := range m.bitmap {
					clear(m.bitmap[n])
				}
			}
			for id := range sealed {
				if rng.IntN(8) == 0 {
					if err := v.PurgePoint(context.Background(), id); err != nil {
						t.Fatal(err)
					}
					delete(sealed, id)
				}
			}
			m.failAt, m.killed = steps[rng.IntN(len(steps))], rng.IntN(2) == 0
			req := protect.Request{Machine: m.machine()}
			if rng.IntN(2) == 0 {
				disks := slices.Clone(m.order)
				rng.Shuffle(len(disks), func(i, j int) { disks[i], disks[j] = disks[j], disks[i] })
				req.Snapshot = &protect.Snapshot{Name: "s", Disks: disks[:1+rng.IntN(len(disks))],
					Track: rng.IntN(2) == 0}
			} else if len(m.order) > 1 && rng.IntN(3) == 0 {
				req.Exclude = m.order[:1]
			}
			var at map[string][]byte
			d.OpenGuest = func(context.Context, hypervisor.Machine, point.Consistency) (protect.Guest, error) {
				return &onThaw{do: func() { at = m.snapshot() }}, nil
			}
			p, err := protect.Backup(context.Background(), d, req)
			m.failAt, m.killed = "", false
			if err != nil && !errors.Is(err, errMade) {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err == nil {
				sealed[p.ID] = only(at, p)
			}
		}
		requireSealed(t, openVault(t, store), sealed)
	}
}

// A snapshot takes nothing from the machine's backups: the one after it reads no more than it would
// have.
func TestSnapshotLeavesBackupsTracked(t *testing.T) {
	ctx := context.Background()
	for _, track := range []bool{false, true} {
		m := newModel(rand.New(rand.NewPCG(3, 3)), 3)
		v := newVault(t, mem.New())
		d := deps(t, v, m)
		var at map[string][]byte
		d.OpenGuest = func(context.Context, hypervisor.Machine, point.Consistency) (protect.Guest, error) {
			return &onThaw{do: func() { at = m.snapshot() }}, nil
		}
		take := func(s *protect.Snapshot) *point.RecoveryPoint {
			t.Helper()
			m.write()
			p, err := protect.Backup(ctx, d, protect.Request{Machine: m.machine(), Snapshot: s})
			if err != nil {
				t.Fatal(err)
			}
			requirePoint(t, v, p, only(at, p))
			return p
		}
		snapshot := &protect.Snapshot{Name: "s", Disks: []string{"vdb"}, Track: track}
		backup := take(nil)
		for range 3 {
			s := take(snapshot)
			if s.Kind != point.Snapshot || s.Parent == "" || !s.Disks[0].Tracked || (s.Disks[0].Bitmap != "") != track {
				t.Errorf("snapshot: %+v", s)
			}
			if got, err := v.Point(ctx, m.name+"@latest"); err != nil || got.ID != backup.ID {
				t.Errorf("%s@latest is %v (%v), want the backup", m.name, got, err)
			}
			if points, _ := v.Points(ctx); protect.Last(points, m.machine()).ID != backup.ID {
				t.Error("Last is not the backup")
			}
			next := take(nil)
			for _, disk := range next.Disks {
				if !disk.Tracked {
					t.Errorf("tracked snapshot %t: disk %s of the backup after it was read whole: %s", track, disk.Name,
						disk.Reason)
				}
			}
			if next.Parent != backup.ID || next.ExcludedDisks != nil || next.Warnings != nil {
				t.Errorf("the backup after it: parent %s, left out %v, warnings %v", next.Parent, next.ExcludedDisks,
					next.Warnings)
			}
			backup = next
		}
		records := map[bool]int{false: 1, true: 2}[track]
		if n := len(m.bitmap["vdb"]); n != records {
			t.Errorf("vdb has %d records of changes, want %d", n, records)
		}
	}
}

func TestSnapshotRefuses(t *testing.T) {
	m := newModel(rand.New(rand.NewPCG(1, 1)), 2)
	v := newVault(t, mem.New())
	for _, disks := range [][]string{nil, {"vdz"}, {"vda", "vdz"}} {
		p, err := protect.Backup(context.Background(), deps(t, v, m),
			protect.Request{Machine: m.machine(), Snapshot: &protect.Snapshot{Name: "s", Disks: disks}})
		if err == nil {
			t.Errorf("a snapshot of %v: %+v", disks, p)
		}
	}
}

// Images of managed disks become snapshots of no machine, and count from the disk's last one by its
// unique ID.
func TestSnapshotOfImages(t *testing.T) {
	ctx := context.Background()
	v := newVault(t, mem.New())
	file := filepath.Join(t.TempDir(), "data.img")
	content := []byte(strings.Repeat("0123456789abcdef", 4*granule/16))
	take := func(name, id string) *point.RecoveryPoint {
		t.Helper()
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := protect.Images(ctx, protect.ImageDeps{Vault: v},
			protect.ImageRequest{Name: "s", Files: []string{file}, Format: "raw",
				Managed: []protect.ManagedDisk{{Name: name, ID: id}}})
		if err != nil {
			t.Fatal(err)
		}
		requirePoint(t, v, p, map[string][]byte{name: content})
		return p
	}
	first := take("data", "1")
	if first.VM != "" || first.Kind != point.Snapshot || first.Disks[0].ManagedID != "1" || first.Parent != "" {
		t.Errorf("first: %+v", first)
	}
	content[0]++
	if second := take("renamed", "1"); second.Parent != first.ID || second.Disks[0].Added > 2*granule {
		t.Errorf("second: %+v", second)
	}
	if other := take("data", "2"); other.Parent != "" {
		t.Errorf("another disk of that name counts from %s", other.Parent)
	}
}
