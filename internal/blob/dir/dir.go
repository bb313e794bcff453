// Package dir keeps objects as files below one directory.
//
// An object's name is its path. docs/formats/store-directory.md has the layout. An object becomes
// visible by getting its name, after its bytes are on disk; so whatever has a name is whole, also
// after power loss. Several processes, on several hosts if the file system is shared, may use one
// directory at once.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/durable"
)

// tempDir holds what is being written. blob.ValidName keeps objects out of it.
const tempDir = "tmp"

// Store is a [blob.Store]. Close it to let go of the files it keeps open.
type Store struct {
	fs    durable.FS
	root  string
	files *openFiles

	mu    sync.Mutex
	known map[string]bool // directories below root whose names are on disk
}

// Create makes the directory and the parents it lacks, durably, and opens it. It may exist already.
func Create(path string) (*Store, error) {
	root, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("create store %s: %w", path, err)
	}
	if err := durable.MkdirAll(durable.OS{}, root); err != nil {
		return nil, fmt.Errorf("create store %s: %w", path, noSpace(err))
	}
	return Open(root)
}

// Open opens a store in a directory that exists; if there is none the error matches fs.ErrNotExist.
// Nothing is written until the first object is.
func Open(path string) (*Store, error) {
	root, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	info, err := durable.OS{}.Stat(root)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if !info.Dir {
		return nil, fmt.Errorf("open store %s: %w", path, syscall.ENOTDIR)
	}
	return On(durable.OS{}, root), nil
}

// On returns a store in the directory root of a file system.
func On(fsys durable.FS, root string) *Store {
	return &Store{fs: fsys, root: root, files: newOpenFiles(fsys), known: map[string]bool{".": true}}
}

// Root returns the absolute path of the directory.
func (s *Store) Root() string { return s.root }

// ReadOnly reports whether this process may not write into the directory.
func (s *Store) ReadOnly() bool { return unix.Access(s.root, unix.W_OK) != nil }

// Close closes the files that are kept open for reading. Calls that are under way end as if it had
// not happened.
func (s *Store) Close() error {
	s.files.close()
	return nil
}

// SweepTemp removes what writers left behind that died before Commit, and returns how many files
// that were. Those of living writers, in whichever process, stay.
func (s *Store) SweepTemp() (int, error) {
	n, err := durable.Sweep(s.fs, s.path(tempDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return n, fmt.Errorf("sweep store %s: %w", s.root, err)
	}
	return n, nil
}

func (s *Store) path(name string) string { return filepath.Join(s.root, name) }

// ReadAt implements [blob.Store].
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := check(ctx, name); err != nil {
		return 0, fmt.Errorf("read object %s: %w", name, err)
	}
	if off < 0 {
		return 0, fmt.Errorf("read object %s: offset %d is negative", name, off)
	}
	n, err := s.readAt(s.path(name), p, off)
	if errors.Is(err, syscall.ESTALE) {
		// Another client has removed the file while it was kept open here, and may have put another
		// in its place.
		s.files.drop(s.path(name))
		n, err = s.readAt(s.path(name), p, off)
	}
	if err != nil {
		return n, fmt.Errorf("read object %s: %w", name, notExist(err))
	}
	return n, nil
}

func (s *Store) readAt(path string, p []byte, off int64) (int, error) {
	f, err := s.files.acquire(path)
	if err != nil {
		return 0, err
	}
	defer s.files.release(f)
	n, err := f.reader.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == io.EOF {
		err = fmt.Errorf("%d bytes at %d, found %d: %w", len(p), off, n, io.ErrUnexpectedEOF)
	}
	return n, err
}

// Stat implements [blob.Store].
func (s *Store) Stat(ctx context.Context, name string) (blob.Info, error) {
	if err := check(ctx, name); err != nil {
		return blob.Info{}, fmt.Errorf("stat object %s: %w", name, err)
	}
	info, err := s.fs.Stat(s.path(name))
	if err == nil && info.Dir {
		err = syscall.EISDIR
	}
	if err != nil {
		return blob.Info{}, fmt.Errorf("stat object %s: %w", name, notExist(err))
	}
	return blob.Info{Name: name, Size: info.Size}, nil
}

