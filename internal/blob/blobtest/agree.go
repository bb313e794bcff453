package blobtest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

func (s *subject) testSettle(t *testing.T) {
	if err := s.Settle(s.ctx, "a/b"); !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("settle what is not there: %v, want ErrNotExist", err)
	}
	s.put(t, "a/b", []byte("x"))
	for range 2 {
		if err := s.Settle(s.ctx, "a/b"); err != nil {
			t.Errorf("settle: %v", err)
		}
	}
	if err := s.Settle(s.ctx, "a"); !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("settle a folder: %v, want ErrNotExist", err)
	}
	s.wantContent(t, "a/b", []byte("x"))
}

func (s *subject) testAbsent(t *testing.T) {
	look := func(name string, want bool) {
		t.Helper()
		if got, err := s.Absent(s.ctx, name); err != nil || got != want {
			t.Errorf("%s is absent: %v, %v; want %v", name, got, err, want)
		}
	}
	look("next/a/1", true)
	w := s.begin(t, "next/a/1", []byte("x"))
	look("next/a/1", true)
	if err := w.Commit(s.ctx); err != nil {
		t.Fatal(err)
	}
	look("next/a/1", false)
	look("next/a", true)
	look("next/a/1/x", true)
	look("next/a/2", true)
	if err := s.Delete(s.ctx, "next/a/1"); err != nil {
		t.Fatal(err)
	}
	look("next/a/1", true)
}

func (s *subject) testReadWhole(t *testing.T) {
	s.put(t, "a", content(3, 100))
	s.put(t, "empty", nil)
	for _, tt := range []struct {
		name  string
		limit int
		want  error
	}{
		{"a", 100, nil}, {"a", 1000, nil}, {"a", 99, blob.ErrTooLarge}, {"a", 0, blob.ErrTooLarge},
		{"empty", 0, nil}, {"none", 10, blob.ErrNotExist},
	} {
		got, err := blob.Read(s.ctx, s, tt.name, tt.limit)
		if !errors.Is(err, tt.want) || err == nil && tt.name == "a" && !bytes.Equal(got, content(3, 100)) {
			t.Errorf("read %s of at most %d bytes: %d bytes, %v; want %v", tt.name, tt.limit, len(got), err, tt.want)
		}
	}
}

// Who puts the same bytes again, as after an answer that was lost, gets a definite answer, and
// finds out whose object it is.
func (s *subject) testPutAgain(t *testing.T) {
	mine, others := []byte("mine"), []byte("another's")
	s.put(t, "log/1", mine)
	s.put(t, "log/2", others)
	for _, name := range []string{"log/1", "log/2"} {
		for range 2 {
			if err := blob.Put(s.ctx, s, name, mine); !errors.Is(err, blob.ErrExist) {
				t.Errorf("put %s again: %v, want ErrExist", name, err)
			}
		}
	}
	s.wantContent(t, "log/1", mine)
	s.wantContent(t, "log/2", others)
}

// One goroutine may hold many writers, and commit them in any order.
func (s *subject) testManyWriters(t *testing.T) {
	const writers = 100
	var open []blob.Writer
	for i := range writers {
		open = append(open, s.begin(t, fmt.Sprintf("many/%02d", i), content(uint64(i), 300)))
	}
	for i, w := range slices.Backward(open) {
		if i%3 == 0 {
			w.Abort()
			continue
		}
		if err := w.Commit(s.ctx); err != nil {
			t.Fatalf("commit writer %d of %d: %v", i, writers, err)
		}
	}
	for i := range writers {
		name := fmt.Sprintf("many/%02d", i)
		if i%3 == 0 {
			s.wantAbsent(t, name)
		} else {
			s.wantContent(t, name, content(uint64(i), 300))
		}
	}
}
