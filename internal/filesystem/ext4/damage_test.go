package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// smallTree returns a directory with one of each that anyone may make, small.
func smallTree(t testing.TB) string {
	dir := t.TempDir()
	f := &filler{t: t, dir: dir, rng: rand.New(rand.NewPCG(8, 8))}
	f.file("small", 50)
	f.file("middle", 9000)
	f.must(os.MkdirAll(f.path("a/b"), 0o755))
	f.must(os.Symlink("short", f.path("a/short")))
	f.must(os.Symlink(strings.Repeat("long/", 30), f.path("a/long")))
	f.may(unix.Setxattr(f.path("small"), "user.short", []byte("v"), 0))
	f.may(unix.Setxattr(f.path("middle"), "user.longer", f.bytes(500), 0))
	f.writeAt("sparse", 0, 20000, 40000, 60000, 80000, 100000, 120000)
	for i := range 60 {
		f.must(os.Link(f.path("small"), f.path(fmt.Sprintf("a/b/%s%d", strings.Repeat("n", 60), i))))
	}
	return dir
}

// described is a view except for the content of files, which carries no checksum.
func described(v view) map[string]string {
	all := map[string]string{}
	for path, s := range v {
		if s.attr.Mode.IsRegular() {
			s.data = ""
		}
		all[path] = s.describe(true)
	}
	return all
}

// readImage makes an image and returns its bytes.
func readImage(t testing.TB, size int64, options ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(makeImage(t, size, options...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func viewBytes(r io.ReaderAt, size int64) (view, error) {
	f, err := Open(r, size)
	if err != nil {
		return nil, err
	}
	v := view{}
	return v, walk(f, "/", f.Root(), v)
}

// With checksums, whatever byte is changed: what is shown, except for the content of files, is
// right or is an error.
func TestChecksumsTellDamage(t *testing.T) {
	t.Parallel()
	image := readImage(t, 4<<20, "-t", "ext4", "-O", "inline_data", "-b", "1024", "-N", "64", "-d", smallTree(t))
	v, err := viewBytes(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	want := described(v)
	var used []int
	for i, b := range image {
		if b != 0 {
			used = append(used, i)
		}
	}
	rng := rand.New(rand.NewPCG(4, 4))
	found := 0
	for range 400 {
		at := max(0, used[rng.IntN(len(used))]+rng.IntN(3)-1)
		old := image[at]
		image[at] ^= byte(1 + rng.IntN(255))
		v, err := viewBytes(bytes.NewReader(image), int64(len(image)))
		if err == nil {
			for path, got := range described(v) {
				if isLink := strings.Contains(got, " L"); got != want[path] && !isLink {
					t.Fatalf("byte %d changed from %d to %d: %s\n got %s\nwant %s", at, old, image[at], path, got,
						want[path])
				}
			}
			if len(v) != len(want) {
				t.Fatalf("byte %d changed: %d files, want %d", at, len(v), len(want))
			}
		} else if found++; !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, filesystem.ErrUnsupported) &&
			!errors.Is(err, filesystem.ErrNotThis) {
			t.Fatalf("byte %d changed: %v", at, err)
		}
		image[at] = old
	}
	if found == 0 {
		t.Error("no change was noticed")
	}
}

// failing fails one read.
type failing struct {
	io.ReaderAt
	left atomic.Int64
}

var errBroken = errors.New("the device is broken")

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.left.Add(-1) == -1 {
		return 0, errBroken
	}
	return f.ReaderAt.ReadAt(p, off)
}

// A read that fails is an error with its reason, whichever it is, and no excuse to call the file
// system damaged.
func TestEveryReadMayFail(t *testing.T) {
	t.Parallel()
	image := makeImage(t, 8<<20, "-t", "ext4", "-b", "1024", "-J", "size=1", "-d", smallTree(t))
	block := blocksOfFile(t, opened(t, image), "middle")[0]
	debug(t, image, "journal_open -c -v 3", fmt.Sprintf("journal_write -b %d %s", block, os.Args[0]), "journal_close")
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for i := int64(0); ; i++ {
		f := &failing{ReaderAt: bytes.NewReader(data)}
		f.left.Store(i)
		_, err := viewBytes(f, int64(len(data)))
		if f.left.Load() >= 0 {
			if err != nil || i < 10 {
				t.Errorf("after %d reads: %v", i, err)
			}
			return
		}
		if !errors.Is(err, errBroken) || errors.Is(err, filesystem.ErrCorrupt) {
			t.Fatalf("read %d fails: %v", i, err)
		}
	}
}

// A device that is cut off is not opened.
func TestCutOff(t *testing.T) {
	image := readImage(t, 2<<20, "-t", "ext4", "-d", smallTree(t))
	for size := range int64(len(image)) {
		if size%4093 != 0 && size > 4096 {
			continue
		}
		_, err := Open(bytes.NewReader(image[:size]), size)
		want := filesystem.ErrCorrupt
		if size < superblockOffset+superblockSize {
			want = filesystem.ErrNotThis
		}
		if !errors.Is(err, want) {
			t.Fatalf("%d bytes open with %v", size, err)
		}
	}
	if _, err := Open(bytes.NewReader(make([]byte, 1<<20)), 1<<20); !errors.Is(err, filesystem.ErrNotThis) {
		t.Errorf("zeros open with %v", err)
	}
}

// counting counts reads and their bytes.
type counting struct {
	io.ReaderAt
	reads, bytes atomic.Int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.ReaderAt.ReadAt(p, off)
}

// Few reads are made: a file as large as its extents allow, inodes and directories by chunks.
func TestReadsAreLarge(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := &filler{t: t, dir: dir, rng: rand.New(rand.NewPCG(8, 8))}
	f.file("large", 6<<20)
	for i := range 2000 {
		f.must(os.WriteFile(f.path(fmt.Sprintf("inode-%d", i)), nil, 0o600))
	}
	image := readImage(t, 64<<20, "-t", "ext4", "-b", "4096", "-d", dir)
	c := &counting{ReaderAt: bytes.NewReader(image)}
	reader, err := Open(c, int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range reader.ReadDir(reader.Root()) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := reader.Stat(e.ID); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.reads.Load(); n > 30 {
		t.Errorf("%d reads for 2000 inodes of 256 bytes and their names", n)
	}
	c.reads.Store(0)
	content := contentOf(t, reader, "large")
	if n := c.reads.Load(); len(content) != 6<<20 || n > 50 {
		t.Errorf("%d reads for %d bytes", n, len(content))
	}
}

// The type in an entry of a directory is a type only.
func TestModes(t *testing.T) {
	for _, tt := range []struct {
		mode uint16
		want fs.FileMode
	}{
		{0o100644, 0o644}, {0o040755, fs.ModeDir | 0o755}, {0o120777, fs.ModeSymlink | 0o777},
		{0o104755, fs.ModeSetuid | 0o755},
		{0o102755, fs.ModeSetgid | 0o755}, {0o041777, fs.ModeDir | fs.ModeSticky | 0o777},
		{0o020620, fs.ModeDevice | fs.ModeCharDevice | 0o620},
		{0o060660, fs.ModeDevice | 0o660}, {0o010600, fs.ModeNamedPipe | 0o600}, {0o140755, fs.ModeSocket | 0o755},
	} {
		if got := fileMode(tt.mode); got != tt.want {
			t.Errorf("fileMode(%#o) = %v, want %v", tt.mode, got, tt.want)
		}
	}
}
