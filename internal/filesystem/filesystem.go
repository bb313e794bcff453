// Package filesystem says what a file system inside a disk looks like to its readers: read-only,
// without root, mount or kernel.
//
// Its children read real ones: ext4 (and ext2, ext3), xfs, ntfs and fat, each from an [io.ReaderAt]
// and its size; partition and lvm find where on a disk they are, and volume puts all of it
// together. Whoever wrote the disk is not trusted: every length is bounded before memory is taken,
// every walk ends, and what contradicts itself is [ErrCorrupt]. What is not implemented is
// [ErrUnsupported], never guessed: bytes that are returned without an error are the bytes a mount
// would show.
package filesystem

import (
	"errors"
	"io"
	"io/fs"
	"iter"
	"time"

	"github.com/holdfast-vm/holdfast/internal/extent"
)

var (
	// ErrNotThis reports that there is no file system of this kind.
	ErrNotThis = errors.New("not a file system of this kind")
	// ErrUnsupported reports a feature that the reader does not know; the text names it.
	ErrUnsupported = errors.New("not supported")
	// ErrCorrupt reports that the file system contradicts itself or is cut off.
	ErrCorrupt = errors.New("file system is damaged")
	// ErrNotExist reports a name that is not in a directory. It is [fs.ErrNotExist].
	ErrNotExist = fs.ErrNotExist
)

// ID names a file within its file system, as an inode number does: hard links have one ID. It stays
// the same while the FS is open.
type ID uint64

// FS is one file system. Its methods are safe for concurrent use.
type FS interface {
	Info() Info
	// Root returns the ID of the top directory.
	Root() ID
	// Stat returns what is known of a file.
	Stat(id ID) (Attr, error)
	// ReadDir yields the entries of a directory in the order they are stored, without . and .. ;
	// after an error it ends.
	ReadDir(id ID) iter.Seq2[Entry, error]
	// Lookup finds a name in a directory as a mount would: exactly, but without regard to case
	// where the file system says so.
	Lookup(dir ID, name string) (ID, error)
	// ReadLink returns where a symbolic link points, as stored.
	ReadLink(id ID) (string, error)
	// Open opens the data of a regular file.
	Open(id ID) (File, error)
	// Xattrs returns the extended attributes by their full names (user.x, security.capability,
	// system.posix_acl_access in the kernel's binary form); an empty map where there are none.
	Xattrs(id ID) (map[string][]byte, error)
	// Streams returns the named data streams of an NTFS file; nil elsewhere.
	Streams(id ID) ([]Stream, error)
	// OpenStream opens a named stream.
	OpenStream(id ID, name string) (File, error)
}

// File reads the data of one file. It is safe for concurrent use and needs no closing.
type File interface {
	// ReadAt reads as [io.ReaderAt] says; holes are zeros. A block that cannot be had is an error,
	// never zeros.
	io.ReaderAt
	// Size returns the length in bytes, as the inode says.
	Size() int64
	// Extents returns the ranges that are stored, clipped at Size; all else is holes. Preallocated
	// ranges that were never written are holes.
	Extents() (extent.Set, error)
}

// Info says what a file system is.
type Info struct {
	Type  string   `json:"type"` // ext2, ext3, ext4, xfs, ntfs, vfat
	Label string   `json:"label,omitempty"`
	UUID  string   `json:"uuid,omitempty"`  // as blkid prints it
	Size  int64    `json:"size"`            // bytes of the file system
	Used  int64    `json:"used"`            // bytes in use, as it counts them itself; 0 where it does not say
	Notes []string `json:"notes,omitempty"` // in words: that a journal was replayed, that some feature was passed over
}

// Attr is what is known of a file.
type Attr struct {
	ID    ID
	Mode  fs.FileMode // type and permissions, with setuid, setgid and sticky as package fs has them
	UID   uint32
	GID   uint32
	Size  int64  // bytes
	Links uint32 // names of it
	Rdev  uint64 // of a device, as Linux's makedev packs it
	// Times with all the precision that is stored; the zero time where none is.
	Modified, Accessed, Changed, Born time.Time
}

// Entry is a name in a directory.
type Entry struct {
	Name string // in UTF-8; bytes that are not are kept as they are
	ID   ID
	Type fs.FileMode // type bits only
}

// Stream is a named stream of data beside the main one.
type Stream struct {
	Name string
	Size int64 // bytes
}
