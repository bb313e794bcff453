package dir

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/durable"
)

// List implements [blob.Store]. Names that are no object's are passed over.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		l := lister{store: s, ctx: ctx, prefix: prefix, yield: yield}
		if err := l.dir("."); err != nil && err != errStopped {
			yield(blob.Info{}, fmt.Errorf("list objects of %s: %w", s.root, err))
		}
	}
}

// errStopped reports that the caller of List wants no more.
var errStopped = errors.New("stopped")

type lister struct {
	store  *Store
	ctx    context.Context
	prefix string
	yield  func(blob.Info, error) bool
}

// dir yields the objects in a directory below root and below that.
func (l *lister) dir(dir string) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	entries, err := l.store.fs.ReadDir(l.store.path(dir))
	if errors.Is(err, fs.ErrNotExist) && dir != "." {
		return nil
	}
	if err != nil {
		return err
	}
	// Who put an object here may have been killed before syncing the folder. Nobody can on a read-only file system.
	if err := l.store.fs.SyncDir(l.store.path(dir)); err != nil && !errors.Is(err, syscall.EROFS) {
		return err
	}
	slices.SortFunc(entries, func(a, b durable.Entry) int { return cmp.Compare(sortKey(a), sortKey(b)) })
	for _, e := range entries {
		name := path.Join(dir, e.Name)
		if blob.ValidName(name) != nil {
			continue
		}
		if err := l.entry(name, e.Dir); err != nil {
			return err
		}
	}
	return nil
}

// sortKey puts a directory where the names of the objects in it belong.
func sortKey(e durable.Entry) string {
	if e.Dir {
		return e.Name + "/"
	}
	return e.Name
}

func (l *lister) entry(name string, isDir bool) error {
	if isDir {
		if sub := name + "/"; strings.HasPrefix(sub, l.prefix) || strings.HasPrefix(l.prefix, sub) {
			return l.dir(name)
		}
		return nil
	}
	if !strings.HasPrefix(name, l.prefix) {
		return nil
	}
	info, err := l.store.Stat(l.ctx, name)
	if errors.Is(err, blob.ErrNotExist) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return err
	}
	if !l.yield(info, nil) {
		return errStopped
	}
	return nil
}
