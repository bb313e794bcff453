package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/durable"
)

// List implements [blob.Store]. Names that cannot be an object's are skipped.
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		l := lister{store: s, ctx: ctx, prefix: prefix, after: after, sizes: true, yield: yield}
		l.run()
	}
}

// Names is List without the sizes, which would have to be asked for one by one.
func (s *Store) Names(ctx context.Context, prefix, after string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		l := lister{store: s, ctx: ctx, prefix: prefix, after: after, yield: func(i blob.Info, err error) bool {
			return yield(i.Name, err)
		}}
		l.run()
	}
}

// innermost returns the innermost folder known to be on disk that has all objects whose name begins
// with prefix.
func (s *Store) innermost(prefix string) string {
	for dir := path.Dir(prefix + "x"); dir != "/"; dir = path.Dir(dir) {
		if s.isKnown(dir) {
			return dir
		}
	}
	return "."
}

// errStopped reports that the caller of List wants no more.
var errStopped = errors.New("stopped")

type lister struct {
	store  *Store
	ctx    context.Context
	prefix string
	after  string // names up to this one are not asked for
	sizes  bool   // are wanted
	yield  func(blob.Info, error) bool
}

func (l *lister) run() {
	start := l.store.innermost(l.prefix)
	if err := l.folder(l.read(start)); err != nil && err != errStopped {
		l.yield(blob.Info{}, fmt.Errorf("list objects of %s: %w", l.store.root, err))
	}
}

// folder is a directory as it was read.
type folder struct {
	// folders, and the objects that are asked for, in the order of the names of objects, by which
	// they go here
	entries []durable.Entry
	err     error
}

// read reads a directory and syncs it: who put an object there may have been killed before doing
// so. Nobody can on a read-only file system.
func (l *lister) read(dir string) folder {
	if err := l.ctx.Err(); err != nil {
		return folder{err: err}
	}
	entries, err := l.store.fs.ReadDir(l.store.path(dir))
	if errors.Is(err, fs.ErrNotExist) && dir != "." {
		return folder{}
	}
	if err != nil {
		return folder{err: err}
	}
	if err := l.store.fs.SyncDir(l.store.path(dir)); err != nil && !errors.Is(err, syscall.EROFS) {
		return folder{err: err}
	}
	l.store.nowKnown(dir, entries)
	if dir != "." {
		for i := range entries {
			entries[i].Name = dir + "/" + entries[i].Name
		}
	}
	entries = slices.DeleteFunc(entries, func(e durable.Entry) bool {
		return !e.Dir && (!strings.HasPrefix(e.Name, l.prefix) || e.Name <= l.after) || validName(e.Name) != nil
	})
	slices.SortFunc(entries, func(a, b durable.Entry) int { return strings.Compare(sortKey(a), sortKey(b)) })
	return folder{entries: entries}
}

// readAhead is how many folders are read at once: syncs that are under way together cost a disk
// little more than one.
const readAhead = 32

// folder yields the objects in a directory that was read, and those below it.
func (l *lister) folder(f folder) error {
	if f.err != nil {
		return f.err
	}
	ahead := make(map[string]folder)
	for i, e := range f.entries {
		if !e.Dir {
			if err := l.object(e.Name); err != nil {
				return err
			}
			continue
		}
		if !l.wants(e.Name) {
			continue
		}
		if _, ok := ahead[e.Name]; !ok {
			ahead = l.readFolders(f.entries[i:])
		}
		if err := l.folder(ahead[e.Name]); err != nil {
			return err
		}
	}
	return nil
}

// wants reports whether a folder may have objects that are asked for.
func (l *lister) wants(name string) bool {
	sub := name + "/"
	if sub < l.after && !strings.HasPrefix(l.after, sub) {
		return false // all that is in it comes before
	}
	return strings.HasPrefix(sub, l.prefix) || strings.HasPrefix(l.prefix, sub)
}

// readFolders reads the first few folders among entries.
func (l *lister) readFolders(entries []durable.Entry) map[string]folder {
	var names []string
	for _, e := range entries {
		if e.Dir && l.wants(e.Name) && len(names) < readAhead {
			names = append(names, e.Name)
		}
	}
	folders := make([]folder, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { folders[i] = l.read(name) })
	}
	wg.Wait()
	out := make(map[string]folder)
	for i, name := range names {
		out[name] = folders[i]
	}
	return out
}

// sortKey puts a directory where the names of the objects in it belong.
func sortKey(e durable.Entry) string {
	if e.Dir {
		return e.Name + "/"
	}
	return e.Name
}

// object yields an object.
func (l *lister) object(name string) error {
	info, err := blob.Info{Name: name}, l.ctx.Err()
	if l.sizes {
		info, err = l.store.Stat(l.ctx, name)
	}
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
