package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/memfs"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// found returns what a search finds, and its error.
func found(t *testing.T, p *Point, req FindRequest) (paths []string, err error) {
	t.Helper()
	req.Found = func(e Entry) error { paths = append(paths, e.Path); return nil }
	err = p.Find(context.Background(), req)
	return paths, err
}

// listed returns what a listing of all below a place tells, and its error.
func listed(t *testing.T, p *Point, name string, l Limits) (list []Entry, err error) {
	t.Helper()
	err = p.List(context.Background(), ListRequest{Name: name, Recursive: true, Limits: l,
		Listed: func(e Entry) error { list = append(list, e); return nil }})
	return list, err
}

// failuresOf returns the paths that an error names.
func failuresOf(t *testing.T, err error) (paths []string) {
	t.Helper()
	var some *Incomplete
	if !errors.As(err, &some) {
		t.Fatalf("%v", err)
	}
	for _, f := range some.Failures {
		paths = append(paths, f.Path)
	}
	slices.Sort(paths)
	return paths
}

// A directory has one name. With two for each, forty directories have 2^40 paths, and none is a
// cycle; with its own parent's below it, it has any number. Each is gone through once, and what is
// its second name is named.
func TestDirectoriesOfTwoNames(t *testing.T) {
	f := newFS("ext4")
	path, root := "", &memfs.File{Attr: filesystem.Attr{ID: 1, Mode: fs.ModeDir}}
	var want []string
	for range 40 {
		next := f.Dir(path + "/a")
		f.Name("/"+path, "b", next)
		f.Name("/"+path, "back", root)
		want = append(want, "vda1:"+path+"/b", "vda1:"+path+"/back")
		path += "/a"
	}
	f.Text(path+"/leaf", "found")
	slices.Sort(want)
	p := opened(f)
	got, err := found(t, p, FindRequest{Pattern: "leaf"})
	if !slices.Equal(got, []string{"vda1:" + path + "/leaf"}) || !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("found %q, %v", got, err)
	}
	if failed := failuresOf(t, err); !slices.Equal(failed, want) {
		t.Errorf("named are %q, want %q", failed, want)
	}
	for _, text := range []string{"the directory was read before, under another name",
		"the directory is inside itself: it is /"} {
		if all := fmt.Sprint(err.(interface{ Unwrap() []error }).Unwrap()); !strings.Contains(all, text) {
			t.Errorf("no error says that %s", text)
		}
	}
	to := t.TempDir()
	r, err := get(t, p, to, "vda1:/")
	if r.Directories != 40 || r.Files != 1 || !slices.Equal(failuresOf(t, err), want) || len(left(t, to)) != 41 {
		t.Errorf("fetched %+v, %d names, %v", r, len(left(t, to)), err)
	}
	list, err := listed(t, p, "vda1:/a/a", Limits{})
	if len(list) == 0 || !slices.Equal(failuresOf(t, err)[:1],
		[]string{"vda1:/a/a" + strings.Repeat("/a", 37) + "/b"}) {
		t.Errorf("%d listed, %v", len(list), err)
	}

	// What is asked for twice does not get a second name.
	two := newFS("ext4")
	two.Name("/", "d2", two.Dir("/d1"))
	two.Text("/d1/x", "x")
	if r, err := get(t, opened(two), t.TempDir(), "vda1:/d1", "vda1:/d2"); err != nil || r.Files != 2 {
		t.Errorf("a directory by both names: %+v, %v", r, err)
	}
}

