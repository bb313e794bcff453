package files

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// maxDepth is how deep directories may lie in each other before that is taken for damage.
const maxDepth = 2000

// Failure is a file that could not be read.
type Failure struct {
	Path string
	Err  error
}

// Incomplete is the error of work that was done but for some files. It is what the errors of these
// files are.
type Incomplete struct {
	What     string // was done: "fetched"
	Failures []Failure
}

func (e *Incomplete) Error() string {
	const most = 3
	var parts []string
	for i, f := range e.Failures {
		if i == most {
			parts = append(parts, fmt.Sprintf("and %d more", len(e.Failures)-most))
			break
		}
		parts = append(parts, fmt.Sprintf("%s: %v", f.Path, f.Err))
	}
	files := "files"
	if len(e.Failures) == 1 {
		files = "file"
	}
	return fmt.Sprintf("%d %s could not be %s: %s", len(e.Failures), files, e.What, strings.Join(parts, "; "))
}

// Unwrap returns the errors of the files.
func (e *Incomplete) Unwrap() []error {
	var out []error
	for _, f := range e.Failures {
		out = append(out, f.Err)
	}
	return out
}

func incomplete(what string, failures []Failure) error {
	if len(failures) == 0 {
		return nil
	}
	return &Incomplete{what, failures}
}

// visit is called with each file of a walk, a directory before what is in it. It returns fs.SkipDir
// to leave a directory out.
type visit func(path string, n volume.Node, attr filesystem.Attr) error

// walker goes through a tree in the order of names. What can not be read is told to fail, and left
// out.
type walker struct {
	tree  *volume.Tree
	visit visit
	fail  func(path string, err error)
	above []dirID // directories on the way down
}

type dirID struct {
	volume *volume.Volume
	id     filesystem.ID
}

// walk goes through n, which is at path, and all below it.
func (w *walker) walk(ctx context.Context, path string, n volume.Node) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	attr, err := n.Stat()
	if err != nil {
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
	if err := w.enter(dir); err != nil {
		w.fail(path, err)
		return nil
	}
	defer w.leave()
	entries, err := readDir(w.tree, dir)
	if err != nil {
		w.fail(path, err)
	}
	for _, e := range entries {
		below := childPath(path, e.Name)
		n, err := w.tree.Child(dir, e)
		if err != nil {
			w.fail(below, err)
			continue
		}
		if err := w.walk(ctx, below, n); err != nil {
			return err
		}
	}
	return nil
}

// enter refuses a directory that is inside itself.
func (w *walker) enter(dir volume.Node) error {
	id := dirID{dir.Volume, dir.ID}
	if len(w.above) >= maxDepth {
		return fmt.Errorf("%w: more than %d directories in each other", filesystem.ErrCorrupt, maxDepth)
	}
	if slices.Contains(w.above, id) {
		return fmt.Errorf("%w: a directory is inside itself", filesystem.ErrCorrupt)
	}
	w.above = append(w.above, id)
	return nil
}

func (w *walker) leave() { w.above = w.above[:len(w.above)-1] }

// readDir returns the entries of a directory by name, with an error those before it.
func readDir(t *volume.Tree, dir volume.Node) ([]filesystem.Entry, error) {
	var out []filesystem.Entry
	var failed error
	for e, err := range t.ReadDir(dir) {
		if err != nil {
			failed = err
			break
		}
		out = append(out, e)
	}
	slices.SortStableFunc(out, func(a, b filesystem.Entry) int { return cmp.Compare(a.Name, b.Name) })
	return out, failed
}

func childPath(dir, name string) string {
	if strings.HasSuffix(dir, "/") {
		return dir + name
	}
	return dir + "/" + name
}
