package ntfs_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/ntfs"
)

// What ntfs-3g wrote is read as ntfs-3g shows it, whatever the sizes of clusters and sectors.
func TestReadsWhatIsMounted(t *testing.T) {
	for i, args := range [][]string{{}, {"-c", "512", "-s", "512"}, {"-c", "65536"}, {"-s", "4096", "-c", "4096"}} {
		files := 300
		if i == 0 {
			files = 10_000
		}
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			image := filepath.Join(t.TempDir(), "ntfs.img")
			ok(t, os.WriteFile(image, nil, 0o600))
			ok(t, os.Truncate(image, 192<<20))
			run(t, "mkntfs", append(append([]string{"-Q", "-q", "-F", "-L", "Daten äöü"}, args...), image)...)
			mounted(t, image, func(dir string) { fill(t, dir, files) })
			f := open(t, image)
			info := f.Info()
			if info.Label != "Daten äöü" || info.Type != "ntfs" || info.Used <= 0 || info.Used > info.Size ||
				len(info.Notes) > 0 {
				t.Errorf("%+v", info)
			}
			if out := run(t, "blkid", "-p", "-o", "value", "-s", "UUID", image); strings.TrimSpace(out) != info.UUID {
				t.Errorf("UUID %s, blkid says %s", info.UUID, out)
			}
			mounted(t, image, func(dir string) {
				if n := compare(t, f, f.Root(), dir); n < files+15 {
					t.Errorf("compared only %d files", n)
				}
			})
			if out := run(t, "ntfsinfo", "-f", "-F", "fragments a", image); i < 2 &&
				!strings.Contains(out, "$ATTRIBUTE_LIST") {
				t.Error("the corpus has no attribute list")
			}
		})
	}
}

// fill makes what is hard to read.
func fill(t *testing.T, dir string, files int) {
	random := rand.NewChaCha8([32]byte{7})
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, p []byte) { ok(t, os.WriteFile(at(name), p, 0o644)) }
	noise := func(n int) []byte {
		p := make([]byte, n)
		random.Read(p)
		return p
	}
	text := bytes.Repeat([]byte("The quick brown fox jumps over the lazy dog, again and again. "), 8000)
	write("empty", nil)
	write("small", []byte("resident"))
	write("noise", noise(3<<20+17))
	write("ünïcödé ☃ 𝄞.txt", text[:5000])
	sparse, err := os.Create(at("sparse"))
	ok(t, err)
	_, err = sparse.WriteAt(noise(70_000), 5<<20)
	ok(t, err)
	ok(t, sparse.Truncate(9<<20+5))
	ok(t, sparse.Close())
	ok(t, os.Mkdir(at("squeezed"), 0o755))
	ok(t, unix.Setxattr(at("squeezed"), "system.ntfs_attrib", []byte{0x10, 0x08, 0, 0}, 0))
	write("squeezed/text", text)
	write("squeezed/noise", noise(300_001))
	write("squeezed/zeros", make([]byte, 400_000))
	mixed := append(append(bytes.Clone(text[:100_000]), make([]byte, 200_000)...), noise(100_000)...)
	write("squeezed/mixed", append(mixed, text[:77_777]...))
	write("squeezed/short", text[:4100])
	hole, err := os.Create(at("squeezed/hole"))
	ok(t, err)
	_, err = hole.WriteAt(text[:200_000], 1<<20+333)
	ok(t, err)
	ok(t, hole.Close())
	ok(t, os.Link(at("noise"), at("squeezed/another name of noise")))
	ok(t, os.Symlink("../small", at("squeezed/link")))
	ok(t, os.Symlink(strings.Repeat("long/", 100), at("long link")))
	ok(t, os.MkdirAll(at("many"), 0o755))
	for i := range files {
		write(fmt.Sprintf("many/file number %05d", i), []byte(fmt.Sprint(i)))
	}
	fragment(t, at, noise)
	for i := range 3 {
		ok(t, unix.Setxattr(at("small"), fmt.Sprintf("user.stream %d", i), noise(10+i*30_000), 0))
	}
	when := time.Date(2001, 2, 3, 4, 5, 6, 789_000_100, time.UTC)
	ok(t, os.Chtimes(at("small"), when, when))
	ok(t, os.RemoveAll(at("gone")))
}

