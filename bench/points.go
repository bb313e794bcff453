package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/internal/vault/keys"
)

// pointsDisk is the size of the disk in bytes, of which pointsUsed are not holes; each point
// changes pointsChange chunks.
const (
	pointsDisk   = 64 << 30
	pointsUsed   = 64 << 20
	pointsChange = 4
	pointsChunk  = 64 << 10
)

// points measures what is done with one point of a disk that has 1, 500 and 5,000 of them, each
// time by a process that has just opened the vault.
func (b *bench) points() error {
	repo := filepath.Join(b.dir, "points")
	defer os.RemoveAll(repo)
	f, err := newManyPoints(repo)
	if err != nil {
		return err
	}
	defer f.store.Close()
	fmt.Printf("%-16s %8s %8s %8s %8s %8s %8s %8s %8s %8s %8s\n", "points, ms", "open", "take", "list", "again",
		"prefix", "latest", "diff", "restore", "usage", "delete")
	for _, n := range manyCounts {
		for len(f.taken) < n {
			if err := f.take(f.v); err != nil {
				return err
			}
		}
		if err := f.row(); err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

// manyPoints is a vault with many points of one disk.
type manyPoints struct {
	store *dir.Store
	key   vault.Key
	v     *vault.Vault
	rng   *rand.Rand
	taken []*point.RecoveryPoint
}

func newManyPoints(repo string) (*manyPoints, error) {
	ctx := context.Background()
	if err := os.RemoveAll(repo); err != nil {
		return nil, err
	}
	store, err := dir.Create(repo)
	if err != nil {
		return nil, err
	}
	identity, _, err := keys.NewIdentity()
	if err != nil {
		return nil, err
	}
	f := &manyPoints{store: store, key: vault.Key{Identity: identity}, rng: rand.New(rand.NewPCG(1, 1))}
	if _, err := vault.Init(ctx, store,
		vault.InitOptions{Keys: []vault.NamedKey{{Name: "bench", Key: f.key}}}); err != nil {
		return nil, err
	}
	f.v, err = vault.Open(ctx, store, f.key, vault.Options{})
	return f, err
}

// noise is a disk whose chunks are all different, and different for each seed.
type noise uint64

func (n noise) ReadAt(p []byte, off int64) (int, error) {
	src := rand.NewPCG(uint64(n), uint64(off))
	for at := 0; at+8 <= len(p); at += 8 {
		binary.LittleEndian.PutUint64(p[at:], src.Uint64())
	}
	return len(p), nil
}

// take makes another point, in which a few chunks differ from the last.
func (f *manyPoints) take(v *vault.Vault) error {
	ctx := context.Background()
	s, err := v.Begin(ctx, "")
	if err != nil {
		return err
	}
	in := vault.DiskInput{Size: pointsDisk, Source: noise(len(f.taken)),
		Data: extent.Of(extent.Extent{Len: pointsUsed})}
	if n := len(f.taken); n > 0 {
		last := f.taken[n-1].Disks[0]
		in.Base, in.Of, in.BaseUsed = last.Root, f.taken[n-1].ID, last.Used
		var changes []extent.Extent
		for range pointsChange {
			changes = append(changes, extent.Extent{Off: f.rng.Int64N(pointsUsed/pointsChunk) * pointsChunk,
				Len: pointsChunk})
		}
		in.Data = extent.Of(changes...)
	}
	out, err := s.PutDisk(ctx, in)
	if err != nil {
		return err
	}
	p := &point.RecoveryPoint{ID: point.NewID(), VM: "web", Time: time.Now().UTC(), Consistency: point.Crash,
		ConsistencyReason: "bench", Rung: point.Push,
		Disks: []point.Disk{{Name: "vda", Size: pointsDisk, Used: out.Used, Root: out.Root}},
		Definition: point.Definition{Kind: point.ForLibvirt, InactiveXML: pointsXML, LiveXML: pointsXML,
			MigratableXML: pointsXML}}
	f.taken = append(f.taken, p)
	return s.Commit(ctx, p)
}

// pointsXML is as long as a domain's definition is.
var pointsXML = "<domain type='kvm'>\n" +
	strings.Repeat("  <controller type='pci' index='1' model='pcie-root-port'><target chassis='1' "+
		"port='0x8'/></controller>\n", 80) + "</domain>\n"

// row prints how long each thing takes.
func (f *manyPoints) row() error {
	ctx := context.Background()
	n := len(f.taken)
	some := f.taken[n/2]
	latest := f.taken[n-1]
	before := f.taken[max(n-2, 0)]
	var v *vault.Vault
	steps := []func() error{
		func() (err error) { v, err = vault.Open(ctx, f.store, f.key, vault.Options{}); return err },
		func() error { return f.take(v) },
		func() error { return f.list(v) },
		func() error { return f.list(v) },
		func() error { _, err := v.Point(ctx, string(some.ID[:8])); return err },
		func() error { _, err := v.Point(ctx, "web@latest"); return err },
		func() error {
			_, err := v.Diff(ctx, before.Disks[0].Root, pointsDisk, latest.Disks[0].Root, pointsDisk)
			return err
		},
		func() error { return restoreTo(ctx, v, some.Disks[0]) },
		func() error { _, err := v.Usage(ctx, vault.UsageOptions{}); return err },
		func() error { return v.DeletePoint(ctx, f.taken[n].ID, 0) },
	}
	fmt.Printf("%-16d", n)
	for _, step := range steps {
		start := time.Now()
		if err := step(); err != nil {
			return err
		}
		fmt.Printf(" %8.1f", time.Since(start).Seconds()*1e3)
	}
	f.taken = f.taken[:n]
	fmt.Println()
	return nil
}

func (f *manyPoints) list(v *vault.Vault) error {
	points, err := v.Points(context.Background())
	if err == nil && len(points) != len(f.taken) {
		err = fmt.Errorf("%d points are listed, not %d", len(points), len(f.taken))
	}
	return err
}

// restoreTo restores to memory, of which a disk with holes needs little.
func restoreTo(ctx context.Context, v *vault.Vault, d point.Disk) error {
	disk, err := v.OpenDisk(d.Root, d.Size)
	if err != nil {
		return err
	}
	return disk.Restore(ctx, make(memoryDisk, pointsUsed), nil)
}

type memoryDisk []byte

func (m memoryDisk) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
