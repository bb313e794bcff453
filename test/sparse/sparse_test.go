package sparse_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/test/sparse"
)

// statements returns how often each block of statements was run by all commands on disks of size
// bytes, and how many commands that were.
func statements(t *testing.T, holdfast string, size int64) (counts map[string]int64, commands int64) {
	t.Helper()
	dir, counters := t.TempDir(), t.TempDir()
	c := sparse.Commands{Holdfast: holdfast, Dir: dir, Size: size, Env: []string{"GOCOVERDIR=" + counters},
		Ran: func(string, *os.ProcessState) { commands++ }}
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(counters, "text")
	if out, err := exec.Command("go", "tool", "covdata", "textfmt", "-i="+counters,
		"-o="+text).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := os.Open(text)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	counts = make(map[string]int64)
	for in := bufio.NewScanner(f); in.Scan(); {
		fields := strings.Fields(in.Text()) // file:line.column,line.column statements count
		if len(fields) != 3 {
			continue
		}
		if counts[fields[0]], err = strconv.ParseInt(fields[2], 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	if len(counts) < 1000 {
		t.Fatalf("only %d blocks of statements were counted", len(counts))
	}
	return counts, commands
}

// Whatever is done with a disk costs what the disk holds, and not how large it is: no statement is
// run more often for 8 TiB than for 1 GiB with the same bytes in it. Only what formats and
// protocols of others force may be by size, and is little: a qcow2 image has an L1 entry for each
// 512 MiB, and NBD without extended headers answers for 4 GiB at once.
func TestCostFollowsWhatADiskHolds(t *testing.T) {
	const large, perStep = 8 << 40, 512 << 20
	holdfast := filepath.Join(t.TempDir(), "holdfast")
	build := exec.Command("go", "build", "-cover", "-covermode=atomic",
		"-coverpkg=../../internal/...,../../cmd/holdfast",
		"-o", holdfast, "../../cmd/holdfast")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	few, _ := statements(t, holdfast, 1<<30)
	many, commands := statements(t, holdfast, large)
	for block, n := range many {
		if n > 2*few[block]+commands*large/perStep {
			t.Errorf("%s: run %d times for disks of 8 TiB, %d times for disks of 1 GiB", block, n, few[block])
		}
	}
}
