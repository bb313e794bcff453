package dir_test

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/durable"
)

// What was only seen may vanish when power fails; what was settled by somebody else stays, with the
// folders that it stands in.
func TestSettledSurvivesCrash(t *testing.T) {
	vanished := false
	for seed := range uint64(50) {
		fsys := durable.NewCrashable(durable.Never)
		writer := onCrashable(t, fsys)
		before := fsys.Calls()
		if err := blob.Put(t.Context(), writer, "x/y/probe", nil); err != nil {
			t.Fatal(err)
		}
		puts := fsys.Calls() - before // the last of which syncs the folder
		fsys = durable.NewCrashable(durable.Never)
		writer = onCrashable(t, fsys)
		fsys.FailAt(fsys.Calls()+puts-1, syscall.EIO)
		if err := blob.Put(t.Context(), writer, "x/y/object", []byte("x")); !errors.Is(err, syscall.EIO) {
			t.Fatalf("put: %v", err)
		}
		reader := dir.On(fsys, root)
		if _, err := blob.Get(t.Context(), reader, "x/y/object"); err != nil {
			t.Fatalf("it has its name: %v", err)
		}
		if _, err := dir.On(fsys.AfterCrash(rand.New(rand.NewPCG(seed, 1))), root).Stat(t.Context(),
			"x/y/object"); errors.Is(err, blob.ErrNotExist) {
			vanished = true
		}
		if err := reader.Settle(t.Context(), "x/y/object"); err != nil {
			t.Fatal(err)
		}
		after := dir.On(fsys.AfterCrash(rand.New(rand.NewPCG(seed, 2))), root)
		if got, err := blob.Get(t.Context(), after, "x/y/object"); string(got) != "x" || err != nil {
			t.Fatalf("seed %d: what was settled reads as %q, %v", seed, got, err)
		}
	}
	if !vanished {
		t.Error("nothing ever vanished that was not settled: the test shows nothing")
	}
}

// repeatedLink is a file system that repeats each link, as if the answer to the first had been
// lost.
type repeatedLink struct{ durable.OS }

func (f repeatedLink) Link(from, to string) error {
	if err := f.OS.Link(from, to); err != nil {
		return err
	}
	return f.OS.Link(from, to)
}

func TestOwnLinkRepeatedIsSuccess(t *testing.T) {
	s := dir.On(repeatedLink{}, t.TempDir())
	defer s.Close()
	if err := blob.Put(t.Context(), s, "log/1", []byte("mine")); err != nil {
		t.Errorf("put whose link was repeated on the way: %v", err)
	}
	if err := blob.Put(t.Context(), s, "log/1", []byte("other")); !errors.Is(err, blob.ErrExist) {
		t.Errorf("put under a name that is another's: %v, want ErrExist", err)
	}
}

// forgetful is a file system whose look-ups still say for a while that a name is not there, as one
// across a network may; directories are read as they are.
type forgetful struct {
	durable.OS
	stale string // the end of a path
}

func (f forgetful) Stat(name string) (durable.Info, error) {
	if strings.HasSuffix(name, f.stale) {
		return durable.Info{}, &fs.PathError{Op: "stat", Path: name, Err: syscall.ENOENT}
	}
	return f.OS.Stat(name)
}

func TestAbsentTrustsNoNegativeEntry(t *testing.T) {
	root := t.TempDir()
	s := dir.On(forgetful{stale: "next/1"}, root)
	defer s.Close()
	other := dir.On(durable.OS{}, root)
	defer other.Close()
	if err := blob.Put(t.Context(), other, "next/1", nil); err != nil {
		t.Fatal(err)
	}
	if absent, err := s.Absent(t.Context(), "next/1"); absent || err != nil {
		t.Errorf("absent: %v, %v; another put it and was told so", absent, err)
	}
}
