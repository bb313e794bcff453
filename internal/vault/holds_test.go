package vault_test

import (
	"context"
	"errors"
	"iter"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// A point that is held stays, also through garbage collection, until all who hold it have released it.
func TestHeldPointStays(t *testing.T) {
	ctx := context.Background()
	_, _, v := memVault(t)
	p := backUpWhole(t, v, randomDisk(7, 1))
	for _, who := range []string{"web in /a", "web in /b", "web in /a"} {
		if err := v.Hold(ctx, p.ID, who); err != nil {
			t.Fatal(err)
		}
	}
	if got := notes(t, v, p.ID, vault.NoteHold); len(got) != 2 {
		t.Errorf("%d notes hold it", len(got))
	}
	for _, release := range []string{"", "web in /none", "web in /a"} {
		if release != "" {
			if err := v.Release(ctx, p.ID, release); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.DeletePoint(ctx, p.ID); !errors.Is(err, vault.ErrHeld) || !strings.Contains(err.Error(), "web in /b") {
			t.Errorf("deleting it: %v", err)
		}
		if _, err := v.CollectGarbage(ctx, vault.GCOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Point(ctx, string(p.ID)); err != nil {
			t.Fatalf("after %q was released: %v", release, err)
		}
	}
	addNote(t, v, p.ID, vault.NoteHold, []byte("not JSON"))
	if err := v.Release(ctx, p.ID, "web in /b"); err != nil {
		t.Fatal(err)
	}
	if err := v.DeletePoint(ctx, p.ID); !errors.Is(err, vault.ErrHeld) {
		t.Errorf("deleting what a later version holds: %v", err)
	}
	if err := v.Release(ctx, p.ID, ""); err != nil {
		t.Fatal(err)
	}
	if err := v.DeletePoint(ctx, p.ID); err != nil {
		t.Fatal(err)
	}
	if err := v.Hold(ctx, p.ID, "late"); !errors.Is(err, vault.ErrNoPoint) {
		t.Errorf("holding what is gone: %v", err)
	}
}

// holdingStore has somebody hold a point in the moment in which another deletes its manifest.
type holdingStore struct {
	blob.Store
	hold  func() // before the first deletion of a manifest
	blind error  // of every listing of notes from then on
	held  bool
}

func (s *holdingStore) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	if s.held && s.blind != nil && strings.HasPrefix(prefix, "notes/") {
		return func(yield func(blob.Info, error) bool) { yield(blob.Info{}, s.blind) }
	}
	return s.Store.List(ctx, prefix, after)
}

func (s *holdingStore) Delete(ctx context.Context, name string) error {
	if hold := s.hold; hold != nil && strings.HasPrefix(name, "points/") {
		s.hold, s.held = nil, true
		hold()
	}
	return s.Store.Delete(ctx, name)
}

// Who holds a point while it is being deleted has it, or is told that it is gone.
func TestHoldWhileDeleted(t *testing.T) {
	ctx := context.Background()
	store, key, v := memVault(t)
	p := backUpWhole(t, v, randomDisk(9, 1))
	s := &holdingStore{Store: store}
	other, err := vault.Open(ctx, s, key, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s.hold = func() {
		if err := v.Hold(ctx, p.ID, "web in /a"); err != nil {
			t.Errorf("the point was there, and is said not to be: %v", err)
		}
	}
	if err := other.DeletePoint(ctx, p.ID); !errors.Is(err, vault.ErrHeld) {
		t.Errorf("deleting what is held by then: %v", err)
	}
	if _, err := v.Point(ctx, string(p.ID)); err != nil {
		t.Errorf("it is not there any more: %v", err)
	}
	if err := v.DeletePoint(ctx, p.ID); !errors.Is(err, vault.ErrHeld) {
		t.Errorf("it is not held any more: %v", err)
	}
}

// Who deletes a point and cannot see whether somebody holds it by then brings it back.
func TestHoldWhileDeletedUnseen(t *testing.T) {
	ctx := context.Background()
	store, key, v := memVault(t)
	p := backUpWhole(t, v, randomDisk(9, 1))
	s := &holdingStore{Store: store, blind: errors.New("the store is away")}
	other, err := vault.Open(ctx, s, key, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s.hold = func() {
		if err := v.Hold(ctx, p.ID, "web in /a"); err != nil {
			t.Error(err)
		}
	}
	if err := other.DeletePoint(ctx, p.ID); !errors.Is(err, s.blind) {
		t.Errorf("deleting it: %v", err)
	}
	if _, err := v.Point(ctx, string(p.ID)); err != nil {
		t.Errorf("the point that is held: %v", err)
	}
}