// Settle implements [blob.Store]. It syncs the folder that holds the object, and the folders above
// that are not known to be on disk; on a read-only file system nobody is committing.
func (s *Store) Settle(ctx context.Context, name string) error {
	if _, err := s.Stat(ctx, name); err != nil {
		absent := true
		if errors.Is(err, blob.ErrNotExist) {
			absent, err = s.Absent(ctx, name)
		}
		if err == nil && absent {
			err = blob.ErrNotExist
		}
		if err != nil {
			return fmt.Errorf("settle object %s: %w", name, err)
		}
	}
	dir := path.Dir(name)
	err := s.ensureDir(dir)
	if err == nil {
		err = s.fs.SyncDir(s.path(dir))
	}
	if err != nil && !errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("settle object %s: %w", name, err)
	}
	return nil
}

// Absent implements [blob.Store]. Only what is opened a network file system asks its server about:
// an object is there if it can be opened, and absent if the list of its folder, or of the folder in
// which that one is missing, says so. A look-up that finds nothing may come from a cache, also when
// it was on the way to the folder.
func (s *Store) Absent(ctx context.Context, name string) (bool, error) {
	if err := check(ctx, name); err != nil {
		return false, fmt.Errorf("look for object %s: %w", name, err)
	}
	f, err := s.fs.Open(s.path(name))
	if err == nil {
		return false, f.Close()
	}
	if err = notExist(err); !errors.Is(err, blob.ErrNotExist) {
		return false, fmt.Errorf("look for object %s: %w", name, err)
	}
	kind, err := s.listed(name)
	if err != nil {
		return false, fmt.Errorf("look for object %s: %w", name, err)
	}
	return kind != isFile, nil
}

// listedAs is what has a name, as the list of its folder says.
type listedAs int

const (
	isNothing listedAs = iota
	isFile
	isFolder
)

// errNotSettled reports a folder that its parent lists and that cannot be opened.
var errNotSettled = errors.New("the file system lists a folder that it does not find; it may in a while")

// listed looks for a name in the list of its folder; where that cannot be opened, in the one above
// whether it is there at all.
func (s *Store) listed(name string) (listedAs, error) {
	dir := path.Dir(name)
	entries, err := s.fs.ReadDir(s.path(dir))
	if err = notExist(err); errors.Is(err, blob.ErrNotExist) && dir != "." {
		kind, above := s.listed(dir)
		if above != nil || kind != isFolder {
			return isNothing, above
		}
		// The list of the folder above is new, and with it what is known of the names in it.
		if entries, err = s.fs.ReadDir(s.path(dir)); errors.Is(err, fs.ErrNotExist) {
			return isNothing, errNotSettled
		}
	}
	if err != nil {
		return isNothing, err
	}
	for _, e := range entries {
		switch {
		case e.Name != path.Base(name):
		case e.Dir:
			return isFolder, nil
		default:
			return isFile, nil
		}
	}
	return isNothing, nil
}

// Delete implements [blob.Store].
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := check(ctx, name); err != nil {
		return fmt.Errorf("delete object %s: %w", name, err)
	}
	s.files.drop(s.path(name)) // a network file system keeps what is open, under another name
	err := s.fs.Remove(s.path(name))
	s.files.drop(s.path(name))
	// A caller that finds the object gone syncs too: the one that removed it may not have done so
	// yet.
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = s.fs.SyncDir(path.Dir(s.path(name)))
	}
	if err = notExist(err); err != nil && !errors.Is(err, blob.ErrNotExist) {
		return fmt.Errorf("delete object %s: %w", name, err)
	}
	return nil
}

// check is where every method begins.
func check(ctx context.Context, name string) error {
	if err := validName(name); err != nil {
		return err
	}
	return ctx.Err()
}

// validName reports what is wrong with a name, or nil. Network file systems have some of their own.
func validName(name string) error {
	for part := range strings.SplitSeq(name, "/") {
		if durable.Hidden(part) {
			return fmt.Errorf("object name %q: %q is how network file systems name files that were removed", name, part)
		}
	}
	return blob.ValidName(name)
}

// notExist adds blob.ErrNotExist to what a file system says of a name that no object has.
func notExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) ||
		errors.Is(err, syscall.ENOTDIR) || // a/b where a is an object
		errors.Is(err, syscall.EISDIR) { // a where a/b is one
		return fmt.Errorf("%w: %w", blob.ErrNotExist, err)
	}
	return err
}

// noSpace adds blob.ErrNoSpace to what a file system says when it is full.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", blob.ErrNoSpace, err)
	}
	return err
}
