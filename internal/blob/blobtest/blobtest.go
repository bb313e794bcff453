// Package blobtest checks that a store keeps the contract of package blob.
//
// Every store passes [Run]. What survives power loss only a store's own tests can show.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// Run checks stores made by open, which returns a new, empty one each time.
func Run(t *testing.T, open func(t *testing.T) blob.Store) {
	for _, test := range []struct {
		name string
		run  func(*subject, *testing.T)
	}{
		{"Names", (*subject).testNames},
		{"VisibleAfterCommit", (*subject).testVisible},
		{"EmptyObject", (*subject).testEmpty},
		{"LargeObject", (*subject).testLarge},
		{"KeepsNoSlice", (*subject).testKeepsNoSlice},
		{"ReadAt", (*subject).testReadAt},
		{"NotExist", (*subject).testNotExist},
		{"Exist", (*subject).testExist},
		{"Abort", (*subject).testAbort},
		{"CommitOnce", (*subject).testCommitOnce},
		{"List", (*subject).testList},
		{"ListStops", (*subject).testListStops},
		{"ListDuringChange", (*subject).testListDuringChange},
		{"ListAfter", (*subject).testListAfter},
		{"Settle", (*subject).testSettle},
		{"Absent", (*subject).testAbsent},
		{"ReadWhole", (*subject).testReadWhole},
		{"PutAgain", (*subject).testPutAgain},
		{"ManyWriters", (*subject).testManyWriters},
		{"Delete", (*subject).testDelete},
		{"NewUnderOldName", (*subject).testNewUnderOldName},
		{"Cancelled", (*subject).testCancelled},
		{"OneCreatorWins", (*subject).testOneCreatorWins},
		{"ConcurrentUse", (*subject).testConcurrentUse},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(&subject{Store: open(t), ctx: t.Context()}, t)
		})
	}
}

// subject is the store being tested.
type subject struct {
	blob.Store
	ctx context.Context
}

func (s *subject) put(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := blob.Put(s.ctx, s, name, data); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

// begin returns a writer that data has been written to.
func (s *subject) begin(t *testing.T, name string, data []byte) blob.Writer {
	t.Helper()
	w, err := s.Create(s.ctx, name)
	if err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	if n, err := w.Write(data); n != len(data) || err != nil {
		t.Fatalf("write %s: %d of %d bytes, %v", name, n, len(data), err)
	}
	return w
}

func (s *subject) wantContent(t *testing.T, name string, want []byte) {
	t.Helper()
	got, err := blob.Get(s.ctx, s, name)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("get %s: %d bytes, %v; want %d bytes", name, len(got), err, len(want))
	}
}

// wantAbsent checks that nothing shows an object of the name.
func (s *subject) wantAbsent(t *testing.T, name string) {
	t.Helper()
	if _, err := s.Stat(s.ctx, name); !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("stat %s: %v, want ErrNotExist", name, err)
	}
	if _, err := s.ReadAt(s.ctx, name, make([]byte, 1), 0); !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("read %s: %v, want ErrNotExist", name, err)
	}
	if names := s.list(t, name); slices.Contains(names, name) {
		t.Errorf("list shows %s", name)
	}
}

// list returns the names that begin with prefix, as listed, and checks the sizes.
func (s *subject) list(t *testing.T, prefix string) []string {
	t.Helper()
	return s.listAfter(t, prefix, "")
}

func (s *subject) listAfter(t *testing.T, prefix, after string) []string {
	t.Helper()
	names := []string{}
	for info, err := range s.List(s.ctx, prefix, after) {
		if err != nil {
			t.Fatalf("list %q: %v", prefix, err)
		}
		if stat, err := s.Stat(s.ctx, info.Name); err != nil || stat != info {
			t.Fatalf("list %q shows %+v, stat %+v, %v", prefix, info, stat, err)
		}
		names = append(names, info.Name)
	}
	alone := []string{}
	for name, err := range blob.Names(s.ctx, s.Store, prefix, after) {
		if err != nil {
			t.Fatalf("names %q: %v", prefix, err)
		}
		alone = append(alone, name)
	}
	if !slices.Equal(alone, names) {
		t.Fatalf("list %q shows %q, without sizes %q", prefix, names, alone)
	}
	return names
}

func content(seed uint64, size int) []byte {
	data := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	rng.Read(data)
	return data
}

