// Package fault wraps a store and lets its calls fail, for tests.
//
// Calls are counted from 0: Create, Write, Commit, ReadAt, Stat, Settle, Absent, Delete, each step
// of a List and its end. Abort is not counted. A test fails call i for i = 0, 1, 2... until
// [Store.Calls] says that there were no more than i.
package fault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// ErrPowerLost is what every call returns after [Store.DropPower] has struck.
var ErrPowerLost = errors.New("power lost")

// Method is a kind of call.
type Method string

// The kinds of calls.
const (
	Create Method = "create"
	Write  Method = "write"
	Commit Method = "commit"
	ReadAt Method = "read"
	Stat   Method = "stat"
	List   Method = "list"
	Settle Method = "settle"
	Absent Method = "absent"
	Delete Method = "delete"
)

// Store is a [blob.Store] that does what another one does until it is told to fail. It may be told
// so at any time.
type Store struct {
	inner blob.Store

	mu      sync.Mutex
	calls   int
	before  map[int]error // by call: fails without effect
	after   map[int]error // by call: takes effect and fails
	methods map[Method]error
	powerAt int // -1: never
}

// New returns a store that fails no call of inner yet.
func New(inner blob.Store) *Store {
	return &Store{inner: inner, before: map[int]error{}, after: map[int]error{}, methods: map[Method]error{},
		powerAt: -1}
}

// Calls returns how many calls were made.
func (s *Store) Calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// FailCall makes call i return err without having an effect.
func (s *Store) FailCall(i int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before[i] = err
}

// LoseReply makes call i return err although it has taken effect.
func (s *Store) LoseReply(i int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.after[i] = err
}

// FailMethod makes every call of a method return err without having an effect; a nil err ends that.
func (s *Store) FailMethod(m Method, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.methods[m] = err
}

// DropPower makes call i and all later ones return [ErrPowerLost] without having an effect.
func (s *Store) DropPower(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.powerAt = i
}

// call counts a call and does it unless it is to fail.
func (s *Store) call(m Method, do func() error) error {
	before, after := s.verdict(m)
	if before != nil {
		return before
	}
	if err := do(); err != nil {
		return err
	}
	return after
}

func (s *Store) verdict(m Method) (before, after error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.calls
	s.calls++
	err := s.before[i]
	switch {
	case s.powerAt >= 0 && i >= s.powerAt:
		err = ErrPowerLost
	case err == nil:
		err = s.methods[m]
	}
	if err != nil {
		return fmt.Errorf("%s, call %d: %w", m, i, err), nil
	}
	if err := s.after[i]; err != nil {
		return nil, fmt.Errorf("%s, reply to call %d: %w", m, i, err)
	}
	return nil, nil
}

// Create implements [blob.Store].
func (s *Store) Create(ctx context.Context, name string) (w blob.Writer, err error) {
	err = s.call(Create, func() error {
		w, err = s.inner.Create(ctx, name)
		return err
	})
	if err != nil {
		if w != nil {
			w.Abort()
		}
		return nil, err
	}
	return &writer{store: s, inner: w}, nil
}

// ReadAt implements [blob.Store].
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, off int64) (n int, err error) {
	err = s.call(ReadAt, func() error {
		n, err = s.inner.ReadAt(ctx, name, p, off)
		return err
	})
	return n, err
}

// Stat implements [blob.Store].
func (s *Store) Stat(ctx context.Context, name string) (info blob.Info, err error) {
	err = s.call(Stat, func() error {
		info, err = s.inner.Stat(ctx, name)
		return err
	})
	return info, err
}

// List implements [blob.Store].
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		for info, err := range s.inner.List(ctx, prefix, after) {
			err = s.call(List, func() error { return err })
			if !yield(info, err) || err != nil {
				return
			}
		}
		if err := s.call(List, func() error { return nil }); err != nil {
			yield(blob.Info{}, err)
		}
	}
}

// Settle implements [blob.Store].
func (s *Store) Settle(ctx context.Context, name string) error {
	return s.call(Settle, func() error { return s.inner.Settle(ctx, name) })
}

// Absent implements [blob.Store].
func (s *Store) Absent(ctx context.Context, name string) (absent bool, err error) {
	err = s.call(Absent, func() error {
		absent, err = s.inner.Absent(ctx, name)
		return err
	})
	return absent && err == nil, err
}

// Delete implements [blob.Store].
func (s *Store) Delete(ctx context.Context, name string) error {
	return s.call(Delete, func() error { return s.inner.Delete(ctx, name) })
}

type writer struct {
	store *Store
	inner blob.Writer
	ended bool // a Commit was tried; the writer is good for Abort only
}

func (w *writer) Write(p []byte) (n int, err error) {
	err = w.store.call(Write, func() error {
		n, err = w.inner.Write(p)
		return err
	})
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}

func (w *writer) Commit(ctx context.Context) error {
	if w.ended {
		return errors.New("commit object: writer has ended")
	}
	w.ended = true
	return w.store.call(Commit, func() error { return w.inner.Commit(ctx) })
}

func (w *writer) Abort() { w.inner.Abort() }
