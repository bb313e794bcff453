package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// cost is what one command took.
type cost struct {
	seconds float64
	rss     int64 // peak resident set of the largest process, bytes
}

// tool is a program under comparison. Commands are run in a folder that holds the image disk.raw;
// repo is theirs alone.
type tool struct {
	name     string
	env      func(repo string) []string
	init     func(repo string) []string
	backup   func(repo string) []string
	restore  func(repo, out string) []string // nil: it cannot
	restored func(out string) string         // where the restored image is
}

func (b *bench) tools() []tool {
	return []tool{
		b.holdfastTool("holdfast", nil),
		{
			name: "restic",
			env: func(repo string) []string {
				return []string{"RESTIC_PASSWORD=bench", "RESTIC_REPOSITORY=" + repo, "RESTIC_CACHE_DIR=" + repo +
					".cache", "RESTIC_PROGRESS_FPS=0.01"}
			},
			init:   func(string) []string { return []string{"restic", "-q", "init"} },
			backup: func(string) []string { return []string{"restic", "-q", "backup", "disk.raw"} },
			restore: func(_, out string) []string {
				return []string{"restic", "-q", "restore", "latest", "--target", out}
			},
			restored: findRaw,
		},
		{
			name: "borg",
			env: func(repo string) []string {
				return []string{"BORG_PASSPHRASE=bench", "BORG_REPO=" + repo, "BORG_BASE_DIR=" + repo + ".base",
					"BORG_RELOCATED_REPO_ACCESS_IS_OK=yes"}
			},
			init: func(repo string) []string { return []string{"borg", "init", "-e", "repokey-blake2", repo} },
			backup: func(string) []string {
				return []string{"borg", "create", "-C", "zstd,1", "::{now:%s%f}", "disk.raw"}
			},
			restore: func(_, out string) []string {
				return []string{"sh", "-c", `cd "$0" && borg extract --sparse "::$(borg list --last 1 --format '{archive}')"`, out}
			},
			restored: findRaw,
		},
		{
			name: "qemu-img zstd", // neither encrypted nor deduplicated: the price of compression alone
			env:  func(string) []string { return nil },
			init: func(repo string) []string { return []string{"mkdir", "-p", repo} },
			backup: func(repo string) []string {
				return []string{"qemu-img", "convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "disk.raw",
					repo + "/disk.qcow2"}
			},
		},
	}
}

// holdfastTool is holdfast with further arguments to `image backup`.
func (b *bench) holdfastTool(name string, args []string) tool {
	return tool{
		name: name,
		env: func(repo string) []string {
			return []string{"HOLDFAST_VAULT=" + repo, "HOLDFAST_KEY_FILE=" + repo + ".key"}
		},
		init: func(repo string) []string { return []string{b.holdfast, "vault", "init", repo} },
		backup: func(string) []string {
			return append([]string{b.holdfast, "image", "backup", "disk.raw", "--name", "bench"}, args...)
		},
		restore: func(_, out string) []string {
			return []string{b.holdfast, "point", "restore", "bench@latest", "--to", filepath.Join(out, "disk.raw")}
		},
		restored: findRaw,
	}
}

func findRaw(out string) string {
	var found string
	_ = filepath.WalkDir(out, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "disk.raw" {
			found = p
		}
		return nil
	})
	return found
}

// do runs a command of t in dir and returns what it took, the sync of what it wrote below written
// included.
func (t tool) do(dir, repo, written string, argv []string) (cost, error) {
	start := time.Now()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), t.env(repo)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return cost{}, fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	if err := exec.Command("sync", "-f", written).Run(); err != nil {
		return cost{}, fmt.Errorf("sync %s: %w", written, err)
	}
	c := cost{seconds: time.Since(start).Seconds()}
	if ru, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		c.rss = ru.Maxrss << 10
	}
	return c, nil
}

// stored sums the sizes of all files below dir.
func stored(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		n += info.Size()
		return err
	})
	return n, err
}

func median(xs []float64) float64 {
	if len(xs) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(xs))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// ratio prints the median of a/b round by round, with the smallest and largest.
func ratio(a, b []float64) string {
	var r []float64
	for i := range min(len(a), len(b)) {
		if b[i] > 0 {
			r = append(r, a[i]/b[i])
		}
	}
	if len(r) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2fx (%.2f-%.2f)", median(r), slices.Min(r), slices.Max(r))
}
