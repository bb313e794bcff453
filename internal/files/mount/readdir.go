package mount

import (
	"context"
	"iter"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// listing is an open directory. It holds no more of it than an entry, whatever its size.
type listing struct {
	n    *node
	next func() (filesystem.Entry, error, bool)
	stop func()
	at   uint64 // number of entries behind us, . and .. among them
}

var (
	_ = (fs.FileReaddirenter)((*listing)(nil))
	_ = (fs.FileSeekdirer)((*listing)(nil))
	_ = (fs.FileReleasedirer)((*listing)(nil))
)

// dots are the entries that every directory begins with.
const dots = 2

// OpendirHandle opens a directory, and lets the kernel keep what it reads.
func (n *node) OpendirHandle(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	l := &listing{n: n}
	l.rewind()
	return l, fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE, 0
}

func (l *listing) rewind() {
	if l.stop != nil {
		l.stop()
	}
	l.next, l.stop = iter.Pull2(l.n.n.FS.ReadDir(l.n.n.ID))
	l.at = 0
	l.n.v.s.names.begin(l.n)
}

// Readdirent returns the next entry, nil at the end.
func (l *listing) Readdirent(context.Context) (*fuse.DirEntry, syscall.Errno) {
	if l.at < dots {
		l.at++
		return &fuse.DirEntry{Name: ".."[:l.at], Mode: syscall.S_IFDIR, Ino: l.n.v.ino(l.n.n), Off: l.at}, 0
	}
	for {
		e, err, ok := l.next()
		switch {
		case !ok:
			return nil, 0
		case err != nil:
			return nil, l.n.errno(err)
		}
		l.at++
		if most := l.n.v.s.opts.Limits.Entries; int64(l.at) > most+dots {
			return nil, l.n.errno(files.Over(files.LimitEntries, "the directory holds more than %d entries", most))
		}
		if err := files.CheckName(e.Name); err != nil {
			_ = l.n.errno(err) // the others are shown
			continue
		}
		l.n.v.s.names.add(l.n, e.Name, e.ID)
		return &fuse.DirEntry{Name: e.Name, Mode: unixType(e.Type),
			Ino: l.n.v.ino(volume.Node{Volume: l.n.n.Volume, FS: l.n.n.FS, ID: e.ID}), Off: l.at}, 0
	}
}

// Seekdir goes to where an entry said that it was, from the beginning.
func (l *listing) Seekdir(_ context.Context, off uint64) syscall.Errno {
	if off < l.at {
		l.rewind()
	}
	for l.at < off {
		if l.at < dots {
			l.at++
			continue
		}
		_, err, ok := l.next()
		if !ok {
			return 0
		}
		if err != nil {
			return l.n.errno(err)
		}
		l.at++
	}
	return 0
}

// Releasedir closes the directory.
func (l *listing) Releasedir(context.Context, uint32) { l.stop() }

// nameCache knows what names mean in directories that were listed lately: a program that lists one
// looks at each file of it next, and a directory that is not indexed would be read from its
// beginning for each. It is safe for concurrent use.
type nameCache struct {
	mu    sync.Mutex
	dirs  map[inoKey]map[string]filesystem.ID
	order []inoKey // oldest first
	total int
}

// maxNames is how many names are known at most, of all directories.
const maxNames = 1 << 18

func newNameCache() *nameCache { return &nameCache{dirs: map[inoKey]map[string]filesystem.ID{}} }

func nameKey(n *node) inoKey { return inoKey{n.v.base[n.n.Volume], n.n.ID} }

func (c *nameCache) find(n *node, name string) (filesystem.ID, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, ok := c.dirs[nameKey(n)][name]
	return id, ok
}

// begin makes n the newest directory.
func (c *nameCache) begin(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := nameKey(n)
	if c.dirs[key] == nil {
		c.dirs[key] = map[string]filesystem.ID{}
		c.order = append(c.order, key)
	}
}

// add takes a name in; the oldest directories make room.
func (c *nameCache) add(n *node, name string, id filesystem.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := c.dirs[nameKey(n)]
	if names == nil { // it had to make room itself
		return
	}
	if _, have := names[name]; !have {
		names[name] = id
		c.total++
	}
	for c.total > maxNames || len(c.order) > 4096 {
		c.total -= len(c.dirs[c.order[0]])
		delete(c.dirs, c.order[0])
		c.order = c.order[1:]
	}
}
