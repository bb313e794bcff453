package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// series is what one tool took, round by round.
type series struct {
	full, stored, after, grew, restore, rss []float64
}

// image is goals 1, 3 and 4: full backup, the next one after 400 random writes with no record of
// changes, restore.
func (b *bench) image() error {
	base, after, err := b.sources()
	if err != nil {
		return err
	}
	tools := append(b.tools(), b.holdfastTool("holdfast dense", []string{"--compression", "dense"}))
	got, err := b.compare(tools, base, after)
	if err != nil {
		return err
	}
	fmt.Printf("%-16s %8s %10s %8s %10s %8s %9s\n", "8 GiB image", "full s", "stored MB", "after s", "grew MB",
		"restore s", "peak MiB")
	for i, t := range tools {
		s := got[i]
		fmt.Printf("%-16s %8.2f %10.1f %8s %10s %8s %9.0f\n", t.name, median(s.full), median(s.stored)/1e6,
			opt(s.after, 1), opt(s.grew, 1e6), opt(s.restore, 1), median(s.rss)/(1<<20))
	}
	h, r, bo, d := got[0], got[1], got[2], got[4]
	faster := r.full
	if median(bo.full) < median(r.full) {
		faster = bo.full
	}
	fmt.Println()
	fmt.Printf("goal 1  full: the faster of restic and borg / holdfast  %s   wanted 3x\n", ratio(faster, h.full))
	fmt.Printf("goal 1  bytes stored: holdfast / restic                 %s   wanted at most 1.09x\n",
		ratio(h.stored, r.stored))
	fmt.Printf("goal 1  dense: bytes holdfast / restic                  %s   wanted at most 1.00x\n",
		ratio(d.stored, r.stored))
	fmt.Printf("goal 1  dense: full restic / holdfast                   %s   wanted 1.3x\n", ratio(r.full, d.full))
	fmt.Printf("goal 3  after 400 writes, compared: restic / holdfast   %s   wanted 3x\n", ratio(r.after, h.after))
	fmt.Printf("goal 3  growth / bytes written (%.1f MB)                %s   wanted at most 1.1x\n", 400*65536/1e6,
		ratio(h.grew, constant(400*65536, len(h.grew))))
	fmt.Printf("goal 4  restore: restic / holdfast                      %s   wanted 2x\n", ratio(r.restore, h.restore))
	fmt.Printf("goal 4  restore: borg / holdfast                        %s   wanted 6x\n", ratio(bo.restore, h.restore))
	fmt.Printf("goal 9  peak memory of holdfast                         %.0f MiB   wanted at most 150\n\n",
		maxOf(h.rss)/(1<<20))
	return nil
}

func opt(xs []float64, unit float64) string {
	if len(xs) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", median(xs)/unit)
}

func constant(v float64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = v
	}
	return out
}

func maxOf(xs []float64) float64 {
	m := 0.0
	for _, x := range xs {
		m = max(m, x)
	}
	return m
}

// compare runs all tools, interleaved, on base and then on after; after "" leaves the second backup
// and the restore out.
func (b *bench) compare(tools []tool, base, after string) ([]series, error) {
	got := make([]series, len(tools))
	want := ""
	if after != "" {
		var err error
		if want, err = sum(filepath.Join(after, "disk.raw")); err != nil {
			return nil, err
		}
	}
	for round := range b.rounds {
		for i := range tools {
			k := (i + round) % len(tools)
			if err := b.one(tools[k], &got[k], base, after, want); err != nil {
				return nil, fmt.Errorf("%s: %w", tools[k].name, err)
			}
		}
	}
	return got, nil
}

func (b *bench) one(t tool, s *series, base, after, want string) error {
	repo, out := filepath.Join(b.dir, "repo"), filepath.Join(b.dir, "out")
	defer func() { _ = sh(`rm -rf "$1" "$1".* "$2"`, repo, out) }()
	if err := sh(`rm -rf "$1" "$1".* "$2"`, repo, out); err != nil {
		return err
	}
	if _, err := t.do(base, repo, b.dir, t.init(repo)); err != nil {
		return err
	}
	if err := warm(filepath.Join(base, "disk.raw")); err != nil {
		return err
	}
	c, err := t.do(base, repo, repo, t.backup(repo))
	if err != nil {
		return err
	}
	n, err := stored(repo)
	if err != nil {
		return err
	}
	s.full, s.stored, s.rss = append(s.full, c.seconds), append(s.stored, float64(n)), append(s.rss, float64(c.rss))
	if after == "" || t.restore == nil {
		return nil
	}
	if err := warm(filepath.Join(after, "disk.raw")); err != nil {
		return err
	}
	if c, err = t.do(after, repo, repo, t.backup(repo)); err != nil {
		return err
	}
	m, err := stored(repo)
	if err != nil {
		return err
	}
	s.after, s.grew = append(s.after, c.seconds), append(s.grew, float64(m-n))
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	if err := warm(repo); err != nil { // some write past the cache, and others have it there
		return err
	}
	if c, err = t.do(after, repo, out, t.restore(repo, out)); err != nil {
		return err
	}
	s.restore = append(s.restore, c.seconds)
	got, err := sum(t.restored(out))
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("the restored image is wrong")
	}
	return nil
}

