// Package disks keeps managed disks: images in a pool, each with a durable record of what it is,
// where it came from and which machine has it.
//
// A [Pool] is a directory. The image of the disk data is data.qcow2 or data.raw in it; its record
// is .holdfast/data.json, replaced as a whole, so that a crash leaves the old one or the new one.
// Before anything is done to a disk the record says what, and afterwards that it is done: whoever
// finds a record that says something is being done by nobody can tell by looking at the image and
// the machine how far it came, and [Pool.Reconcile] finishes or undoes it.
//
// One process at a time works on a disk, by a lock that ends with the process; others get
// [ErrBusy]. A disk that is being hydrated can be attached meanwhile. The record is believed about
// what was meant, the image and the hypervisor about what is.
package disks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/durable"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

var (
	// ErrNoPool reports that a pool's directory is not there, or is something else.
	ErrNoPool = errors.New("there is no such directory")
	// ErrNoDisk reports that the pool has no disk of the name.
	ErrNoDisk = errors.New("no such managed disk")
	// ErrExists reports that a disk, or another file of its name, is in the pool.
	ErrExists = errors.New("a disk of this name exists already")
	// ErrBusy reports that another process works on the disk.
	ErrBusy = errors.New("another process works on the disk")
	// ErrAttached reports that a machine has the disk.
	ErrAttached = errors.New("a machine has the disk")
	// ErrNotAttached reports that no machine has the disk.
	ErrNotAttached = errors.New("no machine has the disk")
	// ErrUnfinished reports that something was begun with the disk and its process is gone:
	// Reconcile finishes or undoes it.
	ErrUnfinished = errors.New("something was begun with the disk and not finished")
	// ErrBased reports that another image stands on the disk.
	ErrBased = errors.New("another image is based on the disk")
	// ErrShrink reports that a disk would become smaller.
	ErrShrink = errors.New("a disk cannot be made smaller")
	// ErrHydrating reports that the disk still depends on a snapshot of a vault.
	ErrHydrating = errors.New("the disk is still being filled")
	// ErrHost reports that the host of the machine that has the disk cannot be asked.
	ErrHost = errors.New("the machine's host cannot be asked")
)

// Host is what a pool needs of the host whose machines get disks.
type Host interface {
	hypervisor.Attacher
	URI() string
	Machines(ctx context.Context) ([]hypervisor.Machine, error)
}

// Content is what a new disk is filled with. *vault.Disk is one.
type Content interface {
	Size() int64
	// Extents returns the ranges that are not zeros.
	Extents(ctx context.Context) (extent.Set, error)
	// Restore writes those ranges to w and tells progress how many bytes each part had.
	Restore(ctx context.Context, w io.WriterAt, progress func(bytes int64)) error
}

// PartContent is a content of which parts can be had. *vault.Disk is one.
type PartContent interface {
	Content
	// RestorePart is Restore of the ranges that part touches. It writes nothing twice, and from
	// several goroutines.
	RestorePart(ctx context.Context, part extent.Set, w io.WriterAt, progress func(bytes int64)) error
}

// Options tunes a Pool. The zero value of each field is its default.
type Options struct {
	// Open returns the host of a URI, for disks that are attached; nil asks no host.
	Open func(uri string) (Host, error)
	// Changed is told when files were added to the pool or removed; nil discards.
	Changed func(ctx context.Context) error
	Now     func() time.Time // nil means time.Now
}

// Pool is a directory with managed disks. It is safe for concurrent use, also by several processes.
type Pool struct {
	dir  string
	fs   durable.FS
	opts Options
	// step is called between any two steps; an error is a crash there: nothing is undone.
	step       func(name string) error
	checkpoint time.Duration // between two times that a copy is made durable and recorded
	roomPause  time.Duration // between two looks whether there is room
}

// OpenPool returns the pool in dir, which must exist.
func OpenPool(dir string, o Options) (*Pool, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real // hypervisors name images by their real paths
	}
	info, err := durable.OS{}.Stat(dir)
	if err == nil && !info.Dir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoPool, err)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Changed == nil {
		o.Changed = func(context.Context) error { return nil }
	}
	return &Pool{dir: dir, fs: durable.OS{}, opts: o, step: func(string) error {
		return nil
	}, checkpoint: saveCopyEvery, roomPause: lookForRoom}, nil
}

// Dir returns the pool's directory, absolute.
func (p *Pool) Dir() string { return p.dir }

var nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// CheckName returns an error unless name can be that of a disk.
func CheckName(name string) error {
	if !nameRule.MatchString(name) {
		return fmt.Errorf("%q is no name for a disk: it takes 1 to 63 letters, digits, dots, dashes and underscores, "+
			"and begins with a letter or digit", name)
	}
	return nil
}
