package ext4

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// view is all that can be seen of a file system: for each path, in words, what is there.
type view map[string]*seen

// seen is what is at one path.
type seen struct {
	attr   filesystem.Attr
	data   string // checksum of the content, or where a link points
	stored extent.Set
	xattrs map[string][]byte
}

// wholeSize is up to where files are read as a whole; of larger ones what is stored and what is
// around it.
const wholeSize = 4 << 20

func (s *seen) describe(times bool) string {
	var b strings.Builder
	a := s.attr
	fmt.Fprintf(&b, "inode %d %v owner %d:%d size %d links %d device %#x data %s stored %v", a.ID, a.Mode, a.UID, a.GID,
		a.Size, a.Links, a.Rdev, s.data, s.stored)
	if times {
		fmt.Fprintf(&b, " times %v %v %v %v", a.Modified.UnixNano(), a.Changed.UnixNano(), a.Accessed.UnixNano(),
			a.Born.UnixNano())
	}
	for _, name := range slices.Sorted(maps.Keys(s.xattrs)) {
		v := s.xattrs[name]
		fmt.Fprintf(&b, " %s=%d:%x", name, len(v), sha256.Sum256(v))
	}
	return b.String()
}

// sameViews compares two views; where times is false, without times.
func sameViews(t testing.TB, got, want view, times bool) {
	t.Helper()
	wrong := 0
	for _, path := range slices.Sorted(maps.Keys(want)) {
		w := want[path].describe(times)
		g := "nothing"
		if got[path] != nil {
			g = got[path].describe(times)
		}
		if g != w {
			if wrong++; wrong < 10 {
				t.Errorf("%s\n got %s\nwant %s", path, g, w)
			}
		}
	}
	for path := range got {
		if want[path] == nil {
			t.Errorf("%s is not in the mount", path)
		}
	}
	if len(want) < 2 {
		t.Errorf("a view of %d files compares nothing", len(want))
	}
}

// viewOf walks all that our reader shows.
func viewOf(t testing.TB, f filesystem.FS) view {
	t.Helper()
	v := view{}
	if err := walk(f, "/", f.Root(), v); err != nil {
		t.Fatal(err)
	}
	return v
}

func walk(f filesystem.FS, path string, id filesystem.ID, v view) error {
	s, err := look(f, id)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	v[path] = s
	if !s.attr.Mode.IsDir() {
		return nil
	}
	for e, err := range f.ReadDir(id) {
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := walk(f, filepath.Join(path, e.Name), e.ID, v); err != nil {
			return err
		}
		if a := v[filepath.Join(path, e.Name)].attr; a.Mode.Type() != e.Type {
			return fmt.Errorf("%s in %s is %v, its entry says %v", e.Name, path, a.Mode, e.Type)
		}
	}
	return nil
}

func look(f filesystem.FS, id filesystem.ID) (*seen, error) {
	a, err := f.Stat(id)
	if err != nil {
		return nil, err
	}
	s := &seen{attr: a}
	if s.xattrs, err = f.Xattrs(id); err != nil {
		return nil, err
	}
	switch {
	case a.Mode&fs.ModeSymlink != 0:
		s.data, err = f.ReadLink(id)
	case a.Mode.IsRegular():
		var file filesystem.File
		if file, err = f.Open(id); err != nil {
			return nil, err
		}
		if s.stored, err = file.Extents(); err != nil {
			return nil, err
		}
		s.data, err = digest(file, file.Size(), s.stored)
	}
	return s, err
}

// digest returns the checksum of a file: of all of it, or if it is large of each stored range and
// the bytes around it.
func digest(r io.ReaderAt, size int64, stored extent.Set) (string, error) {
	h := sha256.New()
	ranges := extent.Set{{Len: size}}
	if size > wholeSize {
		ranges = extent.Set(stored).Align(1<<20, size)
	}
	for _, e := range ranges {
		n, err := io.Copy(h, io.NewSectionReader(r, e.Off, e.Len))
		if err != nil {
			return "", err
		}
		if n != e.Len {
			return "", fmt.Errorf("%d bytes at %d, want %d", n, e.Off, e.Len)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// mountView walks what the kernel shows. Of a file with several names the content is looked at
// once: the kernel calls room that was never written data as soon as somebody has read it.
func mountView(t testing.TB, dir string) view {
	t.Helper()
	v := view{}
	read := map[filesystem.ID]*seen{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		s, err := lookMounted(path, read)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		v[filepath.Join("/", strings.TrimPrefix(path, dir))] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func lookMounted(path string, read map[filesystem.ID]*seen) (*seen, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_ALL, &st); err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	s := &seen{attr: filesystem.Attr{
		ID: filesystem.ID(st.Ino), Mode: info.Mode(), UID: st.Uid, GID: st.Gid, Size: int64(st.Size), Links: st.Nlink,
		Rdev:     info.Sys().(*syscall.Stat_t).Rdev,
		Modified: statxTime(st.Mtime), Changed: statxTime(st.Ctime), Accessed: statxTime(st.Atime),
	}}
	if st.Mask&unix.STATX_BTIME != 0 {
		s.attr.Born = statxTime(st.Btime)
	}
	if s.xattrs, err = mountedXattrs(path); err != nil {
		return nil, err
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		s.data, err = os.Readlink(path)
	case read[s.attr.ID] != nil:
		s.data, s.stored = read[s.attr.ID].data, read[s.attr.ID].stored
	case info.Mode().IsRegular():
		err = s.readMounted(path)
		read[s.attr.ID] = s
	}
	return s, err
}

func statxTime(t unix.StatxTimestamp) time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

func (s *seen) readMounted(path string) error {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	for off := int64(0); off < s.attr.Size; {
		data, err := file.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		} else if err != nil {
			return err
		}
		hole, err := file.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		s.stored = s.stored.Append(extent.Extent{Off: data, Len: hole - data})
		off = hole
	}
	s.data, err = digest(file, s.attr.Size, s.stored)
	return err
}

func mountedXattrs(path string) (map[string][]byte, error) {
	all := map[string][]byte{}
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return nil, err
	}
	value := make([]byte, 64<<10)
	for name := range bytes.SplitSeq(list[:n], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		n, err := unix.Lgetxattr(path, string(name), value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all[string(name)] = bytes.Clone(value[:n])
	}
	return all, nil
}

// Room that was set aside and never written is no data, by whatever name it is looked at first.
func TestRoomWithSeveralNames(t *testing.T) {
	if !mayMount() {
		t.Log("only root with loop devices can compare with the kernel")
		return
	}
	image := makeImage(t, 16<<20, "-t", "ext4", "-J", "size=4")
	dir, unmount := mounted(t, image, "")
	file, err := os.Create(filepath.Join(dir, "first"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Fallocate(int(file.Fd()), 0, 0, 10_000), file.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(file.Name(), filepath.Join(dir, "second")); err != nil {
		t.Fatal(err)
	}
	unmount()
	compareAfterCrash(t, image)
}