// fragment writes two files by turns, so that each has many runs and needs a list of attributes.
func fragment(t *testing.T, at func(string) string, noise func(int) []byte) {
	a, err := os.Create(at("fragments a"))
	ok(t, err)
	defer a.Close()
	b, err := os.Create(at("fragments b"))
	ok(t, err)
	defer b.Close()
	for i := range 1200 {
		f, off := a, int64(i)*160<<10
		if i%2 == 1 {
			f = b
		}
		if _, err := f.WriteAt(noise(300), off%(150<<20)); err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// compare walks both and returns how many files it saw.
func compare(t *testing.T, f *ntfs.FS, id filesystem.ID, dir string) int {
	t.Helper()
	want, err := os.ReadDir(dir)
	ok(t, err)
	got := map[string]filesystem.Entry{}
	for e, err := range f.ReadDir(id) {
		if err != nil {
			t.Fatalf("read %s: %v", dir, err)
		}
		got[e.Name] = e
	}
	n := 0
	for _, w := range want {
		path := filepath.Join(dir, w.Name())
		e, there := got[w.Name()]
		if !there {
			t.Errorf("%s is missing", path)
			continue
		}
		delete(got, w.Name())
		n += 1 + compareFile(t, f, e, path)
		if found, err := f.Lookup(id, strings.ToUpper(w.Name())); err != nil || found != e.ID {
			t.Errorf("%s in upper case: %v, %v", path, found, err)
		}
	}
	for name := range got {
		t.Errorf("%s/%s is not there", dir, name)
	}
	return n
}

func compareFile(t *testing.T, f *ntfs.FS, e filesystem.Entry, path string) int {
	t.Helper()
	info, err := os.Lstat(path)
	ok(t, err)
	a, err := f.Stat(e.ID)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return 0
	}
	st := info.Sys().(*syscall.Stat_t)
	if a.Mode.Type() != info.Mode().Type() || e.Type != a.Mode.Type() {
		t.Errorf("%s: mode %v, entry %v, mounted %v", path, a.Mode, e.Type, info.Mode())
	}
	if !a.Modified.Equal(info.ModTime()) {
		t.Errorf("%s: modified %v, mounted %v", path, a.Modified, info.ModTime())
	}
	switch {
	case info.IsDir():
		return compare(t, f, e.ID, path)
	case info.Mode().Type() == fs.ModeSymlink:
		want, err := os.Readlink(path)
		ok(t, err)
		if got, err := f.ReadLink(e.ID); err != nil || got != want {
			t.Errorf("%s leads to %q (%v), mounted to %q", path, got, err, want)
		}
		return 0
	}
	if a.Size != info.Size() || uint64(a.Links) != uint64(st.Nlink) {
		t.Errorf("%s: %d bytes, %d links, mounted %d and %d", path, a.Size, a.Links, info.Size(), st.Nlink)
	}
	file, err := f.Open(e.ID)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return 0
	}
	want, err := os.ReadFile(path)
	ok(t, err)
	compareData(t, path, file, want)
	compareStreams(t, f, e.ID, path)
	return 0
}

func compareData(t *testing.T, path string, file filesystem.File, want []byte) {
	t.Helper()
	h := sha256.New()
	if n, err := io.Copy(h, io.NewSectionReader(file, 0, file.Size()+1)); err != nil || n != int64(len(want)) {
		t.Errorf("%s: read %d of %d bytes: %v", path, n, len(want), err)
	}
	if sum := sha256.Sum256(want); !bytes.Equal(h.Sum(nil), sum[:]) {
		t.Errorf("%s has other bytes", path)
	}
	data, err := file.Extents()
	if err != nil {
		t.Errorf("%s: %v", path, err)
	}
	for _, e := range data { // whatever is not stored must be zeros
		clear(want[e.Off:e.End()])
	}
	if i := bytes.IndexFunc(want, func(r rune) bool { return r != 0 }); i >= 0 {
		t.Errorf("%s: byte %d is data and told to be a hole", path, i)
	}
	if len(want) > 5000 {
		p := make([]byte, 3000)
		if n, err := file.ReadAt(p, file.Size()-1000); n != 1000 || !errors.Is(err, io.EOF) {
			t.Errorf("%s: read %d bytes over its end: %v", path, n, err)
		}
	}
}

func compareStreams(t *testing.T, f *ntfs.FS, id filesystem.ID, path string) {
	t.Helper()
	streams, err := f.Streams(id)
	if err != nil {
		t.Errorf("%s: %v", path, err)
	}
	for _, s := range streams {
		want := make([]byte, s.Size)
		n, err := unix.Getxattr(path, "user."+s.Name, want)
		if err != nil || int64(n) != s.Size {
			t.Errorf("%s: stream %s has %d bytes mounted: %v", path, s.Name, n, err)
			continue
		}
		file, err := f.OpenStream(id, s.Name)
		ok(t, err)
		compareData(t, path+":"+s.Name, file, want)
	}
	attrs, err := f.Xattrs(id)
	ok(t, err)
	if strings.Contains(path, "squeezed/text") && !strings.Contains(t.Name(), "65536") &&
		attrs["system.ntfs_attrib"][1]&8 == 0 {
		t.Errorf("%s is not compressed", path)
	}
	if filepath.Base(path) != "small" {
		return
	}
	if len(streams) != 3 {
		t.Errorf("%s has %d streams", path, len(streams))
	}
	for _, name := range []string{"system.ntfs_attrib", "system.ntfs_acl"} {
		want := make([]byte, 64<<10)
		n, err := unix.Getxattr(path, name, want)
		ok(t, err)
		if !bytes.Equal(attrs[name], want[:n]) {
			t.Errorf("%s: %s is %x, mounted %x", path, name, attrs[name], want[:n])
		}
	}
}

func open(t testing.TB, image string) *ntfs.FS {
	t.Helper()
	r, err := os.Open(image)
	ok(t, err)
	t.Cleanup(func() { r.Close() })
	st, err := r.Stat()
	ok(t, err)
	f, err := ntfs.Open(r, st.Size())
	ok(t, err)
	return f
}

// mounted calls use while the image is mounted by ntfs-3g.
func mounted(t *testing.T, image string, use func(dir string)) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	ok(t, err)
	defer os.Remove(dir)
	run(t, "ntfs-3g", "-o", "compression,streams_interface=xattr", image, dir)
	defer run(t, "umount", dir)
	use(dir)
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