// Each limit ends the work, or leaves a directory out, with its number; what was done until then
// was.
func TestLimits(t *testing.T) {
	f := newFS("ext4")
	f.Dir("/d")
	for i := range 20 {
		f.Text(fmt.Sprintf("/d/%02d", i), strings.Repeat("x", 100))
	}
	f.Dir("/d/1")
	f.Dir("/d/1/2")
	f.Text("/d/1/2/deep", "")
	f.Text("/e", "")
	p := opened(f)
	limitOf := func(err error) Limit {
		t.Helper()
		var l *LimitError
		if !errors.As(err, &l) || !errors.Is(err, ErrLimit) || errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%v", err)
			return ""
		}
		return l.Limit
	}
	const all = 25
	got, err := found(t, p, FindRequest{Pattern: "*", Limits: Limits{Entries: all}})
	if err != nil || len(got) != all {
		t.Errorf("as many as there may be: %d, %v", len(got), err)
	}
	got, err = found(t, p, FindRequest{Pattern: "*", Limits: Limits{Entries: all - 1}})
	if limitOf(err) != LimitEntries || len(got) == 0 || !strings.Contains(err.Error(), "more than 24 entries") {
		t.Errorf("one more: %d, %v", len(got), err)
	}
	if _, err := listed(t, p, "vda1:/", Limits{Entries: 10}); limitOf(err) != LimitEntries {
		t.Errorf("%v", err)
	}
	got, err = found(t, p, FindRequest{Pattern: "*", Limits: Limits{Depth: 3}})
	if limitOf(err) != LimitDepth || len(got) != all-1 || !slices.Equal(failuresOf(t, err), []string{"vda1:/d/1/2"}) {
		t.Errorf("too deep: %d, %v", len(got), err)
	}
	fetch := func(l Limits) (string, Report, error) {
		to := t.TempDir()
		r, err := p.Get(context.Background(), GetRequest{Places: []string{"vda1:/d", "vda1:/e"}, To: to, Limits: l})
		return to, r, err
	}
	to, r, err := fetch(Limits{Bytes: 1050})
	// Of the files that are fetched side by side, those that were not done are given up.
	if n := r.Files; limitOf(err) != LimitBytes || n > 10 || n < 6 || r.Stored > 1050 || int64(len(left(t, to))) != n+
		1 {
		t.Errorf("too much: %+v, %q, %v", r, left(t, to), err)
	}
	to, r, err = fetch(Limits{Depth: 2})
	if limitOf(err) != LimitDepth || r.Files != 21 || slices.Contains(left(t, to), "d/1/2") {
		t.Errorf("too deep: %+v, %q, %v", r, left(t, to), err)
	}
	if _, _, err = fetch(Limits{Entries: 10}); limitOf(err) != LimitEntries {
		t.Errorf("%v", err)
	}
	late := fmt.Errorf("too late: %w", &LimitError{LimitTime, "it took more than 1s"})
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(late)
	if err := p.Find(ctx, FindRequest{Pattern: "*", Found: func(Entry) error {
		return nil
	}}); limitOf(err) != LimitTime {
		t.Errorf("%v", err)
	}
	if _, err := p.Get(ctx, GetRequest{Places: []string{"vda1:/d"}, To: t.TempDir()}); limitOf(err) != LimitTime {
		t.Errorf("%v", err)
	}
}

// What there is by default does not depend on the disk except for bytes.
func TestDefaultLimits(t *testing.T) {
	for size, want := range map[int64]int64{0: 1 << 30, 1 << 20: 1 << 30, 1 << 40: 16 << 40,
		math.MaxInt64: math.MaxInt64 &^ 15} {
		if l := (Limits{}).WithDefaults(size); l.Bytes != want || l.Entries != DefaultEntries ||
			l.Depth != DefaultDepth {
			t.Errorf("disks of %d bytes: %+v", size, l)
		}
	}
	l := Limits{1, 2, 3}
	if l.WithDefaults(0) != l {
		t.Errorf("%+v", l.WithDefaults(0))
	}
}

// A file that says that it is as large as a file can be is fetched as the hole that it is, several
// of them too; one that says that all of it is data is refused before anything is written.
func TestHugeFiles(t *testing.T) {
	const exa = 1 << 60
	f := newFS("xfs")
	f.Dir("/d")
	attr := filesystem.Attr{Mode: 0o600, Size: exa}
	for i := range 20 {
		f.Add(fmt.Sprintf("/d/hole%d", i),
			memfs.File{Attr: attr, Data: []byte("x"), Stored: extent.Set{{Len: 1}}, Sparse: true})
	}
	f.Add("/d/all", memfs.File{Attr: attr, Sparse: true, Stored: extent.Set{{Len: exa}}})
	var last int64
	to := t.TempDir()
	r, err := opened(f).Get(context.Background(), GetRequest{Places: []string{"vda1:/d"}, To: to,
		Limits: Limits{Bytes: math.MaxInt64}, Progress: func(done, total int64) { last = max(last, done, total) }})
	if failed := failuresOf(t, err); !errors.Is(err, ErrNoRoom) || !slices.Contains(failed, "vda1:/d/all") ||
		last < exa {
		t.Errorf("%v", err)
	}
	if r.Stored > 20 || slices.ContainsFunc(left(t, to), func(s string) bool { return strings.Contains(s, ".part") }) {
		t.Errorf("%+v, %q", r, left(t, to))
	}
	_, err = opened(f).Get(context.Background(), GetRequest{Places: []string{"vda1:/d/all"}, To: t.TempDir()})
	if !errors.Is(err, ErrLimit) {
		t.Errorf("%v", err)
	}
	_, err = opened(f).Stream(context.Background(), StreamRequest{Name: "vda1:/d/hole1", To: &bytes.Buffer{}})
	if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "1152921504606846976 bytes, holes and all") {
		t.Errorf("%v", err)
	}
}