func (s *subject) testNames(t *testing.T) {
	for _, name := range []string{
		"a", "0", "packs/ab/abcdef0123", "a.b_c-d", "...", ".hidden", "x/.../y", "tmpx/a", "x/tmp", "y/tmp/a", "-",
		"_/-/.a",
		strings.Repeat("n", 255), strings.Repeat("d/", 127) + "e",
	} {
		s.put(t, name, []byte(name))
		s.wantContent(t, name, []byte(name))
	}
	for _, name := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/../b", "../a", "A", "a b", "a\x00", "a\n", "ä", "a\\b",
		"tmp", "tmp/a",
		strings.Repeat("n", 256), "a:b", "a*", "a+b",
	} {
		if w, err := s.Create(s.ctx, name); err == nil {
			w.Abort()
			t.Errorf("create %q succeeded", name)
		}
		if _, err := s.Stat(s.ctx, name); err == nil {
			t.Errorf("stat %q succeeded", name)
		}
		if _, err := s.ReadAt(s.ctx, name, nil, 0); err == nil {
			t.Errorf("read %q succeeded", name)
		}
		if err := s.Delete(s.ctx, name); err == nil {
			t.Errorf("delete %q succeeded", name)
		}
		if err := s.Settle(s.ctx, name); err == nil {
			t.Errorf("settle %q succeeded", name)
		}
		if _, err := s.Absent(s.ctx, name); err == nil {
			t.Errorf("looking for %q succeeded", name)
		}
	}
}

func (s *subject) testVisible(t *testing.T) {
	want := content(1, 10_000)
	w := s.begin(t, "a/b", want[:4000])
	s.wantAbsent(t, "a/b")
	if _, err := w.Write(want[4000:]); err != nil {
		t.Fatal(err)
	}
	s.wantAbsent(t, "a/b")
	if names := s.list(t, ""); len(names) != 0 {
		t.Errorf("before commit the store lists %q", names)
	}
	if err := w.Commit(s.ctx); err != nil {
		t.Fatal(err)
	}
	w.Abort() // must change nothing
	s.wantContent(t, "a/b", want)
	if info, err := s.Stat(s.ctx, "a/b"); err != nil || info != (blob.Info{Name: "a/b", Size: 10_000}) {
		t.Errorf("stat: %+v, %v", info, err)
	}
}

func (s *subject) testEmpty(t *testing.T) {
	s.put(t, "empty", nil)
	s.wantContent(t, "empty", nil)
	if n, err := s.ReadAt(s.ctx, "empty", make([]byte, 1), 0); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read of an empty object: %d, %v", n, err)
	}
}

