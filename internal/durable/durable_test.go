package durable_test

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/durable"
)

// both runs a test on the real file system and on the one in memory: they answer alike.
func both(t *testing.T, test func(t *testing.T, fsys durable.FS, dir string)) {
	t.Run("OS", func(t *testing.T) { test(t, durable.OS{}, t.TempDir()) })
	t.Run("Crashable", func(t *testing.T) {
		fsys := durable.NewCrashable(durable.Never)
		must(t, fsys.Mkdir("/dir"))
		test(t, fsys, "/dir")
	})
}

func TestErrors(t *testing.T) {
	both(t, func(t *testing.T, fsys durable.FS, dir string) {
		at := func(name string) string { return filepath.Join(dir, name) }
		must(t, write(t, fsys, at("file"), []byte("x")).Close())
		must(t, fsys.Mkdir(at("sub")))
		_, createErr := fsys.Create(at("file"))
		_, missingErr := fsys.Create(at("none/file"))
		_, openErr := fsys.Open(at("none"))
		_, dirErr := fsys.Open(at("sub"))
		_, belowErr := fsys.Stat(at("file/x"))
		_, listErr := fsys.ReadDir(at("none"))
		for _, call := range []struct {
			name string
			err  error
			want error
		}{
			{"create taken", createErr, fs.ErrExist},
			{"create in nothing", missingErr, fs.ErrNotExist},
			{"open nothing", openErr, fs.ErrNotExist},
			{"open folder", dirErr, syscall.EISDIR},
			{"stat below a file", belowErr, syscall.ENOTDIR},
			{"list nothing", listErr, fs.ErrNotExist},
			{"mkdir taken", fsys.Mkdir(at("sub")), fs.ErrExist},
			{"link taken", fsys.Link(at("file"), at("sub")), fs.ErrExist},
			{"link nothing", fsys.Link(at("none"), at("x")), fs.ErrNotExist},
			{"rename taken", fsys.RenameNew(at("file"), at("sub")), fs.ErrExist},
			{"rename nothing", fsys.RenameNew(at("none"), at("x")), fs.ErrNotExist},
			{"remove nothing", fsys.Remove(at("none")), fs.ErrNotExist},
			{"remove folder", fsys.Remove(at("sub")), syscall.EISDIR},
			{"sync nothing", fsys.SyncDir(at("none")), fs.ErrNotExist},
		} {
			if !errors.Is(call.err, call.want) {
				t.Errorf("%s: %v, want %v", call.name, call.err, call.want)
			}
		}
	})
}

func TestNamesOfAFile(t *testing.T) {
	both(t, func(t *testing.T, fsys durable.FS, dir string) {
		at := func(name string) string { return filepath.Join(dir, name) }
		f := write(t, fsys, at("a"), []byte("abc"))
		must(t, f.SetReadOnly())
		must(t, f.Sync())
		must(t, f.Close())
		r, err := fsys.Open(at("a"))
		must(t, err)
		defer r.Close()
		wantLinks := func(want int) {
			t.Helper()
			if info, err := r.Stat(); err != nil || info != (durable.Info{Size: 3, Links: want}) {
				t.Errorf("stat: %+v, %v; want %d links", info, err, want)
			}
		}
		wantLinks(1)
		must(t, fsys.Link(at("a"), at("b")))
		wantLinks(2)
		must(t, fsys.Remove(at("a")))
		must(t, fsys.RenameNew(at("b"), at("c")))
		wantLinks(1)
		must(t, write(t, fsys, at("d"), []byte("new")).Close())
		must(t, fsys.Replace(at("d"), at("c")))
		wantLinks(0)
		if got := read(t, fsys, at("c")); got != "new" {
			t.Errorf("c holds %q", got)
		}
		if entries, err := fsys.ReadDir(dir); err != nil || !slices.Equal(entries, []durable.Entry{{Name: "c"}}) {
			t.Errorf("folder holds %v, %v", entries, err)
		}
	})
}

func TestSweepLeavesWhatIsHeld(t *testing.T) {
	both(t, func(t *testing.T, fsys durable.FS, dir string) {
		held, heldName, err := durable.CreateTemp(fsys, dir)
		must(t, err)
		left, _, err := durable.CreateTemp(fsys, dir)
		must(t, err)
		must(t, left.SetReadOnly())
		must(t, left.Close())
		must(t, write(t, fsys, filepath.Join(dir, "another"), nil).Close())
		if n, err := durable.Sweep(fsys, dir); n != 1 || err != nil {
			t.Errorf("swept %d, %v; want the one that was left", n, err)
		}
		if _, err := fsys.Stat(heldName); err != nil {
			t.Errorf("the held file: %v", err)
		}
		must(t, held.Close())
		if n, err := durable.Sweep(fsys, dir); n != 1 || err != nil {
			t.Errorf("swept %d, %v; want the one no longer held", n, err)
		}
		if entries, err := fsys.ReadDir(dir); err != nil || len(entries) != 1 || entries[0].Name != "another" {
			t.Errorf("folder holds %v, %v", entries, err)
		}
	})
}

