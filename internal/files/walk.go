package files

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

const (
	mostHeld  = 128 << 20 // bytes of entries that are held in memory to be put in order
	leastHeld = 64 << 10  // that a directory may hold, however many are on the way down to it
	entryCost = 64        // bytes that an entry takes beside its name
)

// trail is the way of a walk: where it is, and where it was. A directory has one name, so that one
// that is met again is damage, or a trap: with two names for each, n directories have 2^n paths.
// A trail is not safe for concurrent use.
type trail struct {
	limits  Limits // without zeros
	entries int64  // met so far, in all trees
	held    int64  // bytes of entries in memory
	seen    map[dirID]struct{}
	above   []step // directories on the way down
}

type dirID struct {
	volume *volume.Volume
	id     filesystem.ID
}

type step struct {
	id   dirID
	path string
}

// begin forgets where the trail was: what follows is another tree, or a part of one that was asked
// for by itself.
func (w *trail) begin() { w.seen, w.above = map[dirID]struct{}{}, nil }

// enter goes down into a directory, unless it was met before or is too deep.
func (w *trail) enter(path string, dir volume.Node) error {
	id := dirID{dir.Volume, dir.ID}
	if _, met := w.seen[id]; met {
		return w.met(id)
	}
	if len(w.above) >= w.limits.Depth {
		return Over(LimitDepth, "more than %d directories are in each other", w.limits.Depth)
	}
	w.seen[id] = struct{}{}
	w.above = append(w.above, step{id, path})
	return nil
}

func (w *trail) met(id dirID) error {
	for _, a := range w.above {
		if a.id == id {
			return fmt.Errorf("%w: the directory is inside itself: it is %s", filesystem.ErrCorrupt, Short(a.path))
		}
	}
	return fmt.Errorf("%w: the directory was read before, under another name", filesystem.ErrCorrupt)
}

func (w *trail) leave() { w.above = w.above[:len(w.above)-1] }

// list hands the entries of a directory to do, by name; where they are too many to be held at once,
// in parts. What is damage goes to failed, with a path. The error is that of do, of ctx, or of a
// limit.
func (w *trail) list(ctx context.Context, t *volume.Tree, path string, dir volume.Node,
	failed func(path string, err error), do func([]filesystem.Entry) error) error {
	var part []filesystem.Entry
	room, size := max(leastHeld, (mostHeld-w.held)/2), int64(0)
	flush := func() error {
		w.held += size
		err := do(byName(part))
		w.held -= size
		part, size = part[:0], 0
		return err
	}
	for e, err := range t.ReadDir(dir) {
		if err == nil {
			if err := ended(ctx); err != nil {
				return err
			}
			if w.entries++; w.entries > w.limits.Entries {
				if err := flush(); err != nil {
					return err
				}
				return w.full()
			}
			err = CheckName(e.Name)
		} else {
			e.Name = ""
		}
		if err != nil {
			failed(brokenPath(path, e.Name), err)
			continue
		}
		part, size = append(part, e), size+entryCost+int64(len(e.Name))
		if size < room {
			continue
		}
		if err := flush(); err != nil {
			return err
		}
	}
	return flush()
}

func (w *trail) full() error {
	return Over(LimitEntries, "the directories hold more than %d entries", w.limits.Entries)
}

// ended returns why ctx is over.
func ended(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func byName(list []filesystem.Entry) []filesystem.Entry {
	slices.SortStableFunc(list, func(a, b filesystem.Entry) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// CheckName refuses a name that no file can have: a guest has it only by damage, or to lead us
// astray.
func CheckName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%w: %q is no name of a file", filesystem.ErrCorrupt, name)
	}
	return nil
}

// brokenPath returns where something with an impossible name was found; without a name it is the
// directory.
func brokenPath(dir, name string) string {
	if name == "" {
		return dir
	}
	return childPath(dir, strings.ReplaceAll(strconv.Quote(name), "/", `\x2f`))
}

func childPath(dir, name string) string {
	if strings.HasSuffix(dir, "/") {
		return dir + name
	}
	return dir + "/" + name
}

// visit is called with each file of a walk, a directory before what is in it. It returns fs.SkipDir
// to leave a directory out.
type visit func(path string, n volume.Node, attr filesystem.Attr) error

// walker goes through a tree in the order of names. What cannot be read is told to fail, and left
// out.
type walker struct {
	*trail
	tree  *volume.Tree
	visit visit
	fail  func(path string, err error)
}

// walk goes through n, which is at path, and all below it.
func (w *walker) walk(ctx context.Context, path string, n volume.Node) error {
	attr, err := n.Stat()
	if err != nil {
		if err := ended(ctx); err != nil {
			return err
		}
		w.fail(path, err)
		return nil
	}
	if err := w.visit(path, n, attr); err == fs.SkipDir || err != nil || !attr.Mode.IsDir() {
		if err == fs.SkipDir {
			err = nil
		}
		return err
	}
	return w.children(ctx, path, n)
}

func (w *walker) children(ctx context.Context, path string, dir volume.Node) error {
	if err := w.enter(path, dir); err != nil {
		w.fail(path, err)
		return nil
	}
	defer w.leave()
	return w.list(ctx, w.tree, path, dir, w.fail, func(part []filesystem.Entry) error {
		for _, e := range part {
			if err := w.child(ctx, childPath(path, e.Name), dir, e); err != nil {
				return err
			}
		}
		return nil
	})
}

func (w *walker) child(ctx context.Context, path string, dir volume.Node, e filesystem.Entry) error {
	n, err := w.tree.Child(dir, e)
	if err != nil {
		w.fail(path, err)
		return nil
	}
	return w.walk(ctx, path, n)
}
