package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// Entry is a file as it is listed.
type Entry struct {
	Path     string    `json:"path"` // as it is typed: VOLUME:/path, or /path in the machine's tree
	Name     string    `json:"name"`
	Volume   string    `json:"volume"` // that it is on
	Type     string    `json:"type"`   // file, directory, symlink, device, fifo, socket
	Mode     string    `json:"mode"`   // octal, with setuid, setgid and sticky
	Links    uint32    `json:"links"`
	UID      uint32    `json:"uid"`
	GID      uint32    `json:"gid"`
	Size     int64     `json:"size"` // bytes
	Modified time.Time `json:"mtime"`
	Target   string    `json:"target,omitempty"` // of a symbolic link
	Major    uint32    `json:"major,omitempty"`  // of a device
	Minor    uint32    `json:"minor,omitempty"`
	Reason   string    `json:"reason,omitempty"` // why no more is known of it

	char bool // whether a device is one of characters
}

// CharDevice reports whether a device is one of characters, not of blocks.
func (e Entry) CharDevice() bool { return e.char }

// ListRequest says what to list.
type ListRequest struct {
	Name      string // a place
	Recursive bool
	Itself    bool              // list a directory itself, not what is in it
	Listed    func(Entry) error // called with each, by name; an error ends the listing and is returned
	Limits    Limits
}

// List goes through what is in a directory, or tells of the file itself. With an error that is an
// [Incomplete] some of it could not be read; with one that is [ErrLimit] it was given up.
func (p *Point) List(ctx context.Context, req ListRequest) error {
	at, err := p.Locate(req.Name, false)
	if err != nil {
		return err
	}
	attr, err := at.Node.Stat()
	if err != nil {
		return fmt.Errorf("look at %s: %w", at, err)
	}
	l := &lister{ListRequest: req, at: at}
	if !attr.Mode.IsDir() || req.Itself {
		if err := l.visit(at.Path, at.Node, attr); err != nil && err != fs.SkipDir {
			return err
		}
		return l.failed.incomplete("listed")
	}
	w := &walker{trail: &trail{limits: req.Limits.WithDefaults(p.size)}, tree: at.Tree, fail: l.fail, visit: l.visit}
	w.begin()
	return errors.Join(w.children(ctx, at.Path, at.Node), l.err, l.failed.incomplete("listed"))
}

// lister tells of the files of a walk.
type lister struct {
	ListRequest
	at     Place
	failed failures
	err    error // of telling of what cannot be read
}

func (l *lister) visit(path string, n volume.Node, attr filesystem.Attr) error {
	e, err := describe(l.at.Volume, path, n, attr)
	if err != nil {
		l.failed.add(Join(l.at.Volume, path), err)
	} else if err := l.Listed(e); err != nil {
		return err
	}
	if attr.Mode.IsDir() && !l.Recursive {
		return fs.SkipDir
	}
	return l.err
}

func (l *lister) fail(path string, err error) {
	if l.err == nil {
		l.err = l.Listed(Entry{Path: Join(l.at.Volume, path), Name: base(path), Type: "unknown", Mode: "0000",
			Reason: err.Error()})
	}
	if l.Recursive || !errors.Is(err, volume.ErrNotMounted) { // that it is there is all that was asked for
		l.failed.add(Join(l.at.Volume, path), err)
	}
}

func describe(vol, path string, n volume.Node, attr filesystem.Attr) (Entry, error) {
	e := Entry{Path: Join(vol, path), Name: base(path), Volume: n.Volume.Name, Type: typeName(attr.Mode),
		Mode:  fmt.Sprintf("%04o", unixMode(attr.Mode)),
		Links: attr.Links, UID: attr.UID, GID: attr.GID, Size: attr.Size, Modified: attr.Modified.UTC(),
		char: attr.Mode&fs.ModeCharDevice != 0}
	if attr.Mode&fs.ModeDevice != 0 {
		e.Major, e.Minor = device(attr.Rdev)
	}
	if attr.Mode.Type() == fs.ModeSymlink {
		target, err := n.FS.ReadLink(n.ID)
		if err != nil {
			return e, err
		}
		e.Target = target
	}
	return e, nil
}

func base(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[i+1:]
		}
	}
	return path
}

func typeName(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "file"
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symlink"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "unknown"
}

// unixMode returns the twelve bits that chmod knows.
func unixMode(m fs.FileMode) uint32 {
	out := uint32(m.Perm())
	for _, b := range []struct {
		is  fs.FileMode
		bit uint32
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&b.is != 0 {
			out |= b.bit
		}
	}
	return out
}

// device takes Linux's makedev apart.
func device(rdev uint64) (major, minor uint32) {
	return uint32(rdev>>8&0xfff | rdev>>32&^0xfff), uint32(rdev&0xff | rdev>>12&^0xff)
}
