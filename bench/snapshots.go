package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// snapshotsDisk is the size of the disk in bytes, all of it used, of which snapshots are taken.
const snapshotsDisk = 16 << 20

// manyCounts is with how many points or snapshots of a disk is measured.
var manyCounts = []int{1, 500, 5000}

// snapshots measures the commands for snapshots of a disk that has 1, 500 and 5,000 of them, each a
// process of its own: time and peak memory.
func (b *bench) snapshots() error {
	m, err := b.newManySnapshots()
	if err != nil {
		return err
	}
	defer os.RemoveAll(m.dir)
	defer m.store.Close()
	fmt.Printf("%-16s", "snapshots, ms")
	for _, s := range m.steps() {
		fmt.Printf(" %8s", s.name)
	}
	fmt.Println()
	for _, n := range manyCounts {
		if err := m.fill(n); err != nil {
			return err
		}
		if err := m.row(n); err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

// manySnapshots is a managed disk with many snapshots.
type manySnapshots struct {
	*manyPoints
	b      *bench
	dir    string
	env    []string
	disk   struct{ ID, Path string }
	base   vault.DiskOutput
	baseOf point.ID // the snapshot that has it
	made   int
	rss    int64 // peak of the last command, bytes
}

func (b *bench) newManySnapshots() (*manySnapshots, error) {
	m := &manySnapshots{b: b, dir: filepath.Join(b.dir, "snapshots")}
	f, err := newManyPoints(filepath.Join(m.dir, "vault"))
	if err != nil {
		return nil, err
	}
	m.manyPoints = f
	pool, key := filepath.Join(m.dir, "pool"), filepath.Join(m.dir, "key")
	err = errors.Join(os.MkdirAll(pool, 0o700), os.WriteFile(key, []byte(f.key.Identity+"\n"), 0o600))
	m.env = append(os.Environ(), "HOLDFAST_VAULT="+filepath.Join(m.dir, "vault"), "HOLDFAST_POOL="+pool,
		"HOLDFAST_KEY_FILE="+key,
		"HOLDFAST_STATE="+filepath.Join(m.dir, "state"),
		"HOLDFAST_MEMORY="+filepath.Join(m.dir, "memory"))
	if err == nil {
		err = m.makeDisk()
	}
	return m, err
}

// makeDisk makes the disk and fills it with what nothing else holds.
func (m *manySnapshots) makeDisk() error {
	out, err := m.run("disk", "create", "data", "--size", fmt.Sprint(snapshotsDisk), "--format", "raw", "--json")
	if err == nil {
		err = json.Unmarshal(out, &m.disk)
	}
	if err != nil {
		return err
	}
	w, err := os.OpenFile(m.disk.Path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, io.NewSectionReader(noise(0), 0, snapshotsDisk))
	return errors.Join(err, w.Close())
}

func (m *manySnapshots) run(args ...string) ([]byte, error) {
	// Linux counts what a parent occupies when it starts a child to the child's peak: time(1),
	// which is small, stands between.
	peak := filepath.Join(m.dir, "peak")
	cmd := exec.Command("/usr/bin/time", append([]string{"-f", "%M", "-o", peak, m.b.holdfast, "-q"}, args...)...)
	cmd.Env = m.env
	out, err := cmd.Output()
	if text, readErr := os.ReadFile(peak); readErr == nil {
		// a command that fails has more in it, and its error is returned
		kib, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		m.rss = kib << 10
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("holdfast %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return out, err
}

// fill makes snapshots until there are n, in one process: each differs from the disk in a few
// chunks.
func (m *manySnapshots) fill(n int) error {
	for ; m.made < n; m.made++ {
		if err := m.takeOne(); err != nil {
			return err
		}
	}
	return nil
}

func (m *manySnapshots) takeOne() error {
	ctx := context.Background()
	s, err := m.v.Begin(ctx, "")
	if err != nil {
		return err
	}
	in := vault.DiskInput{Size: snapshotsDisk, Source: noise(m.made),
		Data: extent.Of(extent.Extent{Len: snapshotsDisk})}
	if m.made > 0 {
		in.Base, in.Of, in.BaseUsed, in.Data = m.base.Root, m.baseOf, m.base.Used, nil
		for range pointsChange {
			in.Data = in.Data.Union(extent.Set{{Off: m.rng.Int64N(snapshotsDisk/pointsChunk) * pointsChunk,
				Len: pointsChunk}})
		}
	}
	out, err := s.PutDisk(ctx, in)
	if err != nil {
		return err
	}
	if m.made == 0 {
		m.base = out
	}
	p := &point.RecoveryPoint{ID: point.NewID(), Kind: point.Snapshot, Name: fmt.Sprintf("number-%d", m.made),
		Time: time.Now().UTC(), Consistency: point.Crash,
		ConsistencyReason: "bench", Rung: point.Offline, Definition: point.Definition{Kind: point.OnlyDisks},
		Disks: []point.Disk{{Name: "data", Size: snapshotsDisk, Used: out.Used, Root: out.Root, Managed: "data",
			ManagedID: m.disk.ID}}}
	if m.made == 0 {
		m.baseOf = p.ID
	}
	return s.Commit(ctx, p)
}

// step is a command; %s in it is the number of snapshots.
type step struct {
	name string
	args string
}

func (m *manySnapshots) steps() []step {
	return []step{
		{"create", "snapshot create data --name latest-%s"},
		{"list", "snapshot list --disk data"},
		{"json", "snapshot list --disk data --json"},
		{"show", "snapshot show latest-%s"},
		{"diff", "snapshot diff number-0 latest-%s"},
		{"disk", "disk create copy-%s --from-snapshot latest-%s --format raw --wait"},
		{"usage", "usage --by disk"},
		{"delete", "snapshot delete latest-%s"},
		{"check", "vault check"},
		{"gc", "vault gc --dry-run"},
	}
}

// row prints the medians of three runs of each command, and the most memory that one took, and
// checks that the disk made of a snapshot is what the snapshot was taken of.
func (m *manySnapshots) row(n int) error {
	took, peak := map[string][]float64{}, map[string]int64{}
	for round := range 3 {
		label := fmt.Sprintf("%d-%d", n, round)
		for _, s := range m.steps() {
			begin := time.Now()
			if _, err := m.run(strings.Fields(strings.ReplaceAll(s.args, "%s", label))...); err != nil {
				return err
			}
			took[s.name] = append(took[s.name], time.Since(begin).Seconds()*1000)
			peak[s.name] = max(peak[s.name], m.rss)
		}
		copied := filepath.Join(filepath.Dir(m.disk.Path), "copy-"+label+".raw")
		if err := exec.Command("cmp", m.disk.Path, copied).Run(); err != nil {
			return fmt.Errorf("the disk of snapshot latest-%s is not what was taken: %w", label, err)
		}
		if _, err := m.run("disk", "delete", "copy-"+label); err != nil {
			return err
		}
	}
	fmt.Printf("%-16d", n)
	for _, s := range m.steps() {
		fmt.Printf(" %8.0f", median(took[s.name]))
	}
	fmt.Printf("\n%-16s", "  peak MiB")
	for _, s := range m.steps() {
		fmt.Printf(" %8d", peak[s.name]>>20)
	}
	fmt.Println()
	return nil
}
