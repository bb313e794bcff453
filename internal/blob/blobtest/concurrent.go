package blobtest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

func (s *subject) testOneCreatorWins(t *testing.T) {
	const creators, rounds = 8, 5
	for round := range rounds {
		name := fmt.Sprintf("dir%d/a", round)
		errs := make([]error, creators)
		var wg sync.WaitGroup
		for i := range creators {
			wg.Go(func() { errs[i] = blob.Put(s.ctx, s, name, content(uint64(i), 1000+i)) })
		}
		wg.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Fatalf("%s: both %d and %d won", name, winner, i)
			case err == nil:
				winner = i
			case !errors.Is(err, blob.ErrExist):
				t.Fatalf("%s: creator %d: %v, want ErrExist", name, i, err)
			}
		}
		if winner < 0 {
			t.Fatalf("%s: nobody won", name)
		}
		s.wantContent(t, name, content(uint64(winner), 1000+winner))
	}
}

// Each worker puts, reads, lists and deletes names of its own, and reads one that all share.
func (s *subject) testConcurrentUse(t *testing.T) {
	const workers, rounds = 6, 30 // more objects than a store may keep open
	shared := content(99, 5000)
	s.put(t, "shared/x", shared)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				if err := s.work(w, i, shared); err != nil {
					t.Errorf("worker %d, round %d: %v", w, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got, want := len(s.list(t, "")), 1+workers*rounds/2; got != want {
		t.Errorf("%d objects remain, want %d", got, want)
	}
}

func (s *subject) work(w, i int, shared []byte) error {
	name := fmt.Sprintf("w%d/%02d/o", w, i)
	want := content(uint64(w*1000+i), 100*i)
	if err := blob.Put(s.ctx, s, name, want); err != nil {
		return err
	}
	for n, data := range map[string][]byte{name: want, "shared/x": shared} {
		got, err := blob.Get(s.ctx, s, n)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, data) {
			return fmt.Errorf("%s differs", n)
		}
	}
	for _, err := range s.List(s.ctx, fmt.Sprintf("w%d/", w), "") {
		if err != nil {
			return err
		}
	}
	if i%2 == 1 {
		return s.Delete(s.ctx, name)
	}
	return nil
}
