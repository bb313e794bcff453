package xfs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/filesystemtest"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	filesystemtest.OwnMounts(m, os.Geteuid() == 0, func() error { return nil }) // others cannot mount at all
}

// known is everything the tests compare of one file.
type known struct {
	Mode                fs.FileMode
	UID, GID, Links     uint32
	Size                int64
	Rdev                uint64
	MTime, CTime, BTime int64
	Target              string
	Sum                 string
	Extents             string
	Xattrs              string
}

// tree is what a file system holds, by path.
type tree map[string]known

// run runs a program that has to succeed.
func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if err := runQuietly(name, args...); err != nil {
		t.Fatal(err)
	}
}

// tempDir returns a directory for images, in memory if that is possible: what the tests wait for is
// not the disk.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hf")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// makeImage makes an empty file system in a sparse file.
func makeImage(t testing.TB, image string, size int64, args ...string) {
	t.Helper()
	file, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.xfs", append(append([]string{"--unsupported", "-q", "-K"}, args...), image)...)
}

// mount mounts an image. The mount and its loop device go away with unmount, or with the test.
func mount(t testing.TB, image, options string) (dir string, unmount func()) {
	t.Helper()
	dir, err := tryMount(t, image, options)
	if err != nil {
		t.Fatalf("%v\nThese tests compare with the kernel's own XFS: they need root, loop devices and a kernel that "+
			"has XFS.", err)
	}
	return dir, func() {
		t.Helper()
		poll(t, func() error { return unmountAll(dir) })
	}
}

// unmountAll unmounts what is mounted on a directory. A program that was just started may hold a
// file of it for a moment.
func unmountAll(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || !bytes.Contains(mounts, []byte(" "+dir+" ")) {
		return err
	}
	return runQuietly("umount", dir)
}

