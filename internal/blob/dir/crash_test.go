package dir_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/durable"
)

// session does random work on a store and knows what may be found there: per name the possible
// contents, nil being none. Exactly one is possible unless a call on the name failed.
type session struct {
	store    *dir.Store
	rng      *rand.Rand
	possible map[string][][]byte
}

var names = []string{"config", "a/1", "a/2", "a/b/1", "c/1", "d/e/f/1"}

// run does n operations and returns the first error.
func (s *session) run(ctx context.Context, n int) error {
	for range n {
		if err := s.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) step(ctx context.Context) error {
	name := names[s.rng.IntN(len(names))]
	switch s.rng.IntN(8) {
	case 0, 1:
		return s.delete(ctx, name)
	case 2:
		return s.begin(ctx, name, func(w blob.Writer) error {
			w.Abort()
			return nil
		})
	default:
		return s.put(ctx, name)
	}
}

func (s *session) put(ctx context.Context, name string) error {
	var data []byte
	err := s.begin(ctx, name, func(w blob.Writer) error {
		data = make([]byte, s.rng.IntN(3)*3000)
		for i := range data {
			data[i] = byte(s.rng.Uint32() | 1) // never zero, as lost blocks are
		}
		for part := range slices.Chunk(data, 2000) {
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
		err := w.Commit(ctx)
		switch {
		case err == nil:
			s.possible[name] = [][]byte{data}
		case errors.Is(err, blob.ErrExist):
			// It is there, and for good.
			s.possible[name] = slices.DeleteFunc(s.possible[name], func(p []byte) bool { return p == nil })
			return nil
		case s.mayBeAbsent(name):
			s.possible[name] = append(s.possible[name], data)
		}
		return err
	})
	return err
}

func (s *session) mayBeAbsent(name string) bool {
	return slices.ContainsFunc(s.possible[name], func(p []byte) bool { return p == nil })
}

func (s *session) begin(ctx context.Context, name string, do func(blob.Writer) error) error {
	w, err := s.store.Create(ctx, name)
	if err != nil {
		return err
	}
	defer w.Abort()
	return do(w)
}

func (s *session) delete(ctx context.Context, name string) error {
	err := s.store.Delete(ctx, name)
	if err == nil {
		s.possible[name] = nil
	}
	s.possible[name] = append(s.possible[name], nil)
	return err
}

func newSession(store *dir.Store, rng *rand.Rand) *session {
	s := &session{store: store, rng: rng, possible: map[string][][]byte{}}
	for _, name := range names {
		s.possible[name] = [][]byte{nil}
	}
	return s
}

// check compares a store with what is possible and returns what was found, as the only possibility.
func (s *session) check(ctx context.Context, store *dir.Store) (map[string][][]byte, error) {
	found := map[string][][]byte{}
	for _, name := range names {
		got, err := blob.Get(ctx, store, name)
		if errors.Is(err, blob.ErrNotExist) {
			got, err = nil, nil
		} else if err == nil && got == nil {
			got = []byte{}
		}
		if err != nil {
			return nil, err
		}
		same := func(p []byte) bool { return bytes.Equal(p, got) && (p == nil) == (got == nil) }
		if !slices.ContainsFunc(s.possible[name], same) {
			return nil, fmt.Errorf("%s holds %d bytes (none: %v), which is none of the %d possible contents",
				name, len(got), got == nil, len(s.possible[name]))
		}
		found[name] = [][]byte{got}
	}
	return found, checkList(ctx, store, found)
}

// checkList checks that List shows exactly what was found.
func checkList(ctx context.Context, store *dir.Store, found map[string][][]byte) error {
	var listed, want []string
	for info, err := range store.List(ctx, "", "") {
		if err != nil {
			return err
		}
		listed = append(listed, info.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if found[name][0] != nil {
			want = append(want, name)
		}
	}
	if !slices.Equal(listed, want) {
		return fmt.Errorf("listed %q, want %q", listed, want)
	}
	return nil
}

// Whatever was written and wherever the power failed: what was acknowledged is there, whole; what
// was deleted stays away; what was neither is whole or not there; and the store goes on, until the
// next crash.
func TestSurvivesCrashAtEveryCall(t *testing.T) {
	for seed := range uint64(4) {
		crashed := true
		for n := 0; crashed; n++ {
			crashed = crashAt(t, seed, n)
		}
	}
}

// crashAt runs the session of a seed, with power failing at call n, and reports whether it came to
// that.
func crashAt(t *testing.T, seed uint64, n int) bool {
	t.Helper()
	fsys := durable.NewCrashable(durable.Never)
	if seed%2 == 1 {
		fsys.DenyLinks()
	}
	store := onCrashable(t, fsys)
	fsys.CrashAt(fsys.Calls() + n)
	s := newSession(store, rand.New(rand.NewPCG(seed, 0)))
	err := s.run(t.Context(), 25)
	if err != nil && !errors.Is(err, durable.ErrPowerLost) {
		t.Fatalf("seed %d, crash at %d: %v", seed, n, err)
	}
	for variant := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed<<32|uint64(n), variant))
		if err := recoverTwice(t.Context(), s, fsys, rng); err != nil {
			t.Fatalf("seed %d, crash at %d, variant %d: %v", seed, n, variant, err)
		}
	}
	return err != nil
}

