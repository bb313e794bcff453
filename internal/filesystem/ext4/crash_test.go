package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// journals are the kinds of journals that crash.
var journals = []struct {
	name    string
	mount   string
	options []string
	rounds  int
}{
	{"checksums", "", []string{"-t", "ext4", "-J", "size=4"}, 2},
	{"small and of 1 KiB blocks", "", []string{"-t", "ext4", "-b", "1024", "-J", "size=1"}, 4},
	{"orphan file and data in inodes", "",
		[]string{"-t", "ext4", "-O", "inline_data,orphan_file,ea_inode", "-J", "size=4"}, 2},
	{"no checksums", "", []string{"-t", "ext4", "-O", "^metadata_csum,^64bit", "-J", "size=4"}, 2},
	{"first kind of checksums", "journal_checksum", []string{"-t", "ext4", "-O", "^metadata_csum", "-J", "size=4"}, 2},
	{"asynchronous commits", "journal_async_commit,data=writeback",
		[]string{"-t", "ext4", "-O", "^metadata_csum,^64bit", "-J", "size=4"}, 2},
	{"asynchronous commits with checksums", "journal_async_commit,data=writeback",
		[]string{"-t", "ext4", "-J", "size=4"}, 2},
	{"data too", "data=journal", []string{"-t", "ext4", "-J", "size=8"}, 2},
	{"ext3", "", []string{"-t", "ext3", "-b", "1024", "-J", "size=4"}, 2},
}

// Wherever the machine stopped, our reader shows of the disk what a mount that replays the journal
// shows of it, but for the times of what the mount itself finishes.
func TestCrashes(t *testing.T) {
	if !mayMount() {
		t.Log("only root with loop devices can compare with the kernel")
		return
	}
	for i, j := range journals {
		t.Run(j.name, func(t *testing.T) {
			t.Parallel()
			image := makeImage(t, 24<<20, j.options...)
			w := &writer{t: t, seed: uint64(i)}
			replayed := 0
			for round := range j.rounds {
				w.crash(image, j.mount, round)
				if compareAfterCrash(t, image) {
					replayed++
				}
				if t.Failed() {
					t.Fatalf("in round %d", round)
				}
			}
			if replayed == 0 {
				t.Error("no round left a journal to replay")
			}
		})
	}
}

// compareAfterCrash compares the views of an image that was not unmounted, and tells whether there
// was something to replay.
func compareAfterCrash(t *testing.T, image string) bool {
	t.Helper()
	f := opened(t, image)
	got := viewOf(t, f)
	copied := filepath.Join(t.TempDir(), "copy")
	copyFile(t, image, copied)
	dir, unmount := mounted(t, copied, "noatime")
	want := mountView(t, dir)
	unmount()
	sameTimes(want, got, unfinished(t, f))
	sameViews(t, got, want, true)
	if err := os.Remove(copied); err != nil {
		t.Fatal(err)
	}
	return noted(f, "the journal was replayed")
}

func noted(f *FS, note string) bool {
	return strings.Contains(strings.Join(f.Info().Notes, ", "), note)
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	command(t, "cp", "--sparse=auto", from, to)
}

// writer changes a file system in many ways.
type writer struct {
	t    *testing.T
	seed uint64
}

