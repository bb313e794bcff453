package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// ErrLoop reports too many symbolic links on the way of a path.
var ErrLoop = errors.New("too many levels of symbolic links")

// maxLinks is how many symbolic links may be on the way of a path, as in Linux.
const maxLinks = 40

// maxSteps bounds the components of a path with all its links; maxSteps of directories may lie in
// each other.
const maxSteps = 1 << 16

// Node is a file of a tree.
type Node struct {
	Volume *Volume
	FS     filesystem.FS // of Volume
	ID     filesystem.ID
}

// Tree is one or more file systems, mounted in each other, seen from one root.
type Tree struct {
	ctx    context.Context // ends the way of a path; nil does not
	root   Node
	mounts map[place]mount
}

type place struct {
	volume *Volume
	id     filesystem.ID
}

// mount is what stands in the place of a directory: the root of another file system, or the reason
// why it is not there.
type mount struct {
	node Node
	err  error
}

// Tree returns the tree of one volume alone.
func (v *Volume) Tree() (*Tree, error) {
	f, err := v.Open()
	if err != nil {
		return nil, err
	}
	return &Tree{ctx: v.ctx, root: Node{v, f, f.Root()}}, nil
}

// Root returns the top directory.
func (t *Tree) Root() Node { return t.root }

// Resolve returns the file that path names, from the root. Symbolic links on the way are followed
// as the machine itself would, and the last one too if follow says so.
func (t *Tree) Resolve(path string, follow bool) (Node, error) {
	w := walk{t: t, at: []Node{t.root}, rest: split(path)}
	if strings.HasSuffix(path, "/") {
		follow = true
	}
	for len(w.rest) > 0 {
		if err := w.step(follow); err != nil {
			return Node{}, &fs.PathError{Op: "find", Path: path, Err: err}
		}
	}
	return w.at[len(w.at)-1], nil
}

// walk is on its way to a file: at are the directories down to where it is.
type walk struct {
	t     *Tree
	at    []Node
	rest  []string
	links int
	steps int
}

func split(path string) []string {
	var out []string
	for part := range strings.SplitSeq(path, "/") {
		if part != "" && part != "." {
			out = append(out, part)
		}
	}
	return out
}

func (w *walk) step(follow bool) error {
	name := w.rest[0]
	w.rest = w.rest[1:]
	if w.steps++; w.steps > maxSteps {
		return ErrLoop
	}
	if w.t.ctx != nil && w.t.ctx.Err() != nil {
		return context.Cause(w.t.ctx)
	}
	here := w.at[len(w.at)-1]
	if name == ".." {
		w.at = w.at[:max(len(w.at)-1, 1)]
		return nil
	}
	next, attr, err := w.t.child(here, name)
	if err != nil {
		return err
	}
	if attr.Mode.Type() == fs.ModeSymlink && (follow || len(w.rest) > 0) {
		return w.follow(next)
	}
	if !attr.Mode.IsDir() && len(w.rest) > 0 {
		return fmt.Errorf("%q is no directory: %w", name, filesystem.ErrNotExist)
	}
	w.at = append(w.at, next)
	return nil
}

func (w *walk) follow(link Node) error {
	if w.links++; w.links > maxLinks {
		return ErrLoop
	}
	target, err := link.FS.ReadLink(link.ID)
	if err != nil {
		return err
	}
	if strings.HasPrefix(target, "/") {
		w.at = w.at[:1]
	}
	w.rest = append(split(target), w.rest...)
	return nil
}

// child returns what name means in a directory, on the other side if something is mounted there.
func (t *Tree) child(dir Node, name string) (Node, filesystem.Attr, error) {
	id, err := dir.FS.Lookup(dir.ID, name)
	if err != nil {
		return Node{}, filesystem.Attr{}, err
	}
	n, err := t.Enter(Node{dir.Volume, dir.FS, id})
	if err != nil {
		return Node{}, filesystem.Attr{}, err
	}
	attr, err := n.FS.Stat(n.ID)
	return n, attr, err
}

// Enter returns what stands in the place of n: the root of what is mounted there, or n itself. The
// error is the reason why something that belongs there is not.
func (t *Tree) Enter(n Node) (Node, error) {
	for range len(t.mounts) { // something may be mounted on what is mounted
		m, ok := t.mounts[place{n.Volume, n.ID}]
		if !ok {
			break
		}
		if m.err != nil {
			return Node{}, m.err
		}
		n = m.node
	}
	return n, nil
}

// Child returns the file that an entry of dir is.
func (t *Tree) Child(dir Node, e filesystem.Entry) (Node, error) {
	return t.Enter(Node{dir.Volume, dir.FS, e.ID})
}

// ReadDir yields the entries of a directory.
func (t *Tree) ReadDir(dir Node) iter.Seq2[filesystem.Entry, error] { return dir.FS.ReadDir(dir.ID) }

// Stat returns what is known of a file.
func (n Node) Stat() (filesystem.Attr, error) { return n.FS.Stat(n.ID) }