// A file held by another process stays as long as that process lives.
func TestSweepAndAnotherProcess(t *testing.T) {
	if dir := os.Getenv("HOLDFAST_TEST_HOLD"); dir != "" {
		_, _, err := durable.CreateTemp(durable.OS{}, dir)
		must(t, err)
		os.Stdout.WriteString("held\n")
		os.Stdin.Read(make([]byte, 1)) // until killed
		return
	}
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestSweepAndAnotherProcess$")
	child.Env = append(os.Environ(), "HOLDFAST_TEST_HOLD="+dir)
	stdin, err := child.StdinPipe()
	must(t, err)
	defer stdin.Close()
	stdout, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	if n, err := stdout.Read(make([]byte, 5)); n == 0 {
		t.Errorf("child said nothing: %v", err)
	}
	if n, err := durable.Sweep(durable.OS{}, dir); n != 0 || err != nil {
		t.Errorf("while its owner lives: swept %d, %v", n, err)
	}
	must(t, child.Process.Kill())
	_ = child.Wait() // it was killed
	if n, err := durable.Sweep(durable.OS{}, dir); n != 1 || err != nil {
		t.Errorf("after its owner died: swept %d, %v", n, err)
	}
}

func TestWriteFiles(t *testing.T) {
	both(t, func(t *testing.T, fsys durable.FS, dir string) {
		name := filepath.Join(dir, "x/y/file")
		must(t, durable.MkdirAll(fsys, filepath.Dir(name)))
		must(t, durable.MkdirAll(fsys, filepath.Dir(name)))
		must(t, durable.WriteNew(fsys, name, []byte("1")))
		if err := durable.WriteNew(fsys, name, []byte("2")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("write new over a file: %v", err)
		}
		if got := read(t, fsys, name); got != "1" {
			t.Errorf("file holds %q", got)
		}
		must(t, durable.WriteReplace(fsys, name, []byte("3")))
		if got := read(t, fsys, name); got != "3" {
			t.Errorf("file holds %q", got)
		}
		if entries, err := fsys.ReadDir(filepath.Dir(name)); err != nil || len(entries) != 1 {
			t.Errorf("folder holds %v, %v", entries, err)
		}
		if err := durable.MkdirAll(fsys, name+"/below"); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("mkdir below a file: %v", err)
		}
	})
}

// Wherever power fails, the file is the old one or the new one, and what was acknowledged is there.
func TestWriteFilesSurviveCrash(t *testing.T) {
	crashed := true
	for n := 0; crashed; n++ {
		c := durable.NewCrashable(n)
		acked := "absent"
		steps := []func() error{
			func() error { return durable.MkdirAll(c, "/x/y") },
			func() error { return durable.WriteNew(c, "/x/y/f", []byte("1")) },
			func() error { return durable.WriteReplace(c, "/x/y/f", []byte("22")) },
			func() error { return durable.WriteReplace(c, "/x/y/f", []byte("333")) },
		}
		values := []string{"absent", "1", "22", "333"}
		next := acked
		crashed = false
		for i, step := range steps {
			next = values[i]
			if err := step(); err != nil {
				crashed = true
				break
			}
			acked = values[i]
		}
		for seed := range uint64(20) {
			after := c.AfterCrash(rand.New(rand.NewPCG(uint64(n), seed)))
			if got := read(t, after, "/x/y/f"); got != acked && got != next {
				t.Fatalf("crash at %d, seed %d: found %q, acknowledged %q, begun %q", n, seed, got, acked, next)
			}
		}
	}
}

// Wherever a call fails, an error is reported, the file is the old one or the new one, and no other
// file stays.
func TestWriteFileFaults(t *testing.T) {
	for n := 0; ; n++ {
		c := durable.NewCrashable(durable.Never)
		must(t, durable.WriteNew(c, "/f", []byte("old")))
		before := c.Calls()
		c.FailAt(before+n, syscall.EIO)
		err := durable.WriteReplace(c, "/f", []byte("new"))
		if c.Calls() <= before+n {
			must(t, err)
			return
		}
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("call %d failed: %v", n, err)
		}
		if got := read(t, c, "/f"); got != "old" && got != "new" {
			t.Errorf("call %d failed: file holds %q", n, got)
		}
		if entries, err := c.ReadDir("/"); err != nil || len(entries) != 1 {
			t.Errorf("call %d failed: folder holds %v, %v", n, entries, err)
		}
	}
}