// crash changes a file system from two sides, and stops it while both still write: nothing more
// reaches the disk.
func (w *writer) crash(image, options string, round int) {
	w.t.Helper()
	dir, unmount := mounted(w.t, image, options)
	top, err := os.Open(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	stop := rand.New(rand.NewPCG(w.seed, uint64(round))).Int64N(250)
	var done atomic.Int64
	var crashed atomic.Bool
	var both sync.WaitGroup
	for side := range 2 {
		both.Go(func() {
			rng := rand.New(rand.NewPCG(w.seed, uint64(100*round+side)))
			for !crashed.Load() {
				if err := change(dir, rng); err != nil && !expected(err) {
					w.t.Errorf("change: %v", err)
					crashed.Store(true)
				}
				if side == 0 && done.Add(1) > stop {
					shutDown(w.t, top)
					crashed.Store(true)
				}
			}
		})
	}
	both.Wait()
	if err := top.Close(); err != nil {
		w.t.Error(err)
	}
	unmount()
}

// shutDown makes the kernel behave as if the machine had stopped, without writing the journal out.
func shutDown(t testing.TB, top *os.File) {
	const ioctlShutdown, withoutFlush = 0x8004587D, 2
	if err := unix.IoctlSetPointerInt(int(top.Fd()), ioctlShutdown, withoutFlush); err != nil {
		t.Errorf("shut down: %v", err)
	}
}

func expected(err error) bool {
	for _, e := range []error{unix.EIO, unix.ENOENT, unix.EEXIST, unix.ENOSPC, unix.EOPNOTSUPP, unix.ENOTEMPTY,
		unix.EISDIR, unix.ENOTDIR, unix.EINVAL, unix.EROFS, unix.EMLINK, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// change does one thing to a file system.
func change(dir string, rng *rand.Rand) error {
	name := func() string {
		return filepath.Join(dir, fmt.Sprintf("d%d", rng.IntN(3)), fmt.Sprintf("f%d", rng.IntN(40)))
	}
	data := bytes.Repeat([]byte{byte(rng.Uint32()), 0xC0, 0x3B, 0x39, 0x98}, rng.IntN(4000))
	if rng.IntN(8) == 0 { // what the journal must escape
		data = append([]byte{0xC0, 0x3B, 0x39, 0x98}, data...)
	}
	switch rng.IntN(16) {
	case 0, 1, 2:
		return os.WriteFile(name(), data, 0o644)
	case 3, 4:
		return writeSome(name(), data, rng.Int64N(300000)&^0xFFF, rng.IntN(2) == 0)
	case 5:
		return os.Rename(name(), name())
	case 6, 7:
		return os.Remove(name())
	case 8:
		return os.Truncate(name(), rng.Int64N(200000))
	case 9:
		return os.Link(name(), name())
	case 10:
		return os.Symlink(strings.Repeat("l", 1+rng.IntN(200)), name())
	case 11:
		return os.MkdirAll(filepath.Join(name(), "sub"), 0o755)
	case 12:
		return os.RemoveAll(name())
	case 13:
		return unix.Setxattr(name(), "user.x", data[:min(len(data), 2000)], 0)
	case 14:
		return manyNames(filepath.Join(dir, "d0"), rng)
	}
	return os.MkdirAll(filepath.Join(dir, fmt.Sprintf("d%d", rng.IntN(3))), 0o755)
}

func writeSome(name string, data []byte, at int64, durable bool) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(data, at)
	if durable && err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// manyNames fills a directory of several blocks, and takes it away again: its blocks become
// revoked.
func manyNames(dir string, rng *rand.Rand) error {
	sub := filepath.Join(dir, "names")
	if err := os.RemoveAll(sub); err != nil || rng.IntN(3) == 0 {
		return err
	}
	if err := os.Mkdir(sub, 0o755); err != nil {
		return err
	}
	for i := range 100 {
		if err := os.Symlink("x", filepath.Join(sub, fmt.Sprintf("%s%d", strings.Repeat("n", 100), i))); err != nil {
			return err
		}
	}
	return writeSome(filepath.Join(dir, "durable"), []byte("x"), 0, true)
}

// A disk that is copied while it is in use, as it is at one instant, is read as a mount of the copy
// shows it.
func TestCopiedWhileMounted(t *testing.T) {
	if !mayMount() {
		t.Log("only root with loop devices can compare with the kernel")
		return
	}
	t.Parallel()
	image := makeImage(t, 16<<20, "-t", "ext4", "-J", "size=4")
	dir, unmount := mounted(t, image, "commit=600")
	rng := rand.New(rand.NewPCG(1, 2))
	replayed := 0
	for round := range 3 {
		for range 30 {
			if err := change(dir, rng); err != nil && !expected(err) {
				t.Fatal(err)
			}
		}
		if err := writeSome(filepath.Join(dir, "last"), []byte{byte(round)}, 0, true); err != nil {
			t.Fatal(err)
		}
		if compareAfterCrash(t, instant(t, image)) {
			replayed++
		}
	}
	unmount()
	if replayed == 0 {
		t.Error("no round left a journal to replay")
	}
}

// instant returns a copy of an image that the kernel may be writing to: two copies that are equal
// are its state at one instant.
func instant(t *testing.T, image string) string {
	t.Helper()
	copies := []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")}
	for range 100 {
		for _, to := range copies {
			copyFile(t, image, to)
		}
		if sameFiles(t, copies[0], copies[1]) {
			return copies[0]
		}
	}
	t.Fatal("the image is never at rest")
	return ""
}

func sameFiles(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}