// holes is goal 2: a 64 GiB disk that is nine tenths hole.
func (b *bench) holes() error {
	dir := filepath.Join(b.dir, "holes")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	image := filepath.Join(dir, "disk.raw")
	defer os.RemoveAll(dir)
	base, _, err := b.sources()
	if err != nil {
		return err
	}
	// 6.4 GiB of data: twice what the image holds.
	if err := sh(`rm -f "$2"; truncate -s 64G "$2"; for at in 0 20; do dd if="$1" of="$2" bs=1M seek=$((at*1024)) conv=notrunc,sparse status=none; done`, filepath.Join(base, "disk.raw"), image); err != nil {
		return err
	}
	// What is data sets a limit: R is the time that it takes without a hole being looked at.
	var got [2]series
	var real series
	for range b.rounds {
		for i, t := range b.tools()[:2] {
			if err := b.one(t, &got[i], dir, "", ""); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
		if err := b.realBackup(image, &real); err != nil {
			return err
		}
	}
	h, r := got[0].full, got[1].full
	fmt.Printf("goal 2  64 GiB, nine tenths hole: holdfast %.2f s, restic %.2f s: %s; at most %s can be had (R = %.2f "+
		"s)\n", median(h), median(r), ratio(r, h), ratio(r, real.full), median(real.full))
	fmt.Printf("goal 2  the same, share of R: %s   wanted 0.80\n\n", ratio(real.full, h))
	return nil
}

// clone is the other half of goal 2: a second machine with the same disk, of which nothing needs to
// be stored. Its roofline is reading and hashing alone, on all processors.
func (b *bench) clone() error {
	base, _, err := b.sources()
	if err != nil {
		return err
	}
	image, repo := filepath.Join(base, "disk.raw"), filepath.Join(b.dir, "clones")
	defer func() { _ = sh(`rm -rf "$1" "$1".*`, repo) }()
	t := b.holdfastTool("holdfast", nil)
	for _, args := range [][]string{t.init(repo), t.backup(repo)} {
		if _, err := t.do(base, repo, b.dir, args); err != nil {
			return err
		}
	}
	var took, roof []float64
	for i := range b.rounds {
		if err := warm(image); err != nil {
			return err
		}
		c, err := t.do(base, repo, repo,
			[]string{b.holdfast, "image", "backup", "disk.raw", "--name", fmt.Sprintf("clone-%d", i), "--quiet"})
		if err != nil {
			return err
		}
		start := time.Now()
		if err := readAndHash(image); err != nil {
			return err
		}
		took, roof = append(took, c.seconds), append(roof, time.Since(start).Seconds())
	}
	fmt.Printf("goal 2  a second clone of a stored disk: %.2f s, reading and hashing alone %.2f s: %s of the "+
		"roofline   wanted 0.80x\n\n", median(took), median(roof), ratio(roof, took))
	return nil
}

// readAndHash does with a file, on all processors, what no backup can do without.
func readAndHash(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	type part struct{ off, n int64 }
	parts := make(chan part)
	var workers errgroup.Group
	for range runtime.NumCPU() {
		workers.Go(func() error {
			hash, buf := chunk.NewHasher([32]byte{1}), make([]byte, 1<<20)
			for p := range parts {
				if n, err := f.ReadAt(buf[:p.n], p.off); int64(n) < p.n {
					return fmt.Errorf("read %s at offset %d: %w", path, p.off, err)
				}
				for at := int64(0); at < p.n; at += chunk.DefaultSize {
					hash.ID(buf[at:min(at+chunk.DefaultSize, p.n)])
				}
			}
			return nil
		})
	}
	err = eachData(f, 1<<20, func(off, n int64) error { parts <- part{off, n}; return nil })
	close(parts)
	return errors.Join(err, workers.Wait())
}

// random is the last of goal 1: bytes that do not compress.
func (b *bench) random() error {
	dir := filepath.Join(b.dir, "random")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := randomFile(filepath.Join(dir, "disk.raw"), 2<<30, 3); err != nil {
		return err
	}
	got, err := b.compare(b.tools()[:2], dir, "")
	if err != nil {
		return err
	}
	fmt.Printf("goal 1  2 GiB of random bytes: holdfast %.2f s, restic %.2f s: %s   wanted 3x\n\n", median(got[0].full),
		median(got[1].full), ratio(got[1].full, got[0].full))
	return nil
}