// Directories of more names than are held at once are gone through whole, and so is what is below.
func TestLargeDirectoriesComeInParts(t *testing.T) {
	f := newFS("ext4")
	for d := range 3 {
		dir := fmt.Sprintf("/d%d", d)
		f.Dir(dir)
		for i := range 3000 {
			f.Text(fmt.Sprintf("%s/%s%04d", dir, strings.Repeat("n", 100), i), "")
		}
	}
	v := volume.Of("vda1", f)
	tree, err := v.Tree()
	if err != nil {
		t.Fatal(err)
	}
	w := &walker{trail: &trail{limits: Limits{}.WithDefaults(0)}, tree: tree}
	w.held = mostHeld // by directories above: this one is given the least
	w.begin()
	most, names := int64(0), map[string]bool{}
	w.visit = func(path string, _ volume.Node, _ filesystem.Attr) error {
		most = max(most, w.held-mostHeld)
		names[path] = true
		return nil
	}
	if err := w.walk(context.Background(), "/", tree.Root()); err != nil {
		t.Fatal(err)
	}
	if len(names) != 1+3+9000 || most > 3*leastHeld || w.held != mostHeld {
		t.Errorf("%d names, %d bytes held, %d are left", len(names), most, w.held-mostHeld)
	}
}

// There are as many failures as a guest likes. They are counted, and some of each kind are kept.
func TestManyFailures(t *testing.T) {
	var f failures
	for i := range keptFailures + 5 {
		f.add(fmt.Sprint(i), fs.ErrPermission)
	}
	f.add("damaged", filesystem.ErrCorrupt)
	err := f.incomplete("searched")
	if got := len(failuresOf(t, err)); got != keptFailures+1 || !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("%d are kept", got)
	}
	if text := err.Error(); !strings.HasPrefix(text, "10006 files could not be searched: ") ||
		!strings.HasSuffix(text, "and 10003 more") {
		t.Errorf("%s", text)
	}
}

// Impossible names are reported with the place where they are found so that nobody takes them for a
// path.
func TestNamesThatAreNone(t *testing.T) {
	f := newFS("ntfs")
	f.Dir("/d")
	f.Dir("/d/sub")
	good := f.Text("/d/good", "good")
	for _, name := range []string{"..", "../../etc/passwd", "a\x00b", ""} {
		f.Name("/d", name, good)
	}
	got, err := found(t, opened(f), FindRequest{Pattern: "*"})
	if !slices.Equal(got, []string{"vda1:/d", "vda1:/d/good", "vda1:/d/sub"}) {
		t.Errorf("found %q", got)
	}
	want := []string{`vda1:/d`, `vda1:/d/".."`, `vda1:/d/"..\x2f..\x2fetc\x2fpasswd"`, `vda1:/d/"a\x00b"`}
	if failed := failuresOf(t, err); !slices.Equal(failed, want) || !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("named are %q, want %q", failed, want)
	}
}

// What a directory hands on while it is being changed under us stays where it is.
func TestChmodDoesNotFollow(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := errors.Join(os.WriteFile(outside, nil, 0o600), os.Symlink(outside, filepath.Join(dir, "x"))); err != nil {
		t.Fatal(err)
	}
	to, err := openTarget(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer to.close()
	if err := chmod(to, "x", -1, 0o777); err == nil {
		t.Error("a link was taken for what was made")
	}
	if info, err := os.Stat(outside); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// A guest cannot fill the screen with one path: of a very long one the beginning and the end are
// said.
func TestMessagesAreShort(t *testing.T) {
	deep := "/top" + strings.Repeat("/d", 2000) + "/bottom"
	err := error(&Incomplete{What: "listed", Failures: []Failure{{deep, errors.New("cause")}}})
	text := err.Error()
	if len(text) > 400 || !strings.Contains(text, "/top/d/d") || !strings.Contains(text, "/d/d/bottom: cause") {
		t.Errorf("%d bytes: %s", len(text), text)
	}
	if got := Short("/etc/motd"); got != "/etc/motd" {
		t.Errorf("a path of ordinary length became %s", got)
	}
}
