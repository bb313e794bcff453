package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// ErrNoGuest reports that no volume looks like the root of an operating system.
var ErrNoGuest = errors.New("no operating system was found on the disks")

// ErrNotMounted reports a directory where something belongs that cannot be read.
var ErrNotMounted = errors.New("what is mounted there")

// Guest is the machine's own view: its file systems mounted where its /etc/fstab says.
type Guest struct {
	*Tree
	Mounts  []Mount  // the root first, then as they lie in each other
	Windows bool     // the tree is drive C:
	Notes   []string // in words: what could not be mounted and is not missed
}

// Mount is a volume in its place.
type Mount struct {
	Path   string  // in the guest
	Volume *Volume // nil where it is not known which
	Err    error   // why it cannot be read; paths below return it
}

// Guest finds the root file system and mounts the others in it. It returns ErrNoGuest where there
// is no operating system, and opens what it must to know.
func (v *Volumes) Guest() (*Guest, error) {
	v.guestOnce.Do(func() { v.guest, v.guestErr = v.findGuest() })
	return v.guest, v.guestErr
}

// candidate is a volume that looks like a root.
type candidate struct {
	tree    *Tree
	rank    int // 3: its fstab says so, 2: it has an fstab, 1: it has an operating system without one
	fstab   []fstabEntry
	windows bool
}

// keptOpen is of how many volumes all file systems stay open that were looked into: each takes
// memory.
const keptOpen = 64

func (v *Volumes) findGuest() (*Guest, error) {
	var best *candidate
	var failed error
	for _, vol := range v.List {
		if vol.open == nil || vol.Type == "vfat" {
			continue
		}
		c, err := v.look(vol)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if c != nil && (best == nil || c.rank > best.rank) {
			best = c
		} else if len(v.List) > keptOpen {
			vol.Close()
		}
		if best != nil && best.rank == 3 {
			break
		}
	}
	if best == nil && failed != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoGuest, failed)
	}
	if best == nil {
		return nil, ErrNoGuest
	}
	return v.mountAll(best), nil
}

// look returns what makes a volume a root; nil where nothing does. Errors are of volumes that can
// not be looked into.
func (v *Volumes) look(vol *Volume) (*candidate, error) {
	t, err := vol.Tree()
	if err != nil {
		return nil, err
	}
	c := &candidate{tree: t}
	text, err := t.readFile("/etc/fstab", maxFstab)
	switch {
	case err == nil:
		c.fstab, c.rank = parseFstab(text), 2
		for _, e := range c.fstab {
			if e.file == "/" {
				if root, err := v.source(e.spec); err == nil && root == vol {
					c.rank = 3
				}
			}
		}
		return c, nil
	case !errors.Is(err, filesystem.ErrNotExist):
		return nil, err
	}
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release", "/Windows/System32"} {
		if _, err := t.Resolve(path, true); err == nil {
			c.rank, c.windows = 1, strings.HasPrefix(path, "/Windows")
			return c, nil
		}
	}
	return nil, nil
}

// mountAll mounts what the fstab of the root names, outer places first.
func (v *Volumes) mountAll(c *candidate) *Guest {
	root := c.tree.root
	g := &Guest{Tree: &Tree{ctx: v.ctx, root: root, mounts: map[place]mount{}}, Windows: c.windows,
		Mounts: []Mount{{Path: "/", Volume: root.Volume}}}
	entries := slices.DeleteFunc(c.fstab, func(e fstabEntry) bool { return e.file == "/" || !e.onDisk() })
	slices.SortStableFunc(entries, func(a, b fstabEntry) int {
		return strings.Count(a.file, "/") - strings.Count(b.file, "/")
	})
	if len(entries) > maxMounts {
		g.Notes = append(g.Notes, fmt.Sprintf("/etc/fstab mounts %d file systems: only the first %d are looked for",
			len(entries), maxMounts))
		entries = entries[:maxMounts]
	}
	for _, e := range entries {
		g.mount(v, e)
	}
	return g
}

// mount puts the volume of an entry in its place, or the reason why it is not there.
func (g *Guest) mount(v *Volumes, e fstabEntry) {
	where, err := g.Resolve(e.file, true)
	if err == nil {
		var attr filesystem.Attr
		if attr, err = where.Stat(); err == nil && !attr.Mode.IsDir() {
			err = fmt.Errorf("%s is no directory", e.file)
		}
	}
	if err != nil {
		g.Notes = append(g.Notes, fmt.Sprintf("%s is not mounted at %s: %v", e.spec, e.file, err))
		return
	}
	m := Mount{Path: e.file}
	var node Node
	if e.remote() {
		m.Err = fmt.Errorf("%s is %s of another machine", e.spec, e.kind)
	} else if m.Volume, m.Err = v.source(e.spec); m.Err == nil {
		if slices.ContainsFunc(g.Mounts, func(other Mount) bool { return other.Volume == m.Volume }) {
			g.Notes = append(g.Notes, fmt.Sprintf("%s is mounted a second time at %s: left out", m.Volume.Name, e.file))
			return // in a tree that shows everything once, walks end
		}
		var f filesystem.FS
		if f, m.Err = m.Volume.Open(); m.Err == nil {
			node = Node{m.Volume, f, f.Root()}
		}
	}
	if m.Volume == nil && !e.remote() && e.has("nofail") {
		g.Notes = append(g.Notes, fmt.Sprintf("nothing is mounted at %s: %v", e.file, m.Err))
		return // the machine starts without it, with what is below
	}
	if m.Err != nil {
		m.Err = fmt.Errorf("%w: %w", ErrNotMounted, m.Err)
	}
	g.Mounts = append(g.Mounts, m)
	g.mounts[place{where.Volume, where.ID}] = mount{node, m.Err}
}

// readFile returns a small file.
func (t *Tree) readFile(path string, most int64) ([]byte, error) {
	n, err := t.Resolve(path, true)
	if err != nil {
		return nil, err
	}
	attr, err := n.Stat()
	if err != nil {
		return nil, err
	}
	if !attr.Mode.IsRegular() || attr.Size > most {
		return nil, &fs.PathError{Op: "read", Path: path,
			Err: fmt.Errorf("no file of at most %d bytes: %w", most, filesystem.ErrNotExist)}
	}
	f, err := n.FS.Open(n.ID)
	if err != nil {
		return nil, err
	}
	data := make([]byte, attr.Size)
	if got, err := f.ReadAt(data, 0); int64(got) < attr.Size {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}
