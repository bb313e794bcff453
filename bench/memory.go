package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// memoryChunks is how many chunks the vault of goal 9 holds, and memoryChunk their size in bytes:
// the smallest, to be done in time.
const (
	memoryChunks = 10_000_000
	memoryChunk  = 16 << 10
)

// counting is a disk whose chunks are all different and compress to next to nothing.
type counting struct{}

func (counting) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at := 0; at < len(p); at += memoryChunk {
		binary.LittleEndian.PutUint64(p[at:], uint64(off)+uint64(at)+1)
	}
	return len(p), nil
}

// memory is goal 9: the peak of a backup into a vault of ten million chunks.
func (b *bench) memory() error {
	base, _, err := b.sources()
	if err != nil {
		return err
	}
	repo := filepath.Join(b.dir, "many")
	defer func() { _ = sh(`rm -rf "$1" "$1".*`, repo) }()
	t := b.holdfastTool("holdfast", nil)
	if _, err := t.do(base, repo, b.dir, append(t.init(repo), "--chunk-size", "16KiB")); err != nil {
		return err
	}
	start := time.Now()
	if err := fillElsewhere(repo); err != nil {
		return err
	}
	fill := time.Since(start)
	c, err := t.do(base, repo, repo, t.backup(repo))
	if err != nil {
		return err
	}
	n, err := t.do(base, repo, repo, t.backup(repo))
	if err != nil {
		return err
	}
	fmt.Printf("goal 9  backup of 8 GiB into a vault of %d M chunks (filled in %.0f s): peak %.0f MiB in %.1f s, "+
		"nothing changed: %.0f MiB in %.1f s   wanted at most 150 MiB\n\n",
		memoryChunks/1_000_000, fill.Seconds(), float64(c.rss)/(1<<20), c.seconds, float64(n.rss)/(1<<20), n.seconds)
	return nil
}

// fillEnv tells this program to fill a vault and nothing else.
const fillEnv = "HOLDFAST_BENCH_FILL"

// fillElsewhere fills the vault in another process: Linux counts what a parent occupied when it
// starts a child to the child's peak.
func fillElsewhere(repo string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), fillEnv+"="+repo)
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

func fillVault(repo string) error {
	ctx := context.Background()
	store, err := dir.Open(repo)
	if err != nil {
		return err
	}
	key, err := os.ReadFile(repo + ".key")
	if err != nil {
		return err
	}
	v, err := vault.Open(ctx, store, vault.Key{Identity: string(key)}, vault.Options{})
	if err != nil {
		return err
	}
	s, err := v.Begin(ctx, "")
	if err != nil {
		return err
	}
	const size = int64(memoryChunks) * memoryChunk
	out, err := s.PutDisk(ctx, vault.DiskInput{Size: size, Data: extent.Of(extent.Extent{Len: size}),
		Source: counting{}})
	if err != nil {
		return err
	}
	return s.Commit(ctx, &point.RecoveryPoint{ID: point.NewID(), VM: "many", Time: time.Now().UTC(),
		Consistency: point.Crash, ConsistencyReason: "synthetic", Rung: point.Offline,
		Disks: []point.Disk{{Name: "vda", Size: size, Root: out.Root, Used: out.Used}}})
}