func runQuietly(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// poll does something again until it succeeds.
func poll(t testing.TB, try func() error) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func tryMount(t testing.TB, image, options string) (string, error) {
	dir := t.TempDir()
	if err := runQuietly("mount", "-t", "xfs", "-o", "loop,nouuid,nodev,"+options, image, dir); err != nil {
		return "", err
	}
	t.Cleanup(func() {
		if unmountAll(dir) != nil { // as where another program has a copy of a mount within
			_ = exec.Command("umount", "-l", dir).Run()
		}
	})
	return dir, nil
}

// openImage opens an image with the reader under test.
func openImage(t testing.TB, image string) *FS {
	t.Helper()
	file, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(file, info.Size())
	if err != nil {
		t.Fatalf("open %s: %v", image, err)
	}
	return f
}

// walk reads all of f.
func walk(t testing.TB, f *FS) tree {
	t.Helper()
	all, err := look(f)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// look reads all of f, up to the first error.
func look(f *FS) (tree, error) {
	all := tree{}
	var down func(path string, id filesystem.ID) error
	down = func(path string, id filesystem.ID) error {
		k, err := knownOf(f, id)
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		all[path] = k
		if !k.Mode.IsDir() {
			return nil
		}
		for e, err := range f.ReadDir(id) {
			if err != nil {
				return fmt.Errorf("%q: %w", path, err)
			}
			child := path + "/" + e.Name
			if _, twice := all[child]; twice {
				return fmt.Errorf("%q is there twice", child)
			}
			if err := down(child, e.ID); err != nil {
				return err
			}
			if all[child].Mode.Type() != e.Type {
				return fmt.Errorf("%q: the entry has type %v, the inode %v", child, e.Type, all[child].Mode)
			}
		}
		return nil
	}
	return all, down("", f.Root())
}

func knownOf(f *FS, id filesystem.ID) (known, error) {
	a, err := f.Stat(id)
	if err != nil {
		return known{}, err
	}
	k := known{
		Mode: a.Mode, UID: a.UID, GID: a.GID, Links: a.Links, Size: a.Size, Rdev: a.Rdev,
		MTime: a.Modified.UnixNano(), CTime: a.Changed.UnixNano(),
	}
	if !a.Born.IsZero() {
		k.BTime = a.Born.UnixNano()
	}
	attrs, err := f.Xattrs(id)
	if err != nil {
		return known{}, err
	}
	k.Xattrs = describeXattrs(attrs)
	switch {
	case a.Mode.IsRegular():
		file, err := f.Open(id)
		if err != nil {
			return known{}, err
		}
		set, err := file.Extents()
		if err != nil {
			return known{}, err
		}
		k.Extents = fmt.Sprint(set)
		k.Sum, err = sumOf(io.NewSectionReader(file, 0, file.Size()), set)
		return k, err
	case a.Mode.Type() == fs.ModeSymlink:
		k.Target, err = f.ReadLink(id)
		return k, err
	}
	return k, nil
}

// sumOf returns the SHA-256 of the extents and of a part of the holes between them.
func sumOf(r io.ReaderAt, set extent.Set) (string, error) {
	h := sha256.New()
	for _, e := range set {
		const beside = 10000
		from := max(0, e.Off-beside)
		if _, err := io.Copy(h, io.NewSectionReader(r, from, e.End()-from+beside)); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

func describeXattrs(attrs map[string][]byte) string {
	var list []string
	for name, value := range attrs {
		list = append(list, fmt.Sprintf("%s=%x", name, sha256.Sum256(value)))
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

// walkMount reads all of what a mount shows.
func walkMount(t testing.TB, dir string) tree {
	t.Helper()
	all, err := lookMount(dir)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// lookMount reads all of what a mount shows, up to the first error.
func lookMount(dir string) (tree, error) {
	all := tree{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		k, err := knownOfMount(path)
		all[strings.TrimPrefix(path, dir)] = k
		return err
	})
	return all, err
}

func knownOfMount(path string) (known, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return known{}, err
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_ALL, &st); err != nil {
		return known{}, err
	}
	nano := func(ts unix.StatxTimestamp) int64 { return ts.Sec*1e9 + int64(ts.Nsec) }
	k := known{
		Mode: info.Mode(), UID: st.Uid, GID: st.Gid, Links: st.Nlink, Size: int64(st.Size),
		Rdev:  unix.Mkdev(st.Rdev_major, st.Rdev_minor),
		MTime: nano(st.Mtime), CTime: nano(st.Ctime),
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		k.BTime = nano(st.Btime)
	}
	if k.Xattrs, err = xattrsOfMount(path); err != nil {
		return known{}, err
	}
	switch {
	case info.Mode().IsRegular():
		file, err := os.Open(path)
		if err != nil {
			return known{}, err
		}
		defer file.Close()
		set, err := dataOf(file, info.Size())
		if err != nil {
			return known{}, err
		}
		k.Extents = fmt.Sprint(set)
		if k.Sum, err = sumOf(file, set); err != nil {
			return known{}, err
		}
		// What was read of an unwritten extent counts as data while it is in memory, which shows
		// under the next name of the file.
		return k, unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED)
	case info.Mode().Type() == fs.ModeSymlink:
		k.Target, err = os.Readlink(path)
		return k, err
	}
	return k, nil
}

// dataOf asks the kernel where a file has data.
func dataOf(file *os.File, size int64) (extent.Set, error) {
	var set extent.Set
	for at := int64(0); at < size; {
		from, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return set, nil
		}
		if err != nil {
			return nil, err
		}
		if at, err = unix.Seek(int(file.Fd()), from, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		set = set.Append(extent.Extent{Off: from, Len: at - from})
	}
	return set, nil
}

func xattrsOfMount(path string) (string, error) {
	n, err := unix.Llistxattr(path, nil)
	if err != nil || n == 0 {
		return "", err
	}
	buf := make([]byte, n)
	if n, err = unix.Llistxattr(path, buf); err != nil {
		return "", err
	}
	attrs, value := map[string][]byte{}, make([]byte, 64<<10)
	for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
		if len(name) == 0 || bytes.HasPrefix(name, []byte("trusted.SGI_ACL_")) {
			continue
		}
		n, err := unix.Lgetxattr(path, string(name), value)
		if err != nil {
			return "", err
		}
		attrs[string(name)] = bytes.Clone(value[:n])
	}
	return describeXattrs(attrs), nil
}

// compare fails the test where two trees differ.
func compare(t testing.TB, what string, got, want tree) {
	t.Helper()
	bad := 0
	report := func(format string, args ...any) {
		t.Helper()
		if bad++; bad <= 10 {
			t.Errorf(what+": "+format, args...)
		}
	}
	for path, w := range want {
		if g, ok := got[path]; !ok {
			report("%q is missing", path)
		} else if g != w {
			report("%q\n got %+v\nwant %+v", path, g, w)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			report("%q is there and should not be", path)
		}
	}
}
