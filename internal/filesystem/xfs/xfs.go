// Package xfs reads XFS, version 4 and 5, as a mount would show it, without one.
//
// A file system that was not unmounted has its log replayed into memory first, as the kernel would
// into the disk: whole transactions only, in order, nothing older than what the disk has. Nothing
// is ever written. Every checksum, owner and address that metadata of version 5 carries is checked
// when it is read, except the checksum of what the log replaced, which the log does not have;
// records of the log have checksums of their own. Of a disk that lost power, writes that it was not
// told to keep may be there, or not, or in part, and the log makes up for it; of one that lost what
// it was told to keep, metadata newer than the log or torn in a way that the log cannot mend is
// refused when it is met.
//
// Attributes come with the names a mount gives them. POSIX ACLs are system.posix_acl_access and
// system.posix_acl_default in the kernel's form, and are not shown a second time as
// trusted.SGI_ACL_FILE. Parent pointers are not attributes of anybody's and left out.
//
// Not supported, and reported: logs on another device, files on a real-time device, and features
// newer than Linux 6.18. Memory is bounded by the size of the log while it is replayed, by what it
// changed afterwards (at most 1 GiB), and by the extents of the files that are open.
package xfs

import (
	"fmt"
	"io"
	"iter"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// FS is an XFS file system. It is safe for concurrent use.
type FS struct {
	dev   *device
	sb    super
	info  filesystem.Info
	fixes fixes
	lax   bool // checksums are not checked: for fuzzing

	logEnd uint64          // LSN that nothing on disk can be newer than; 0 if that is not known
	torn   map[uint64]bool // inodes of which the log could not say what the disk lacks
}

var _ filesystem.FS = (*FS)(nil)

// Open reads the file system in the first size bytes of r, which must stay readable while the FS is
// in use. It returns [filesystem.ErrNotThis] if there is no XFS, [filesystem.ErrUnsupported] if a
// mount of it needs what this package does not know, and [filesystem.ErrCorrupt] if it or its log
// contradicts itself.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	return open(r, size, false)
}

func open(r io.ReaderAt, size int64, lax bool) (*FS, error) {
	f := &FS{dev: newDevice(r, size), lax: lax}
	if err := f.readSuper(); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	notes, err := f.recover()
	if err != nil {
		return nil, fmt.Errorf("replay log: %w", err)
	}
	f.info = filesystem.Info{
		Type: "xfs", Label: f.sb.label, UUID: formatUUID(f.sb.uuid), Notes: notes,
		Size: int64(f.sb.blocks) << f.sb.blockLog,
		Used: max(0, int64(f.sb.blocks-min(f.sb.free, f.sb.blocks))<<f.sb.blockLog),
	}
	if root, err := f.inode(f.sb.root); err != nil {
		return nil, fmt.Errorf("read root directory: %w", err)
	} else if !root.isDir() {
		return nil, fmt.Errorf("read root directory: %w", corrupt("inode %d is not a directory", f.sb.root))
	}
	return f, nil
}

// Info implements [filesystem.FS].
func (f *FS) Info() filesystem.Info { return f.info }

// Root implements [filesystem.FS].
func (f *FS) Root() filesystem.ID { return filesystem.ID(f.sb.root) }

// Stat implements [filesystem.FS].
func (f *FS) Stat(id filesystem.ID) (filesystem.Attr, error) {
	ino, err := f.inode(uint64(id))
	if err != nil {
		return filesystem.Attr{}, err
	}
	return ino.attr(), nil
}

// ReadDir implements [filesystem.FS].
func (f *FS) ReadDir(id filesystem.ID) iter.Seq2[filesystem.Entry, error] {
	return func(yield func(filesystem.Entry, error) bool) {
		for e, err := range f.entries(uint64(id)) {
			if err != nil {
				yield(filesystem.Entry{}, fmt.Errorf("read directory %d: %w", id, err))
				return
			}
			if !yield(filesystem.Entry{Name: e.name, ID: filesystem.ID(e.ino), Type: f.entryType(e)}, nil) {
				return
			}
		}
	}
}

// Lookup implements [filesystem.FS]. Where the file system was made with ascii-ci, an exact match
// is preferred to another.
func (f *FS) Lookup(dir filesystem.ID, name string) (filesystem.ID, error) {
	folded, other, found := foldName(name), uint64(0), false
	for e, err := range f.entries(uint64(dir)) {
		if err != nil {
			return 0, fmt.Errorf("look up %q in directory %d: %w", name, dir, err)
		}
		if e.name == name {
			return filesystem.ID(e.ino), nil
		}
		if f.sb.asciiCI && !found && foldName(e.name) == folded {
			other, found = e.ino, true
		}
	}
	if !found {
		return 0, fmt.Errorf("look up %q in directory %d: %w", name, dir, filesystem.ErrNotExist)
	}
	return filesystem.ID(other), nil
}

// Streams implements [filesystem.FS]; XFS has none.
func (f *FS) Streams(filesystem.ID) ([]filesystem.Stream, error) { return nil, nil }

// OpenStream implements [filesystem.FS]; XFS has none.
func (f *FS) OpenStream(id filesystem.ID, name string) (filesystem.File, error) {
	return nil, fmt.Errorf("open stream %q of inode %d: %w", name, id, filesystem.ErrNotExist)
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", filesystem.ErrCorrupt, fmt.Sprintf(format, args...))
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%s is %w", fmt.Sprintf(format, args...), filesystem.ErrUnsupported)
}
