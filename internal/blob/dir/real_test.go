package dir_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/durable"
)

func TestOpenWantsADirectory(t *testing.T) {
	base := t.TempDir()
	if _, err := dir.Open(base + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open nothing: %v", err)
	}
	if err := os.WriteFile(base+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Open(base + "/file"); err == nil {
		t.Error("opened a file")
	}
	if _, err := dir.Create(base + "/file/below"); err == nil {
		t.Error("created a store below a file")
	}
}

func TestFilesAsDocumented(t *testing.T) {
	s := create(t)
	if err := blob.Put(t.Context(), s, "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	w, err := s.Create(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	temps, err := filepath.Glob(filepath.Join(s.Root(), "tmp/hf-*.tmp"))
	if err != nil || len(temps) != 1 {
		t.Fatalf("in tmp: %q, %v", temps, err)
	}
	for path, want := range map[string]fs.FileMode{
		s.Root():               fs.ModeDir | 0o700,
		s.Root() + "/a":        fs.ModeDir | 0o700,
		s.Root() + "/a/b":      0o400,
		filepath.Dir(temps[0]): fs.ModeDir | 0o700,
		temps[0]:               0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
}

func TestListPassesOverStrangers(t *testing.T) {
	s := create(t)
	if err := blob.Put(t.Context(), s, "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lost+found/x", "README", "a/B", "a/b~", "tmp/x"} {
		path := filepath.Join(s.Root(), name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", s.Root()+"/dangling"); err != nil {
		t.Fatal(err)
	}
	for info, err := range s.List(t.Context(), "", "") {
		if err != nil || info.Name != "a/b" {
			t.Errorf("listed %+v, %v", info, err)
		}
	}
}

// Another store on the directory, as another process would have, may delete and make anew what this
// one holds open.
func TestSeesWhatOthersDo(t *testing.T) {
	mine := create(t)
	theirs, err := dir.Open(mine.Root())
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	for _, want := range []string{"one", "two", "three"} {
		if err := blob.Put(t.Context(), theirs, "a", []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := blob.Get(t.Context(), mine, "a"); string(got) != want || err != nil {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
		if err := theirs.Delete(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if _, err := mine.ReadAt(t.Context(), "a", make([]byte, 1), 0); !errors.Is(err, blob.ErrNotExist) {
			t.Errorf("read what another deleted: %v", err)
		}
	}
}

func TestSweepTemp(t *testing.T) {
	s := create(t)
	if n, err := s.SweepTemp(); n != 0 || err != nil {
		t.Errorf("a new store: swept %d, %v", n, err)
	}
	w, err := s.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	dead, _, err := durable.CreateTemp(durable.OS{}, s.Root()+"/tmp")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	if n, err := s.SweepTemp(); n != 1 || err != nil {
		t.Errorf("swept %d, %v; want the one nobody holds", n, err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Errorf("commit after the sweep: %v", err)
	}
}

// Writers go on while others sweep: what is being created is never taken for abandoned.
func TestSweepDuringWrites(t *testing.T) {
	s := create(t)
	stop := make(chan struct{})
	var sweeper, writers sync.WaitGroup
	sweeper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n, err := s.SweepTemp(); err != nil {
				t.Errorf("swept %d: %v", n, err)
				return
			}
		}
	})
	for i := range 4 {
		writers.Go(func() {
			for j := range 25 {
				if err := blob.Put(t.Context(), s, fmt.Sprintf("d/%d-%d", i, j), []byte("x")); err != nil {
					t.Errorf("put while sweeping: %v", err)
					return
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	sweeper.Wait()
}

// Many more objects are read than may be open, and open files do not grow without bound.
func TestFewFilesStayOpen(t *testing.T) {
	s := create(t)
	open := func() (n int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds { // the store's own: what another test left to the garbage collector is closed any time
			if file, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil &&
				strings.HasPrefix(file, s.Root()+"/a/") {
				n++
			}
		}
		return n
	}
	for i := range 100 {
		name := fmt.Sprintf("a/%d", i)
		if err := blob.Put(t.Context(), s, name, []byte(name)); err != nil {
			t.Fatal(err)
		}
		if got, err := blob.Get(t.Context(), s, name); string(got) != name || err != nil {
			t.Fatalf("%s: %q, %v", name, got, err)
		}
	}
	if n := open(); n < 32 || n > 64 {
		t.Errorf("%d files stay open, want some and at most 64", n)
	}
	s.Close()
	if n := open(); n > 0 {
		t.Errorf("%d files stay open after Close", n)
	}
	if got, err := blob.Get(t.Context(), s, "a/1"); string(got) != "a/1" || err != nil {
		t.Errorf("read after Close: %q, %v", got, err)
	}
}

func TestFullDisk(t *testing.T) {
	fsys := durable.NewCrashable(durable.Never)
	s := onCrashable(t, fsys)
	if err := blob.Put(t.Context(), s, "a", []byte("before")); err != nil {
		t.Fatal(err)
	}
	fsys.SetSpace(1000)
	for range 3 { // a failed write gives back what it took
		if err := blob.Put(t.Context(), s, "b", make([]byte, 1001)); !errors.Is(err, blob.ErrNoSpace) {
			t.Errorf("put on a full disk: %v, want ErrNoSpace", err)
		}
	}
	if got, err := blob.Get(t.Context(), s, "a"); string(got) != "before" || err != nil {
		t.Errorf("what was stored before: %q, %v", got, err)
	}
	if err := blob.Put(t.Context(), s, "b", make([]byte, 1000)); err != nil {
		t.Errorf("put what fits: %v", err)
	}
}

func BenchmarkPut64MiB(b *testing.B) {
	s, err := dir.Create(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	buf := make([]byte, 1<<20)
	b.SetBytes(64 << 20)
	for b.Loop() {
		w, err := s.Create(b.Context(), "a")
		if err != nil {
			b.Fatal(err)
		}
		for range 64 {
			if _, err := w.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Commit(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := s.Delete(b.Context(), "a"); err != nil {
			b.Fatal(err)
		}
	}
}
