package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/durable"
)

// writeBackStep is after how many bytes the kernel is asked to begin writing, so that Commit waits
// for the rest only.
const writeBackStep = 8 << 20

// Create implements [blob.Store].
func (s *Store) Create(ctx context.Context, name string) (blob.Writer, error) {
	if err := check(ctx, name); err != nil {
		return nil, fmt.Errorf("create object: %w", err)
	}
	f, temp, err := durable.CreateTemp(s.fs, s.path(tempDir))
	if errors.Is(err, fs.ErrNotExist) {
		if err = s.mkdir(tempDir); err == nil {
			f, temp, err = durable.CreateTemp(s.fs, s.path(tempDir))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("create object %s: %w", name, noSpace(err))
	}
	return &writer{store: s, name: name, file: f, temp: temp}, nil
}

// mkdir makes a directory below root unless it exists.
func (s *Store) mkdir(dir string) error {
	if err := s.fs.Mkdir(s.path(dir)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// ensureDir makes sure that a directory below root and its parents exist and will after power loss.
func (s *Store) ensureDir(dir string) error {
	if s.isKnown(dir) {
		return nil
	}
	parent := path.Dir(dir)
	if err := s.ensureDir(parent); err != nil {
		return err
	}
	if err := s.mkdir(dir); err != nil {
		return err
	}
	// One sync vouches for all that are in the parent, whoever made them.
	entries, err := s.fs.ReadDir(s.path(parent))
	if err != nil {
		return err
	}
	if err := s.fs.SyncDir(s.path(parent)); err != nil {
		return err
	}
	s.nowKnown(parent, entries)
	return nil
}

// nowKnown notes that the directories among the entries of parent, which was synced after it was
// read, are on disk.
func (s *Store) nowKnown(parent string, entries []durable.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		if e.Dir {
			s.known[path.Join(parent, e.Name)] = true
		}
	}
}

func (s *Store) isKnown(dir string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[dir]
}

// writer is a [blob.Writer]. It passes on what it is given and keeps nothing.
type writer struct {
	store *Store
	name  string
	file  durable.File
	temp  string
	err   error // why nothing more can be done; the file is closed and its temporary name gone

	size    int64 // bytes written
	started int64 // of them, those whose way to the disk was begun
}

var (
	errCommitted = errors.New("already committed")
	errAborted   = errors.New("already aborted")
)

func (w *writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, fmt.Errorf("write object %s: %w", w.name, w.err)
	}
	n, err := w.file.Write(p)
	w.size += int64(n)
	if err != nil {
		w.end(noSpace(err))
		return n, fmt.Errorf("write object %s: %w", w.name, w.err)
	}
	if w.size-w.started >= writeBackStep {
		if f, ok := w.file.(durable.WriteBacker); ok {
			f.StartWriteBack(w.started, w.size-w.started)
		}
		w.started = w.size
	}
	return n, nil
}

func (w *writer) Commit(ctx context.Context) error {
	if w.err == nil {
		err := ctx.Err()
		if err == nil {
			err = w.commit()
		}
		if err == nil {
			w.end(errCommitted)
			return nil
		}
		w.end(err)
	}
	return fmt.Errorf("commit object %s: %w", w.name, w.err)
}

// commit brings the bytes to disk, then the name, in this order.
func (w *writer) commit() error {
	if err := w.file.SetReadOnly(); err != nil {
		return noSpace(err)
	}
	if err := w.file.Sync(); err != nil {
		return noSpace(err)
	}
	dir := path.Dir(w.name)
	if err := w.store.ensureDir(dir); err != nil {
		return noSpace(err)
	}
	err := durable.Publish(w.store.fs, w.temp, w.store.path(w.name))
	taken := errors.Is(err, fs.ErrExist)
	if err != nil && !taken {
		return noSpace(err)
	}
	// Also the one that has the name already may not be on disk yet, and ErrExist says it is.
	// A full disk is no definite answer here: the object has its name.
	if err := w.store.fs.SyncDir(w.store.path(dir)); err != nil {
		return err
	}
	if taken {
		return blob.ErrExist
	}
	return nil
}

func (w *writer) Abort() {
	if w.err == nil {
		w.end(errAborted)
	}
}

// end lets go of the file. What cannot be removed is left to SweepTemp.
func (w *writer) end(err error) {
	w.err = err
	_ = w.file.Close() // first: a network file system keeps what is open
	if err != errCommitted {
		_ = w.store.fs.Remove(w.temp)
	}
}
