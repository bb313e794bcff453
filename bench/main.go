// Command bench measures Holdfast beside restic, borg, qemu-img and virtnbdbackup on the same bytes
// in the same run, and prints a table.
//
// Rounds are interleaved, every tool's writes are on disk when its clock stops, and every restore
// is compared by SHA-256: a fast wrong restore ends the run. Times are wall clock in seconds, sizes
// in MB of 10^6 bytes, memory is the peak resident set of the process.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

func main() {
	if repo := os.Getenv(fillEnv); repo != "" {
		if err := fillVault(repo); err != nil {
			fmt.Fprintln(os.Stderr, "bench: fill a vault:", err)
			os.Exit(1)
		}
		return
	}
	rounds := flag.Int("rounds", 5, "rounds of each comparison")
	size := flag.Int64("size", 8<<30, "size of the image in bytes")
	parts := flag.String("only", "image,roofline,tracked,guest,holes,clone,random,memory,points,commits,"+
		"export,snapshots,sparse",
		"parts to run, separated by commas")
	dir := flag.String("dir", ".cache/bench", "where images and repositories go")
	flag.Parse()
	if err := run(*dir, *size, *rounds, strings.Split(*parts, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	dir      string // absolute
	holdfast string
	rounds   int
	size     int64
}

func run(dir string, size int64, rounds int, parts []string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	holdfast, err := filepath.Abs("bin/holdfast")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer removeRecoveryKeys(dir)
	b := &bench{dir: dir, holdfast: holdfast, rounds: rounds, size: size}
	fmt.Printf("%s, %d CPUs, %s; restic %s; borg %s; virtnbdbackup %s\n", time.Now().Format("2006-01-02 15:04"),
		runtime.NumCPU(), cpuName(), version("restic", "version"), version("borg", "--version"),
		version("virtnbdbackup", "-V"))
	fmt.Printf("regime: sources in the page cache, repositories on the same disk, synced inside the timed region, %d "+
		"rounds, medians\n\n", rounds)
	all := map[string]func() error{"image": b.image, "roofline": b.roofline, "guest": b.guest, "tracked": b.tracked,
		"holes": b.holes, "clone": b.clone, "random": b.random, "memory": b.memory, "points": b.points,
		"commits":   b.commits,
		"snapshots": b.snapshots, "export": b.export, "boot": b.bootOnly, "sparse": b.sparse}
	for _, p := range parts {
		f := all[p]
		if f == nil {
			return fmt.Errorf("no part %q", p)
		}
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

// removeRecoveryKeys removes what `vault init` leaves beside each vault: the vaults are gone.
func removeRecoveryKeys(dir string) {
	found, _ := filepath.Glob(filepath.Join(dir, "holdfast-recovery-*.txt")) // the pattern is well formed
	for _, name := range found {
		if err := os.Remove(name); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
}

func cpuName() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for _, l := range strings.Split(string(b), "\n") {
		if name, ok := strings.CutPrefix(l, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return runtime.GOARCH
}

func version(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "missing"
	}
	f := strings.Fields(string(out))
	switch len(f) {
	case 0:
		return "unknown"
	case 1:
		return f[0]
	}
	return f[1]
}
