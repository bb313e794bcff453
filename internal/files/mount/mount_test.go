package mount_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/files/mount"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/memfs"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// troubles gathers what is told.
type troubles struct {
	mu   sync.Mutex
	told []string
}

func (tr *troubles) add(where string, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.told = append(tr.told, where+": "+err.Error())
}

func (tr *troubles) has(text string) bool {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return slices.ContainsFunc(tr.told, func(s string) bool { return strings.Contains(s, text) })
}

// mounted mounts volumes, and sees that they are gone at the end.
func mounted(t *testing.T, tr *troubles, disks []volume.Disk, volumes ...*volume.Volume) (string, *mount.Mount) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "m")
	m, err := mount.New(dir, disks, files.Of(&volume.Volumes{List: volumes}),
		mount.Options{Source: "point", Time: time.Unix(1e9, 0), Trouble: tr.add})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = m.Unmount() // where the test did, it is gone
		m.Wait()
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	})
	return dir, m
}

func TestMount(t *testing.T) {
	when := time.Date(2020, 1, 2, 3, 4, 5, 123456789, time.UTC)
	a, b := memfs.New(filesystem.Info{Type: "ext4", Size: 1 << 30, Used: 1 << 29}),
		memfs.New(filesystem.Info{Type: "ntfs", Size: 1 << 20})
	a.Dir("/etc")
	a.Text("/etc/fstab", "x /srv nfs4\n")
	a.Dir("/srv")
	a.Dir("/big")
	for i := range 3000 {
		a.Text(fmt.Sprintf("/big/file with a name that is long enough to fill pages %04d", i), "")
	}
	two := a.Add("/file", memfs.File{Attr: filesystem.Attr{Mode: fs.ModeSetuid | 0o751, UID: 5, GID: 6, Links: 2,
		Modified: when, Accessed: when, Changed: when},
		Data: bytes.Repeat([]byte("data"), 500_000), Stored: extent.Of(extent.Extent{Off: 4096, Len: 8192}),
		Attrs: map[string][]byte{"user.k": []byte("v")}})
	a.Name("/etc", "hard", two)
	a.Link("/link", "etc/fstab")
	a.Add("/null", memfs.File{Attr: filesystem.Attr{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666,
		Rdev: unix.Mkdev(259, 70_000)}})
	a.Add("/unreadable", memfs.File{Attr: filesystem.Attr{Mode: 0o644}, Data: []byte("x"),
		ReadErr: filesystem.ErrCorrupt})
	a.Add("/unknown", memfs.File{Damage: errors.New("a damaged inode")})
	a.Add("/short", memfs.File{Attr: filesystem.Attr{Mode: 0o644, Size: 100}, Data: []byte("x")})
	a.Dir("/evil")
	a.Name("/evil", "a/b", two)
	a.Name("/evil", "good", two)
	b.Add("/a.txt", memfs.File{Attr: filesystem.Attr{Mode: 0o755}, Data: []byte("main"),
		Names: []string{"short", "long"},
		Named: map[string][]byte{"short": []byte("[zone]"), "long": make([]byte, 100_000)}})
	raw := bytes.Repeat([]byte("disk"), 300_000)
	var tr troubles
	dir, m := mounted(t, &tr, []volume.Disk{{Name: "vda", Size: int64(len(raw)), Reader: bytes.NewReader(raw)}},
		volume.Of("vda1", a), volume.Of("vg0/data", b))
	if !slices.Equal(m.Disks, []string{"vda"}) || !slices.Equal(m.Volumes, []string{"vda1", "vg0/data"}) || !m.Root {
		t.Errorf("%+v", m)
	}
	at := func(name string) string { return filepath.Join(dir, name) }

	if data, err := os.ReadFile(at("disks/vda")); err != nil || !bytes.Equal(data, raw) {
		t.Errorf("the disk: %d bytes, %v", len(data), err)
	}
	if data, err := os.ReadFile(at("volumes/vda1/file")); err != nil ||
		!bytes.Equal(data, bytes.Repeat([]byte("data"), 500_000)) {
		t.Errorf("a file: %d bytes, %v", len(data), err)
	}
	var st, hard, other unix.Stat_t
	if err := errors.Join(unix.Lstat(at("root/file"), &st), unix.Lstat(at("root/etc/hard"), &hard),
		unix.Lstat(at("volumes/vda1/file"), &other)); err != nil {
		t.Fatal(err)
	}
	if st.Mode != unix.S_IFREG|0o4751 || st.Uid != 5 || st.Gid != 6 || st.Nlink != 2 || st.Size != 2_000_000 ||
		st.Blocks != 16 || !time.Unix(st.Mtim.Unix()).Equal(when) {
		t.Errorf("%+v", st)
	}
	if st.Ino != hard.Ino || st.Ino == other.Ino {
		t.Errorf("inodes %d, %d, %d", st.Ino, hard.Ino, other.Ino)
	}
	if err := unix.Lstat(at("root/null"), &st); err != nil || st.Rdev != unix.Mkdev(259, 70_000) {
		t.Errorf("device %#x, %v", st.Rdev, err)
	}
	f, err := os.Open(at("root/file"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		off, want int64
		whence    int
	}{{0, 4096, unix.SEEK_DATA}, {0, 0, unix.SEEK_HOLE}, {5000, 12288, unix.SEEK_HOLE}, {5000, 5000, unix.SEEK_DATA},
		{12288, 12288, unix.SEEK_HOLE}} {
		if got, err := f.Seek(tt.off, tt.whence); err != nil || got != tt.want {
			t.Errorf("seek %+v: %d, %v", tt, got, err)
		}
	}
	if _, err := f.Seek(12288, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
		t.Errorf("data behind the last: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(at("root/big"))
	if err != nil || len(entries) != 3000 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	for _, e := range entries {
		if _, err := e.Info(); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 100)
	if n, err := unix.Getxattr(at("root/file"), "user.k", buf); err != nil || string(buf[:n]) != "v" {
		t.Errorf("%q, %v", buf[:max(n, 0)], err)
	}
	if n, err := unix.Listxattr(at("volumes/vg0/data/a.txt"), buf); err != nil || string(buf[:n]) != "user.short\x00" {
		t.Errorf("%q, %v", buf[:max(n, 0)], err)
	}
	if data, err := os.ReadFile(at("volumes/vg0/data/a.txt:long")); err != nil || len(data) != 100_000 {
		t.Errorf("a stream: %d bytes, %v", len(data), err)
	}
	var sf unix.Statfs_t
	if err := unix.Statfs(at("root"), &sf); err != nil || int64(sf.Blocks)*sf.Frsize != 1<<30 ||
		int64(sf.Bfree)*sf.Frsize != 1<<29 {
		t.Errorf("%+v, %v", sf, err)
	}
	for name, want := range map[string]error{
		"root/none": fs.ErrNotExist, "root/srv": syscall.EIO, "root/unknown": syscall.EIO,
		"root/a.txt:x": fs.ErrNotExist, "volumes/vg0/data/a.txt:no": fs.ErrNotExist,
	} {
		if _, err := os.Lstat(at(name)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	for _, name := range []string{"root/unreadable", "root/short", "root/unknown"} {
		if _, err := os.ReadFile(at(name)); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err := os.ReadDir(at("root/evil")); err != nil || len(list) != 1 || list[0].Name() != "good" {
		t.Errorf("beside a name with a slash: %v, %v", list, err)
	}
	for _, text := range []string{"vda1, inode", "of another machine", "a damaged inode", "the inode says 100 bytes", `"a/b" is no name`} {
		if !tr.has(text) {
			t.Errorf("nothing was told of %q: %q", text, tr.told)
		}
	}
	if err := os.WriteFile(at("root/new"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("writing: %v", err)
	}
}

// What is in use when the mount ends goes out of sight, and that is said.
func TestUnmountInUse(t *testing.T) {
	a := memfs.New(filesystem.Info{Type: "ext4"})
	a.Text("/file", "data")
	var tr troubles
	dir, m := mounted(t, &tr, nil, volume.Of("vda1", a))
	f, err := os.Open(filepath.Join(dir, "volumes/vda1/file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(); err == nil || !strings.Contains(err.Error(), "still in use") {
		t.Errorf("%v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
	if data, err := io.ReadAll(f); err != nil || string(data) != "data" {
		t.Errorf("who holds it open: %q, %v", data, err)
	}
	if err := f.Close(); err != nil { // now the last is gone
		t.Error(err)
	}
}

func TestWhereNothingCanBeMounted(t *testing.T) {
	if _, err := mount.New(filepath.Join(t.TempDir(), "no", "dir"), nil, files.Of(&volume.Volumes{}),
		mount.Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := mount.New(file, nil, files.Of(&volume.Volumes{}), mount.Options{}); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("on a file: %v", err)
	}
}
