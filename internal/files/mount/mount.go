// Package mount shows a recovery point as a directory, through FUSE, read-only.
//
// Below it are disks/vda, a file for each disk; volumes/vda1/, a tree for each file system that can
// be read; and root/, the machine's own tree, where there is one. Nothing in it ever changes, and
// the kernel is told so: what it has read it keeps; nothing is setuid or a device. A directory is
// shown in the one place where it is met first, so that whoever goes through the mount comes to an
// end, whatever the guest has written. Inode numbers are the file system's own, made
// unique among volumes; hard links have one. Holes are seen by SEEK_HOLE. A named stream of an NTFS
// file is read as NAME:STREAM, which no directory lists, and as the attribute user.STREAM if it is
// short.
package mount

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// ErrNoFUSE reports a system on which nothing can be mounted.
var ErrNoFUSE = errors.New("there is no FUSE here")

// immutable is how long the kernel may keep what it has read.
const immutable = 24 * time.Hour

// Options tunes a Mount. The zero value of each field is its default.
type Options struct {
	Source     string    // what df shows; "" means holdfast
	Time       time.Time // of directories and disks that are not files of the machine; the zero time means now
	AllowOther bool      // other users than the caller may look, as far as the machine's own permissions let them
	// Limits are of each directory: how deep it may be, and how many entries it may hold.
	Limits files.Limits
	// Trouble is told of files that cannot be read, each time: programs only see an I/O error. It
	// is called from several goroutines; nil discards.
	Trouble func(where string, err error)
}

// Mount is a mounted point.
type Mount struct {
	server *fuse.Server
	dir    string
	made   bool

	Disks   []string // that are shown
	Volumes []string
	Root    bool // whether root/ is there
}

// New mounts p on dir, which is made if its parent exists, and returns when it can be used. The
// disks must stay open until Wait returns.
func New(dir string, disks []volume.Disk, p *files.Point, o Options) (*Mount, error) {
	m := &Mount{dir: dir}
	if err := available(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err == nil {
		m.made = true
	} else if !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, &os.PathError{Op: "mount on", Path: dir, Err: unix.ENOTDIR}
	}
	if o.Source == "" {
		o.Source = "holdfast"
	}
	if o.Time.IsZero() {
		o.Time = time.Now()
	}
	o.Limits = o.Limits.WithDefaults(0)
	root := m.tree(disks, p, &shared{opts: o, names: newNameCache(), places: newPlacing(), inos: map[inoKey]uint64{}})
	timeout := immutable
	opts := &fs.Options{EntryTimeout: &timeout, AttrTimeout: &timeout, NullPermissions: true,
		Logger: log.New(io.Discard, "", 0)}
	opts.MountOptions = fuse.MountOptions{
		FsName: o.Source, Name: "holdfast", DirectMount: os.Geteuid() == 0, Options: []string{"ro"},
		DirectMountFlags: unix.MS_NOSUID | unix.MS_NODEV, // as fusermount3 has it for everybody else
		AllowOther:       o.AllowOther,
		MaxWrite:         1 << 20, MaxReadAhead: 1 << 20, MaxBackground: 32, Logger: log.New(io.Discard, "", 0),
	}
	if o.AllowOther {
		opts.Options = append(opts.Options, "default_permissions")
	}
	server, err := fs.Mount(dir, root, opts)
	if err != nil {
		m.cleanUp()
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	m.server = server
	return m, nil
}

// available says why nothing can be mounted.
func available() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoFUSE, err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		return nil
	}
	for _, name := range []string{"fusermount3", "fusermount"} {
		if _, err := child.Find(name); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: fusermount3 is not installed, and only root can do without", ErrNoFUSE)
}

// Wait returns when the point is no longer mounted, whoever ended that.
func (m *Mount) Wait() {
	m.server.Wait()
	m.cleanUp()
}

// Unmount ends the mount. Where programs still use it, it goes out of sight now, and the error says
// that.
func (m *Mount) Unmount() error {
	err := m.server.Unmount()
	if err == nil {
		return nil
	}
	if lazy := m.detach(); lazy != nil {
		return fmt.Errorf("unmount %s: %w", m.dir, errors.Join(err, lazy))
	}
	return fmt.Errorf("%s was still in use: it is gone, programs that go on with it see errors", m.dir)
}

func (m *Mount) detach() error {
	if err := unix.Unmount(m.dir, unix.MNT_DETACH); err == nil {
		return nil
	}
	out, err := child.Command("fusermount3", "-uz", m.dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3 -uz: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// cleanUp removes the directory if New made it.
func (m *Mount) cleanUp() {
	if m.made {
		_ = os.Remove(m.dir) // not if something was put there meanwhile
	}
}

// shared is what all nodes of a mount have in common.
type shared struct {
	opts   Options
	names  *nameCache
	places *placing

	mu   sync.Mutex
	inos map[inoKey]uint64 // of files whose ID does not fit an inode number
}

func (s *shared) trouble(where string, err error) {
	if s.opts.Trouble != nil {
		s.opts.Trouble(where, err)
	}
}
