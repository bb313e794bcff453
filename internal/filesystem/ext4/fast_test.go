package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Fast commits are read as the kernel replays them, where it does: some that it wrote itself it
// refuses. The times of what it touches while it replays are then those of the mount, and
// directories are written anew.
func TestFastCommits(t *testing.T) {
	if !mayMount() {
		t.Log("only root with loop devices can compare with the kernel")
		return
	}
	t.Parallel()
	compared := 0
	for round, features := range []string{"fast_commit", "fast_commit,inline_data", "fast_commit",
		"fast_commit,^metadata_csum"} {
		image := makeImage(t, 24<<20, "-t", "ext4", "-O", features, "-J", "size=8")
		smallChanges(t, image, rand.New(rand.NewPCG(uint64(round), 3)))
		f := opened(t, image)
		if !noted(f, "fast commits were replayed") {
			continue
		}
		got := viewOf(t, f)
		want, ok := replayedByKernel(t, image)
		if !ok {
			continue
		}
		compared++
		forgetDirSizes(got)
		forgetDirSizes(want)
		sameViews(t, got, want, false)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	if compared == 0 {
		t.Error("no round left fast commits to replay")
	}
}

// replayedByKernel returns what a mount shows, unless the kernel finds its own fast commits
// damaged.
func replayedByKernel(t *testing.T, image string) (view, bool) {
	t.Helper()
	loop := attached(t, image)
	dir := t.TempDir()
	err := unix.Mount(loop, dir, "ext4", unix.MS_NOATIME, "")
	if errors.Is(err, unix.EUCLEAN) {
		t.Log("the kernel refuses to replay what it wrote")
		return nil, false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	return mountView(t, dir), true
}

// attached attaches an image to a loop device until the test ends.
func attached(t *testing.T, image string) string {
	t.Helper()
	loop := string(bytes.TrimSpace([]byte(command(t, "losetup", "--find", "--show", image))))
	t.Cleanup(func() { command(t, "losetup", "--detach", loop) })
	return loop
}

func forgetDirSizes(v view) {
	for _, s := range v {
		if s.attr.Mode.IsDir() {
			s.attr.Size = 0
		}
	}
}

// smallChanges changes a file system in ways that fast commits can record, and stops it.
func smallChanges(t *testing.T, image string, rng *rand.Rand) {
	t.Helper()
	dir, unmount := mounted(t, image, "")
	top, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"s0", "s1"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	unix.Syncfs(int(top.Fd()))
	for range 40 + rng.IntN(60) {
		if err := smallChange(dir, rng); err != nil && !expected(err) {
			t.Fatal(err)
		}
	}
	shutDown(t, top)
	if err := top.Close(); err != nil {
		t.Fatal(err)
	}
	unmount()
}

func smallChange(dir string, rng *rand.Rand) error {
	sub := filepath.Join(dir, fmt.Sprintf("s%d", rng.IntN(2)))
	name := filepath.Join(sub, fmt.Sprintf("f%d", rng.IntN(15)))
	other := filepath.Join(sub, fmt.Sprintf("other%d", rng.Uint64()))
	switch rng.IntN(24) {
	case 0, 1:
		return os.Truncate(name, rng.Int64N(200000))
	case 2:
		return os.Link(name, other)
	case 3:
		return errors.Join(os.Link(name, other), os.Remove(name))
	case 4:
		return os.Rename(name, other)
	case 5:
		return os.MkdirAll(filepath.Join(sub, "new", fmt.Sprintf("%d", rng.IntN(1000))), 0o755)
	case 6:
		return os.Remove(name)
	}
	data := bytes.Repeat([]byte{byte(rng.Uint32())}, rng.IntN(20000))
	return writeSome(name, data, rng.Int64N(300000), rng.IntN(4) > 0)
}
