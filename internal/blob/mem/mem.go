// Package mem keeps objects in memory, for tests.
//
// It keeps the contract of package blob except for power loss: nothing outlives the Store. Objects
// can be damaged with [Store.Corrupt].
package mem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// Store is a [blob.Store].
type Store struct {
	mu      sync.Mutex
	objects map[string][]byte // never changed in place
}

// New returns an empty store.
func New() *Store { return &Store{objects: map[string][]byte{}} }

// Corrupt replaces an object's bytes by what change returns for a copy of them, or returns
// blob.ErrNotExist.
func (s *Store) Corrupt(name string, change func([]byte) []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.objects[name]
	if !ok {
		return fmt.Errorf("corrupt object %s: %w", name, blob.ErrNotExist)
	}
	s.objects[name] = change(slices.Clone(data))
	return nil
}

// Create implements [blob.Store].
func (s *Store) Create(ctx context.Context, name string) (blob.Writer, error) {
	if err := check(ctx, name); err != nil {
		return nil, fmt.Errorf("create object: %w", err)
	}
	return &writer{store: s, name: name}, nil
}

// ReadAt implements [blob.Store].
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	data, err := s.get(ctx, name)
	if err == nil && off < 0 {
		err = fmt.Errorf("offset %d is negative", off)
	}
	if err != nil {
		return 0, fmt.Errorf("read object %s: %w", name, err)
	}
	n := copy(p, data[min(off, int64(len(data))):])
	if n < len(p) {
		return n, fmt.Errorf("read object %s: %d bytes at %d of %d: %w", name, len(p), off, len(data),
			io.ErrUnexpectedEOF)
	}
	return n, nil
}

// Stat implements [blob.Store].
func (s *Store) Stat(ctx context.Context, name string) (blob.Info, error) {
	data, err := s.get(ctx, name)
	if err != nil {
		return blob.Info{}, fmt.Errorf("stat object %s: %w", name, err)
	}
	return blob.Info{Name: name, Size: int64(len(data))}, nil
}

func (s *Store) get(ctx context.Context, name string) ([]byte, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.objects[name]
	if !ok {
		return nil, blob.ErrNotExist
	}
	return data, nil
}

// List implements [blob.Store].
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		for _, name := range s.names(prefix, after) {
			info, err := s.Stat(ctx, name)
			if errors.Is(err, blob.ErrNotExist) {
				continue
			}
			if !yield(info, err) || err != nil {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(blob.Info{}, fmt.Errorf("list objects: %w", err))
		}
	}
}

func (s *Store) names(prefix, after string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := slices.Sorted(maps.Keys(s.objects))
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, prefix) || n <= after })
}

// Settle implements [blob.Store].
func (s *Store) Settle(ctx context.Context, name string) error {
	if _, err := s.get(ctx, name); err != nil {
		return fmt.Errorf("settle object %s: %w", name, err)
	}
	return nil
}

// Absent implements [blob.Store].
func (s *Store) Absent(ctx context.Context, name string) (bool, error) {
	_, err := s.get(ctx, name)
	if errors.Is(err, blob.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for object %s: %w", name, err)
	}
	return false, nil
}

// Delete implements [blob.Store].
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := check(ctx, name); err != nil {
		return fmt.Errorf("delete object %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, name)
	return nil
}

func check(ctx context.Context, name string) error {
	if err := blob.ValidName(name); err != nil {
		return err
	}
	return ctx.Err()
}

type writer struct {
	store *Store
	name  string
	data  []byte
	ended bool
}

func (w *writer) Write(p []byte) (int, error) {
	if w.ended {
		return 0, fmt.Errorf("write object %s: writer has ended", w.name)
	}
	w.data = append(w.data, p...)
	return len(p), nil
}

func (w *writer) Commit(ctx context.Context) error {
	if w.ended {
		return fmt.Errorf("commit object %s: writer has ended", w.name)
	}
	w.ended = true
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("commit object %s: %w", w.name, err)
	}
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	if _, taken := w.store.objects[w.name]; taken {
		return fmt.Errorf("commit object %s: %w", w.name, blob.ErrExist)
	}
	w.store.objects[w.name] = w.data
	return nil
}

func (w *writer) Abort() { w.ended, w.data = true, nil }
