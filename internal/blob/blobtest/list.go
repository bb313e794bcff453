package blobtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func (s *subject) testList(t *testing.T) {
	if names := s.list(t, ""); len(names) != 0 {
		t.Errorf("an empty store lists %q", names)
	}
	// Names around "/" in the order of bytes: "-" and "." come before it, "0" and "_" after.
	names := []string{
		"a-", "a-b/c", "a.", "a.b", "a/-", "a/b", "a/b-c/d", "a/b.c", "a/c/d", "a/c0", "a0", "a_", "b", "packs/00/1",
		"packs/01/0",
		"packs/0a/2", "packs0", "z/y/x/w/v",
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == "a/b" }) // a folder's neighbour, not its twin
	for _, i := range []int{7, 3, 11, 0, 16, 2, 9, 14, 1, 5, 12, 4, 8, 15, 6, 10, 13} {
		if i < len(names) {
			s.put(t, names[i], []byte(names[i]))
		}
	}
	slices.Sort(names)
	if got := s.list(t, ""); !slices.Equal(got, names) {
		t.Errorf("list:\n got %q\nwant %q", got, names)
	}
	for _, prefix := range []string{
		"a", "a-", "a/", "a/b", "a/b-c/", "packs", "packs/", "packs/0", "packs/00/", "packs/00/1", "packs/00/11", "z",
		"z/y/x", "zz", "c",
		"A", "/", "a//", "..", "a/b-c/d/",
	} {
		want := []string{}
		for _, n := range names {
			if strings.HasPrefix(n, prefix) {
				want = append(want, n)
			}
		}
		if got := s.list(t, prefix); !slices.Equal(got, want) {
			t.Errorf("list %q:\n got %q\nwant %q", prefix, got, want)
		}
	}
}

func (s *subject) testListStops(t *testing.T) {
	for i := range 10 {
		s.put(t, fmt.Sprintf("p/%d", i), nil)
	}
	seen := 0
	for _, err := range s.List(s.ctx, "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if seen++; seen == 3 {
			break
		}
	}
	if seen != 3 {
		t.Errorf("saw %d of 10 before stopping at 3", seen)
	}
	seq := s.List(s.ctx, "p/", "")
	for range 2 { // a sequence can be walked again
		seen = 0
		for range seq {
			seen++
		}
		if seen != 10 {
			t.Errorf("saw %d of 10", seen)
		}
	}
}

// What is there from before the call until after it is listed, whatever else comes and goes
// meanwhile.
func (s *subject) testListDuringChange(t *testing.T) {
	want := []string{}
	for i := range 20 {
		name := fmt.Sprintf("d%d/stays-%02d", i%4, i)
		s.put(t, name, []byte(name))
		want = append(want, name)
		s.put(t, fmt.Sprintf("d%d/goes-%02d", i%4, i), nil)
	}
	slices.Sort(want)
	var got []string
	step := 0
	for info, err := range s.List(s.ctx, "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(info.Name, "/stays-") {
			got = append(got, info.Name)
		}
		if step < 20 {
			if err := s.Delete(s.ctx, fmt.Sprintf("d%d/goes-%02d", step%4, step)); err != nil {
				t.Fatal(err)
			}
			s.put(t, fmt.Sprintf("d%d/comes-%02d", step%4, step), nil)
		}
		step++
	}
	if !slices.Equal(got, want) {
		t.Errorf("list during changes:\n got %q\nwant %q", got, want)
	}
}

func (s *subject) testListAfter(t *testing.T) {
	names := []string{"a", "b-", "b/1", "b/2", "b/c/1", "b/c/2", "b/d", "b0", "c/1"}
	for _, n := range names {
		s.put(t, n, nil)
	}
	for _, prefix := range []string{"", "b", "b/", "b/c/", "c/", "x"} {
		for _, after := range []string{"", "a", "b", "b-", "b/", "b/1", "b/15", "b/c", "b/c/", "b/c/1", "b/c/2", "b/c0",
			"b/d", "b0", "c", "c/1", "z"} {
			want := []string{}
			for _, n := range names {
				if strings.HasPrefix(n, prefix) && n > after {
					want = append(want, n)
				}
			}
			if got := s.listAfter(t, prefix, after); !slices.Equal(got, want) {
				t.Errorf("list %q after %q: %q, want %q", prefix, after, got, want)
			}
		}
	}
}
