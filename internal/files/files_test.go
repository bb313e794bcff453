package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/memfs"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

func newFS(kind string) *memfs.FS { return memfs.New(filesystem.Info{Type: kind, Size: 1 << 30}) }

// opened is a point of one volume for each file system: vda1, vda2, …
func opened(systems ...*memfs.FS) *Point {
	v := &volume.Volumes{}
	for i, f := range systems {
		v.List = append(v.List, volume.Of(fmt.Sprintf("vda%d", i+1), f))
	}
	return Of(v)
}

func get(t *testing.T, p *Point, to string, places ...string) (Report, error) {
	t.Helper()
	return p.Get(context.Background(), GetRequest{Places: places, To: to})
}

var when = time.Date(2021, 2, 3, 4, 5, 6, 123456789, time.UTC)

// All that a file has beside its bytes is kept, and the report counts it.
func TestGetKeepsWhatThereIs(t *testing.T) {
	f := newFS("ext4")
	hole := make([]byte, 3<<20)
	copy(hole[1<<20:], "data in the middle")
	attr := func(mode fs.FileMode) filesystem.Attr {
		return filesystem.Attr{Mode: mode, UID: 12, GID: 34, Modified: when, Accessed: when.Add(time.Second)}
	}
	f.Add("/d", memfs.File{Attr: attr(fs.ModeDir | fs.ModeSticky | 0o751),
		Attrs: map[string][]byte{"user.dir": []byte("yes")}})
	f.Add("/d/hole", memfs.File{Attr: attr(0o640), Data: hole,
		Stored: extent.Of(extent.Extent{Off: 1 << 20, Len: 4096}), Attrs: map[string][]byte{"user.a": []byte("b")}})
	f.Add("/d/suid", memfs.File{Attr: attr(fs.ModeSetuid | fs.ModeSetgid | 0o755), Data: []byte("#!/bin/sh\n")})
	f.Add("/d/empty", memfs.File{Attr: attr(0)})
	link := attr(fs.ModeSymlink | 0o777)
	f.Add("/d/link", memfs.File{Attr: link, Target: "/etc/passwd"})
	f.Add("/d/fifo", memfs.File{Attr: attr(fs.ModeNamedPipe | 0o600)})
	f.Add("/d/socket", memfs.File{Attr: attr(fs.ModeSocket | 0o600)})
	null := attr(fs.ModeDevice | fs.ModeCharDevice | 0o666)
	null.Rdev = unix.Mkdev(1, 3)
	f.Add("/d/null", memfs.File{Attr: null})
	two := attr(0o600)
	two.Links = 2
	first := f.Add("/d/one", memfs.File{Attr: two, Data: []byte("shared")})
	f.Dir("/d/sub")
	f.Name("/d/sub", "other", first)

	to := filepath.Join(t.TempDir(), "new")
	r, err := opened(f).Get(context.Background(), GetRequest{Places: []string{"vda1:/d"}, To: to, AsStored: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Files != 5 || r.Directories != 2 || r.Others != 4 || r.Bytes != 3<<20+10+12 || r.Stored != 4096+10+6 ||
		len(r.Warnings) != 0 {
		t.Errorf("%+v", r)
	}
	stat := func(name string) (st unix.Stat_t) {
		t.Helper()
		if err := unix.Lstat(filepath.Join(to, name), &st); err != nil {
			t.Error(name, err)
		}
		return st
	}
	for name, mode := range map[string]uint32{
		"d": unix.S_IFDIR | 0o1751, "d/hole": unix.S_IFREG | 0o640, "d/suid": unix.S_IFREG | 0o6755,
		"d/empty": unix.S_IFREG, "d/link": unix.S_IFLNK | 0o777,
		"d/fifo": unix.S_IFIFO | 0o600, "d/socket": unix.S_IFSOCK | 0o600, "d/null": unix.S_IFCHR | 0o666,
		"d/one": unix.S_IFREG | 0o600,
	} {
		st := stat(name)
		mtime, atime := time.Unix(st.Mtim.Unix()), time.Unix(st.Atim.Unix())
		if st.Mode != mode || st.Uid != 12 || st.Gid != 34 || !mtime.Equal(when) ||
			!atime.Equal(when.Add(time.Second)) && name != "d" {
			t.Errorf("%s: mode %o, owner %d:%d, %v, %v", name, st.Mode, st.Uid, st.Gid, mtime, atime)
		}
	}
	if got, err := os.ReadFile(filepath.Join(to, "d/hole")); err != nil || !bytes.Equal(got, hole) ||
		stat("d/hole").Blocks > 64 {
		t.Errorf("the hole: %d bytes, %d blocks, %v", len(got), stat("d/hole").Blocks, err)
	}
	if stat("d/one").Ino != stat("d/sub/other").Ino || stat("d/null").Rdev != unix.Mkdev(1, 3) {
		t.Error("hard links or devices differ")
	}
	if target, err := os.Readlink(filepath.Join(to, "d/link")); err != nil || target != "/etc/passwd" {
		t.Errorf("the link: %q, %v", target, err)
	}
	for name, want := range map[string]string{"d": "user.dir=yes", "d/hole": "user.a=b"} {
		key, value, _ := strings.Cut(want, "=")
		buf := make([]byte, 100)
		if n, err := unix.Getxattr(filepath.Join(to, name), key, buf); err != nil || string(buf[:n]) != value {
			t.Errorf("%s: %s is %q, %v", name, key, buf[:max(n, 0)], err)
		}
	}
	if st := stat("."); st.Mode&0o777 != 0o700 {
		t.Errorf("the new directory has mode %o", st.Mode)
	}
}

// left returns all names below dir.
func left(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			out = append(out, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Whatever a guest calls its files and wherever its links point, nothing is written outside the
// target.
func TestGetStaysInside(t *testing.T) {
	f := newFS("ext4")
	f.Dir("/d")
	good := f.Text("/d/good", "good")
	for _, name := range []string{"..", ".", "", "../up", "/abs", "a/b", "nul\x00byte", "sub/../../up"} {
		f.Name("/d", name, good)
	}
	f.Link("/d/escape", "../../outside")
	f.Dir("/d/dir")
	f.Text("/d/dir/x", "x")
	parent := t.TempDir()
	to := filepath.Join(parent, "to")
	_, err := get(t, opened(f), to, "vda1:/d")
	var some *Incomplete
	if !errors.As(err, &some) || len(some.Failures) != 8 || !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("%v", err)
	}
	if got := left(t, parent); !slices.Equal(got,
		[]string{"to", "to/d", "to/d/dir", "to/d/dir/x", "to/d/escape", "to/d/good"}) {
		t.Errorf("%q", got)
	}

	// A target tree that was prepared with links.
	evil := filepath.Join(parent, "evil")
	outside := filepath.Join(parent, "outside")
	if err := errors.Join(os.Mkdir(evil, 0o700), os.Mkdir(outside, 0o700), os.Mkdir(filepath.Join(evil, "d"), 0o700),
		os.Symlink(outside, filepath.Join(evil, "d/dir")),
		os.Symlink(filepath.Join(outside, "file"), filepath.Join(evil, "d/good"))); err != nil {
		t.Fatal(err)
	}
	_, err = opened(f).Get(context.Background(), GetRequest{Places: []string{"vda1:/d"}, To: evil, Force: true})
	if !errors.Is(err, ErrExists) || len(left(t, outside)) != 0 {
		t.Errorf("%v, outside is %q", err, left(t, outside))
	}
	if info, err := os.Lstat(filepath.Join(evil, "d/good")); err != nil || !info.Mode().IsRegular() {
		t.Errorf("a link that was replaced: %v, %v", info, err)
	}
}

// A file that cannot be read whole is named, leaves nothing behind, and keeps no other from being
// fetched.
func TestGetNamesWhatIsDamaged(t *testing.T) {
	bad := errors.New("a damaged chunk")
	f := newFS("ext4")
	f.Dir("/d")
	f.Add("/d/read", memfs.File{Attr: filesystem.Attr{Mode: 0o644}, Data: make([]byte, 5<<20), ReadErr: bad})
	f.Add("/d/open", memfs.File{Attr: filesystem.Attr{Mode: 0o644}, Data: []byte("x"), OpenErr: bad})
	f.Add("/d/stat", memfs.File{Attr: filesystem.Attr{Mode: 0o644}, Damage: bad})
	f.Add("/d/short", memfs.File{Attr: filesystem.Attr{Mode: 0o644, Size: 100}, Data: []byte("short")})
	f.Add("/d/beyond", memfs.File{Attr: filesystem.Attr{Mode: 0o644}, Data: []byte("x"),
		Stored: extent.Of(extent.Extent{Len: 10})})
	f.Add("/d/link", memfs.File{Attr: filesystem.Attr{Mode: fs.ModeSymlink | 0o777}, ReadErr: bad})
	f.Add("/d/cut", memfs.File{Attr: filesystem.Attr{Mode: fs.ModeDir | 0o755}, ListErr: bad})
	f.Text("/d/cut/before", "before")
	f.Add("/d/odd", memfs.File{Attr: filesystem.Attr{Mode: fs.ModeIrregular}})
	loop := f.Dir("/d/loop")
	f.Name("/d/loop", "again", loop)
	f.Text("/d/whole", "whole")
	to := t.TempDir()
	r, err := get(t, opened(f), to, "vda1:/d")
	var some *Incomplete
	if !errors.As(err, &some) || !errors.Is(err, bad) || !errors.Is(err, filesystem.ErrCorrupt) ||
		!errors.Is(err, filesystem.ErrUnsupported) {
		t.Fatalf("%v", err)
	}
	var names []string
	for _, f := range some.Failures {
		names = append(names, f.Path)
	}
	slices.Sort(names)
	want := []string{"beyond", "cut", "link", "loop/again", "odd", "open", "read", "short", "stat"}
	for i := range want {
		want[i] = "vda1:/d/" + want[i]
	}
	if !slices.Equal(names, want) {
		t.Errorf("failed: %q\nwant %q", names, want)
	}
	if got := left(t, to); !slices.Equal(got,
		[]string{"d", "d/cut", "d/cut/before", "d/loop", "d/whole"}) || r.Files != 2 {
		t.Errorf("fetched %q, %+v", got, r)
	}
	if !strings.Contains(err.Error(), "9 files could not be fetched: ") ||
		!strings.Contains(err.Error(), "and 6 more") {
		t.Errorf("%v", err)
	}
}

// Nothing that exists is changed unless that was asked for.
func TestGetDoesNotOverwrite(t *testing.T) {
	f := newFS("ext4")
	f.Text("/a", "new")
	f.Dir("/d")
	f.Text("/d/x", "new x")
	p := opened(f)
	to := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(to, "a"), []byte("old"), 0o600),
		os.Mkdir(filepath.Join(to, "d"), 0o700), os.WriteFile(filepath.Join(to, "d/mine"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := get(t, p, to, "vda1:/a", "vda1:/d"); !errors.Is(err, ErrExists) {
		t.Errorf("%v", err)
	}
	if data, err := os.ReadFile(filepath.Join(to, "a")); err != nil || string(data) != "old" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := p.Get(context.Background(),
		GetRequest{Places: []string{"vda1:/a", "vda1:/d"}, To: to, Force: true}); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(filepath.Join(to, "a")); err != nil || string(data) != "new" {
		t.Errorf("%q, %v", data, err)
	}
	if got := left(t, to); !slices.Equal(got, []string{"a", "d", "d/mine", "d/x"}) {
		t.Errorf("%q", got)
	}
	if _, err := get(t, p, to, "vda1:/d/x", "vda1:/none"); !errors.Is(err, fs.ErrNotExist) || len(left(t, to)) != 4 {
		t.Errorf("one of two is not there: %v, %q", err, left(t, to))
	}
	g := newFS("ext4")
	g.Text("/a", "other")
	if _, err := get(t, opened(f, g), filepath.Join(to, "n"), "vda1:/a", "vda2:/a"); !errors.Is(err, ErrExists) {
		t.Errorf("two of one name: %v", err)
	}
	if _, err := get(t, p, filepath.Join(to, "a"), "vda1:/a"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("into a file: %v", err)
	}
}

// Streams of NTFS are files beside theirs.
func TestGetStreams(t *testing.T) {
	f := newFS("ntfs")
	large := bytes.Repeat([]byte("stream"), 50_000)
	f.Add("/a.txt", memfs.File{Attr: filesystem.Attr{Mode: 0o755, Modified: when}, Data: []byte("main"),
		Names: []string{"Zone.Identifier", "big", "bad/name"},
		Named: map[string][]byte{"Zone.Identifier": []byte("[ZoneTransfer]"), "big": large, "bad/name": nil}})
	f.Add("/dir", memfs.File{Attr: filesystem.Attr{Mode: fs.ModeDir | 0o755}, Names: []string{"s"},
		Named: map[string][]byte{"s": []byte("of a directory")}})
	to := t.TempDir()
	r, err := get(t, opened(f), to, "vda1:/a.txt", "vda1:/dir")
	var some *Incomplete
	if !errors.As(err, &some) || len(some.Failures) != 1 || some.Failures[0].Path != "vda1:/a.txt:bad/name" {
		t.Errorf("%v", err)
	}
	if got := left(t, to); !slices.Equal(got,
		[]string{"a.txt", "a.txt:Zone.Identifier", "a.txt:big", "dir", "dir:s"}) || r.Streams != 3 {
		t.Errorf("%q, %+v", got, r)
	}
	if data, err := os.ReadFile(filepath.Join(to, "a.txt:big")); err != nil || !bytes.Equal(data, large) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

// What the target cannot keep is told once for each kind, with the first file that it is of.
func TestLosses(t *testing.T) {
	f := newFS("ext4")
	f.Dir("/d")
	for _, name := range []string{"a", "b", "c"} {
		f.Add("/d/"+name, memfs.File{Attr: filesystem.Attr{Mode: fs.ModeSetuid | 0o755, UID: 1, GID: 1},
			Attrs: map[string][]byte{"bogus.x": nil}})
	}
	f.Add("/d/null", memfs.File{Attr: filesystem.Attr{Mode: fs.ModeDevice | 0o600, UID: 1, GID: 1}})
	p := opened(f)
	at, err := p.Locate("vda1:/d", true)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	to, err := openTarget(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer to.close()
	g := p.getter(GetRequest{AsStored: true}, to)
	g.root = false // as any other user
	if err := g.place(context.Background(), to, at); err != nil {
		t.Fatal(err)
	}
	r := g.finish()
	if len(r.Warnings) != 4 {
		t.Errorf("%q", r.Warnings)
	}
	for i, want := range []string{"devices are left out", "extended attributes bogus.* are not kept",
		"owners are not kept", "setuid and setgid are not kept"} {
		if !strings.HasPrefix(r.Warnings[i], want) || i != 0 && !strings.HasSuffix(r.Warnings[i], " more") {
			t.Errorf("%q, want %q", r.Warnings[i], want)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "d/a")); err != nil || info.Mode() != 0o755 {
		t.Errorf("a setuid file of somebody else: %v, %v", info.Mode(), err)
	}
}

func TestStream(t *testing.T) {
	f := newFS("ext4")
	data := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	f.Add("/x", memfs.File{Attr: filesystem.Attr{Mode: 0o600}, Data: data})
	f.Dir("/d")
	f.Link("/link", "x")
	p := opened(f)
	var out bytes.Buffer
	var last int64
	if n, err := p.Stream(context.Background(),
		StreamRequest{Name: "vda1:/link", To: &out, Progress: func(done, _ int64) {
			last = done
		}}); err != nil || n != int64(len(data)) || !bytes.Equal(out.Bytes(), data) || last != n {
		t.Errorf("%d bytes, %v", n, err)
	}
	if _, err := p.Stream(context.Background(), StreamRequest{Name: "vda1:/d", To: &out}); !errors.Is(err,
		fs.ErrInvalid) {
		t.Errorf("a directory: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.Stream(ctx, StreamRequest{Name: "vda1:/x", To: &out}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	to := t.TempDir()
	if _, err := p.Get(ctx, GetRequest{Places: []string{"vda1:/x"}, To: to}); !errors.Is(err, context.Canceled) ||
		len(left(t, to)) != 0 {
		t.Errorf("%v, %q", err, left(t, to))
	}
}

func TestListAndFind(t *testing.T) {
	f, g := newFS("ext4"), newFS("ntfs")
	f.Dir("/etc")
	f.Text("/etc/fstab", "")
	f.Dir("/etc/nginx")
	f.Text("/etc/nginx/nginx.conf", "conf")
	f.Text("/etc/b.conf", "")
	f.Link("/etc/a.conf", "b.conf")
	f.Add("/etc/bad", memfs.File{Damage: filesystem.ErrCorrupt})
	g.Dir("/Users")
	g.Text("/Users/Site.CONF", "")
	p := opened(f, g)
	list := func(req ListRequest) (names []string, err error) {
		req.Listed = func(e Entry) error { names = append(names, e.Path); return nil }
		err = p.List(context.Background(), req)
		return names, err
	}
	find := func(pattern, vol string) (names []string, err error) {
		err = p.Find(context.Background(), FindRequest{Pattern: pattern, Volume: vol, Found: func(e Entry) error {
			names = append(names, e.Path)
			return nil
		}})
		return names, err
	}
	got, err := list(ListRequest{Name: "/etc"})
	if !slices.Equal(got, []string{"/etc/a.conf", "/etc/b.conf", "/etc/bad", "/etc/fstab", "/etc/nginx"}) ||
		!errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("%q, %v", got, err)
	}
	if got, _ := list(ListRequest{Name: "vda1:etc/nginx", Recursive: true}); !slices.Equal(got,
		[]string{"vda1:/etc/nginx/nginx.conf"}) {
		t.Errorf("%q", got)
	}
	if got, err := list(ListRequest{Name: "vda2"}); !slices.Equal(got, []string{"vda2:/Users"}) || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := list(ListRequest{Name: "/etc", Itself: true}); !slices.Equal(got, []string{"/etc"}) || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := list(ListRequest{Name: "/etc/a.conf"}); !slices.Equal(got, []string{"/etc/a.conf"}) || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := find("*.conf", ""); !slices.Equal(got,
		[]string{"/etc/a.conf", "/etc/b.conf", "/etc/nginx/nginx.conf", "vda2:/Users/Site.CONF"}) ||
		!errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := find("/users/*", "vda2"); !slices.Equal(got, []string{"vda2:/Users/Site.CONF"}) || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for _, pattern := range []string{"vda2:/users/**/*.conf", "vda2:*.conf"} { // as paths are written
		if got, err := find(pattern, ""); !slices.Equal(got, []string{"vda2:/Users/Site.CONF"}) || err != nil {
			t.Errorf("found %q as %s, %v", got, pattern, err)
		}
	}
	if _, err := find("[", ""); err == nil {
		t.Error("a bad pattern is taken")
	}
	if _, err := find("x", "none"); !errors.Is(err, ErrNoVolume) {
		t.Errorf("%v", err)
	}
	for name, want := range map[string]error{"etc": ErrName, "vda9:/": ErrNoVolume, "/none": fs.ErrNotExist,
		"vda1:/none": ErrNoFile, "vda1:/etc/fstab/x": ErrNoFile} {
		if _, err := p.Locate(name, true); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, tt := range []struct {
		pattern, path string
		want          bool
	}{
		{"*.conf", "/etc/a.conf", true}, {"*.conf", "/a.conf", true}, {"*.conf", "/etc/a.conf/x", false},
		{"/etc/*.conf", "/etc/a.conf", true},
		{"/etc/*.conf", "/etc/x/a.conf", false}, {"/etc/**/*.conf", "/etc/x/y/a.conf", true},
		{"/etc/**/*.conf", "/etc/a.conf", true},
		{"nginx/*.conf", "/etc/nginx/a.conf", true}, {"nginx/*.conf", "/etc/xnginx/a.conf", false},
		{"/**", "/a/b/c", true}, {"**/a/**/b", "/a/x/a/b", true},
		{"/a/**/b/**/c", "/a/b/b/c", true}, {"/a/**/b/**/c", "/a/c/b", false}, {"[a-c]?", "/x/b1", true},
		{"[a-c]?", "/x/d1", false},
	} {
		g, err := compile(tt.pattern)
		if err != nil || g.match(tt.path, false) != tt.want {
			t.Errorf("%s matches %s: %v (%v)", tt.pattern, tt.path, !tt.want, err)
		}
	}
}

// A pattern means what the regular expression means that it can be written as.
func TestGlobIsRegular(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{"**", "*", "a", "b", "a*", "?", "*b*"}), 1, 6).Draw(t,
			"pattern")
		names := rapid.SliceOfN(rapid.StringMatching("[ab]{1,3}"), 1, 7).Draw(t, "path")
		re := "^"
		for _, p := range parts {
			if p == "**" {
				re += "(/[^/]+)*"
				continue
			}
			re += "/" + strings.NewReplacer("*", "[^/]*", "?", "[^/]").Replace(p)
		}
		pattern, path := "/"+strings.Join(parts, "/"), "/"+strings.Join(names, "/")
		g, err := compile(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := g.match(path, false), regexp.MustCompile(re+"$").MatchString(path); got != want {
			t.Fatalf("%s matches %s: %v, the expression says %v", pattern, path, got, want)
		}
	})
}

// Whatever sequence of kinds a device number is made of, it comes apart as it was put together.
func TestDevice(t *testing.T) {
	for _, tt := range [][2]uint32{{1, 3}, {8, 300}, {259, 70_000}, {0xfff, 0xfffff}} {
		if major, minor := device(unix.Mkdev(tt[0], tt[1])); major != tt[0] || minor != tt[1] {
			t.Errorf("%v is %d, %d", tt, major, minor)
		}
	}
}

func TestDescribe(t *testing.T) {
	f := newFS("ext4")
	f.Dir("/etc")
	f.Text("/etc/fstab", "")
	p := opened(f)
	p.volumes.List = append(p.volumes.List,
		volume.Scan(t.Context(),
			[]volume.Disk{{Name: "vdb", Size: 1 << 20, Reader: bytes.NewReader(make([]byte, 1<<20))}}).List...)
	got := p.Describe()
	if len(got) != 2 || got[0].State != Readable || got[0].Mounted != "/" || got[1].State != NoFiles ||
		got[1].Reason != "nothing that is known is on it" {
		t.Errorf("%+v", got)
	}
}
