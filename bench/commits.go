package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/internal/vault/keys"
)

// commits measures how many small points a second one process commits for so many machines at
// once: each point is a chunk of 64 KiB that changed, durable when it is counted.
func (b *bench) commits() error {
	fmt.Printf("%-16s %10s %10s\n", "machines", "points", "points/s")
	for _, machines := range []int{1, 16, 256, 2048} {
		points, took, err := b.commitAll(machines)
		if err != nil {
			return err
		}
		fmt.Printf("%-16d %10d %10.0f\n", machines, points, float64(points)/took.Seconds())
	}
	fmt.Println()
	return nil
}

// commitAll has every machine commit points, one after the other, until so many are made.
func (b *bench) commitAll(machines int) (points int, took time.Duration, err error) {
	repo := filepath.Join(b.dir, "commits")
	defer os.RemoveAll(repo)
	ctx := context.Background()
	store, err := dir.Create(repo)
	if err != nil {
		return 0, 0, err
	}
	defer store.Close()
	identity, _, err := keys.NewIdentity()
	if err != nil {
		return 0, 0, err
	}
	key := vault.Key{Identity: identity}
	if _, err := vault.Init(ctx, store,
		vault.InitOptions{Keys: []vault.NamedKey{{Name: "bench", Key: key}}}); err != nil {
		return 0, 0, err
	}
	v, err := vault.Open(ctx, store, key, vault.Options{})
	if err != nil {
		return 0, 0, err
	}
	defer v.Close()
	each := max(4, 200/machines)
	began := time.Now()
	var g errgroup.Group
	for m := range machines {
		g.Go(func() error { return commitSome(ctx, v, m, each) })
	}
	err = g.Wait()
	return machines * each, time.Since(began), err
}

func commitSome(ctx context.Context, v *vault.Vault, machine, points int) error {
	const size = 64 << 10
	name := fmt.Sprint("vm", machine)
	data := make([]byte, size)
	base, of := "", point.ID("")
	for n := range points {
		binary.LittleEndian.PutUint64(data, uint64(machine)<<32|uint64(n)+1)
		s, err := v.Begin(ctx, "")
		if err != nil {
			return err
		}
		out, err := s.PutDisk(ctx, vault.DiskInput{Size: size, Base: base, Of: of,
			Data: extent.Of(extent.Extent{Len: size}), Source: bytes.NewReader(data)})
		if err != nil {
			s.Abort()
			return err
		}
		p := &point.RecoveryPoint{ID: point.NewID(), VM: name, Time: time.Now().UTC(), Consistency: point.Crash,
			ConsistencyReason: "bench", Rung: point.Offline,
			Disks: []point.Disk{{Name: "vda", Size: size, Used: out.Used, Root: out.Root}}}
		if err := s.Commit(ctx, p); err != nil {
			return err
		}
		base, of = out.Root, p.ID
	}
	return nil
}