// recoverTwice opens the store after a crash, checks it, works on, crashes again and checks again.
func recoverTwice(ctx context.Context, before *session, fsys *durable.Crashable, rng *rand.Rand) error {
	after := fsys.AfterCrash(rng)
	s := newSession(dir.On(after, root), rng)
	var err error
	if s.possible, err = before.check(ctx, s.store); err != nil {
		return err
	}
	if _, err := s.store.SweepTemp(); err != nil {
		return err
	}
	if left, err := after.ReadDir(root + "/tmp"); len(left) > 0 {
		return fmt.Errorf("after a sweep tmp holds %v, %v", left, err)
	}
	after.CrashAt(after.Calls() + rng.IntN(60))
	if err := s.run(ctx, 10); err != nil && !errors.Is(err, durable.ErrPowerLost) {
		return fmt.Errorf("after the crash: %w", err)
	}
	if _, err := s.check(ctx, dir.On(after.AfterCrash(rng), root)); err != nil {
		return fmt.Errorf("after a second crash: %w", err)
	}
	return nil
}

// Wherever a writer is killed, what the next process is shown by a list, or told that it exists, is
// there after power loss, though it was not the one who wrote it.
func TestSurvivesPowerLossAfterKillAtEveryCall(t *testing.T) {
	for seed := range uint64(4) {
		killed := true
		for n := 0; killed; n++ {
			fsys := durable.NewCrashable(durable.Never)
			if seed%2 == 1 {
				fsys.DenyLinks()
			}
			s := newSession(onCrashable(t, fsys), rand.New(rand.NewPCG(seed, 2)))
			fsys.CrashAt(fsys.Calls() + n)
			err := s.run(t.Context(), 25)
			if killed = err != nil; killed && !errors.Is(err, durable.ErrPowerLost) {
				t.Fatalf("seed %d, killed at %d: %v", seed, n, err)
			}
			fsys.Restart()
			next := newSession(dir.On(fsys, root), s.rng)
			if next.possible, err = s.check(t.Context(), next.store); err == nil {
				err = next.run(t.Context(), n%4)
			}
			if err != nil {
				t.Fatalf("seed %d, after a kill at %d: %v", seed, n, err)
			}
			rng := rand.New(rand.NewPCG(seed, uint64(n)))
			if _, err := next.check(t.Context(), dir.On(fsys.AfterCrash(rng), root)); err != nil {
				t.Fatalf("seed %d, killed at %d, after power loss: %v", seed, n, err)
			}
		}
	}
}

// Whichever call fails: the error is reported, nothing acknowledged is hurt, and the store goes on.
// What was listed then, acknowledged or not, is what a crash leaves.
func TestFaultAtEveryCall(t *testing.T) {
	for seed := range uint64(4) {
		for n := 0; ; n++ {
			fsys := durable.NewCrashable(durable.Never)
			store := onCrashable(t, fsys)
			at := fsys.Calls() + n
			fsys.FailAt(at, syscall.EIO)
			s := newSession(store, rand.New(rand.NewPCG(seed, 1)))
			for range 25 {
				if err := s.step(t.Context()); err != nil && !errors.Is(err, syscall.EIO) {
					t.Fatalf("seed %d, fault at %d: %v", seed, n, err)
				}
			}
			done := fsys.Calls() <= at
			fsys.FailAt(durable.Never, nil)
			var err error
			if s.possible, err = s.check(t.Context(), store); err != nil {
				t.Fatalf("seed %d, fault at %d: %v", seed, n, err)
			}
			rng := rand.New(rand.NewPCG(seed, uint64(n)))
			if _, err := s.check(t.Context(), dir.On(fsys.AfterCrash(rng), root)); err != nil {
				t.Fatalf("seed %d, fault at %d, after a crash: %v", seed, n, err)
			}
			if done {
				break
			}
		}
	}
}