func (s *subject) testLarge(t *testing.T) {
	const pieces, size = 9, 1<<20 + 7 // beyond any step at which a store does something special
	w := s.begin(t, "large", nil)
	for i := range pieces {
		if _, err := w.Write(content(uint64(i), size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(s.ctx); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, size)
	for i := range pieces {
		if n, err := s.ReadAt(s.ctx, "large", p, int64(i)*size); n != size || err != nil {
			t.Fatalf("read piece %d: %d, %v", i, n, err)
		}
		if !bytes.Equal(p, content(uint64(i), size)) {
			t.Fatalf("piece %d differs", i)
		}
	}
}

func (s *subject) testKeepsNoSlice(t *testing.T) {
	p := []byte("before")
	w := s.begin(t, "a", p)
	copy(p, "after!")
	if err := w.Commit(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.wantContent(t, "a", []byte("before"))
	got := make([]byte, 6)
	if _, err := s.ReadAt(s.ctx, "a", got, 0); err != nil {
		t.Fatal(err)
	}
	copy(got, "broken")
	s.wantContent(t, "a", []byte("before"))
}

func (s *subject) testReadAt(t *testing.T) {
	data := content(2, 100)
	s.put(t, "a", data)
	for _, tt := range []struct {
		off  int64
		size int
		want []byte
		end  bool // the read ends past the object's end
	}{
		{0, 100, data, false},
		{0, 1, data[:1], false},
		{40, 60, data[40:], false},
		{40, 61, data[40:], true},
		{99, 1, data[99:], false},
		{100, 0, nil, false},
		{100, 1, nil, true},
		{101, 1, nil, true},
		{1 << 40, 1000, nil, true},
		{0, 101, data, true},
		{50, 0, nil, false},
	} {
		p := make([]byte, tt.size)
		n, err := s.ReadAt(s.ctx, "a", p, tt.off)
		if !bytes.Equal(p[:n], tt.want) {
			t.Errorf("%d bytes at %d: got %d, want %d", tt.size, tt.off, n, len(tt.want))
		}
		if tt.end != errors.Is(err, io.ErrUnexpectedEOF) || !tt.end && err != nil {
			t.Errorf("%d bytes at %d: error %v; ends past the end: %v", tt.size, tt.off, err, tt.end)
		}
	}
	if _, err := s.ReadAt(s.ctx, "a", make([]byte, 1), -1); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read at -1: %v", err)
	}
}

func (s *subject) testNotExist(t *testing.T) {
	s.put(t, "a/b/c", []byte("x"))
	for _, name := range []string{"a", "a/b", "a/b/d", "a/b/c/d", "z", "z/z"} {
		s.wantAbsent(t, name)
		if err := s.Delete(s.ctx, name); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	s.wantContent(t, "a/b/c", []byte("x"))
}

func (s *subject) testExist(t *testing.T) {
	early := s.begin(t, "a/b", []byte("early"))
	s.put(t, "a/b", []byte("first"))
	if err := early.Commit(s.ctx); !errors.Is(err, blob.ErrExist) {
		t.Errorf("commit under a name taken meanwhile: %v, want ErrExist", err)
	}
	early.Abort()
	if err := blob.Put(s.ctx, s, "a/b", []byte("second")); !errors.Is(err, blob.ErrExist) {
		t.Errorf("put under a taken name: %v, want ErrExist", err)
	}
	s.wantContent(t, "a/b", []byte("first"))
}

func (s *subject) testAbort(t *testing.T) {
	w := s.begin(t, "a", []byte("x"))
	w.Abort()
	w.Abort()
	s.wantAbsent(t, "a")
	if err := w.Commit(s.ctx); err == nil {
		t.Error("commit after abort succeeded")
	}
	s.wantAbsent(t, "a")
	s.put(t, "a", []byte("y"))
	s.wantContent(t, "a", []byte("y"))
}

func (s *subject) testCommitOnce(t *testing.T) {
	w := s.begin(t, "a", []byte("x"))
	if err := w.Commit(s.ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(s.ctx); err == nil {
		t.Error("second commit succeeded")
	}
	if _, err := w.Write([]byte("more")); err == nil {
		t.Error("write after commit succeeded")
	}
	s.wantContent(t, "a", []byte("x"))
}

func (s *subject) testDelete(t *testing.T) {
	s.put(t, "a/b", []byte("x"))
	s.put(t, "a/c", []byte("y"))
	s.wantContent(t, "a/b", []byte("x")) // and perhaps cached
	for range 2 {
		if err := s.Delete(s.ctx, "a/b"); err != nil {
			t.Fatal(err)
		}
		s.wantAbsent(t, "a/b")
	}
	s.wantContent(t, "a/c", []byte("y"))
}

func (s *subject) testNewUnderOldName(t *testing.T) {
	for i := range uint64(3) {
		want := content(i, 50)
		s.put(t, "a", want)
		s.wantContent(t, "a", want)
		if err := s.Delete(s.ctx, "a"); err != nil {
			t.Fatal(err)
		}
	}
	s.wantAbsent(t, "a")
}

func (s *subject) testCancelled(t *testing.T) {
	s.put(t, "a", []byte("x"))
	w := s.begin(t, "b", []byte("y"))
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	_, createErr := s.Create(ctx, "c")
	_, readErr := s.ReadAt(ctx, "a", make([]byte, 1), 0)
	_, statErr := s.Stat(ctx, "a")
	settleErr := s.Settle(ctx, "a")
	_, absentErr := s.Absent(ctx, "a")
	var listErr error
	for _, err := range s.List(ctx, "", "") {
		listErr = err
	}
	for _, call := range []struct {
		name string
		err  error
	}{
		{"create", createErr}, {"read", readErr}, {"stat", statErr}, {"list", listErr},
		{"settle", settleErr}, {"absent", absentErr},
		{"commit", w.Commit(ctx)}, {"delete", s.Delete(ctx, "a")},
	} {
		if !errors.Is(call.err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", call.name, call.err)
		}
	}
	w.Abort()
	s.wantContent(t, "a", []byte("x"))
	s.wantAbsent(t, "b")
}
