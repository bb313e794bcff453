// Package ext4 reads ext2, ext3 and ext4 file systems: files, directories, links, attributes,
// read-only.
//
// [Open] takes the device as it is, also one that was in use when it was copied: the journal and
// the fast commits after it are replayed into memory, so that reading shows what a mount would
// show, and nothing is ever written. What carries a checksum is checked when it is used, after the
// replay; a mismatch is [filesystem.ErrCorrupt]. An incompatible feature that is not known here is
// [filesystem.ErrUnsupported], as it is for the kernel, and so is a single encrypted file. Files
// that were removed while open, which a mount would delete, have no name that leads to them; those
// that it would cut have their new size already.
//
// Memory is bounded: 16 MiB of metadata, a few words for each block that the journal holds, and one
// mapping block for each open file. An [FS] and its files are safe for concurrent use. Read errors
// of the device come back as they are, wrapped.
package ext4

import (
	"fmt"
	"io"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// rootInode is the inode number of the top directory.
const rootInode = 2

// FS is an ext2, ext3 or ext4 file system.
type FS struct {
	disk  *disk
	sb    *superblock
	fast  *fastCommits // what fast commits changed; nil where there are none
	notes []string

	usedOnce sync.Once
	used     int64
}

var _ filesystem.FS = (*FS)(nil)

// Open opens the file system that begins at byte 0 of r, a device of size bytes. Its errors are
// [filesystem.ErrNotThis] where there is none, [filesystem.ErrUnsupported],
// [filesystem.ErrCorrupt], and those of r.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	d := newDisk(r, size)
	sb, err := readSuperblock(d)
	if err != nil {
		return nil, err
	}
	d.blockSize = sb.blockSize
	f := &FS{disk: d, sb: sb}
	if sb.roCompat&^knownRoCompat != 0 {
		f.note("read without knowing the read-only compatible features %#x", sb.roCompat&^knownRoCompat)
	}
	if err := f.recover(); err != nil {
		return nil, err
	}
	if f.sb.state&stateErrors != 0 {
		f.note("the kernel has found errors in it that no check has repaired")
	}
	root, err := f.inode(rootInode)
	if err != nil {
		return nil, err
	}
	if !root.isDir() {
		return nil, damaged("the top directory is not a directory")
	}
	return f, nil
}

// recover shows the file system as it is after its journal was replayed.
func (f *FS) recover() error {
	switch {
	case f.sb.incompat&incompatRecover == 0:
		return nil
	case f.sb.compat&compatHasJournal == 0:
		return damaged("recovery is needed, but there is no journal")
	case f.sb.journalInode == 0:
		return unsupported("its journal is on another device and was not written back")
	}
	if err := f.replayJournal(); err != nil {
		return fmt.Errorf("replay the journal: %w", err)
	}
	return nil
}

// reload reads the superblock again, as the journal left it.
func (f *FS) reload() error {
	sb, err := readSuperblock(f.disk)
	if err != nil {
		return err
	}
	if sb.blockSize != f.sb.blockSize {
		return damaged("the journal changes the block size")
	}
	f.sb = sb
	return nil
}

// note adds a remark for Info. It is called only while Open runs.
func (f *FS) note(format string, args ...any) {
	f.notes = append(f.notes, fmt.Sprintf(format, args...))
}

// Info says what the file system is. Used counts, as df does not, what the file system needs for
// itself.
func (f *FS) Info() filesystem.Info {
	return filesystem.Info{
		Type:  f.sb.kind(),
		Label: f.sb.label,
		UUID:  formatUUID(f.sb.uuid),
		Size:  int64(f.sb.blocks) * f.sb.blockSize,
		Used:  f.usedBytes(),
		Notes: append([]string(nil), f.notes...),
	}
}

// usedBytes trusts the superblock's count only after a clean unmount: while mounted, the kernel
// seldom writes it.
func (f *FS) usedBytes() int64 {
	f.usedOnce.Do(func() {
		free := f.sb.freeBlocks
		if f.sb.incompat&incompatRecover != 0 || f.sb.state&stateClean == 0 {
			if sum, err := f.countFree(); err == nil {
				free = sum
			}
		}
		f.used = int64(f.sb.blocks-min(free, f.sb.blocks)) * f.sb.blockSize
	})
	return f.used
}

// Root returns the ID of the top directory.
func (f *FS) Root() filesystem.ID { return rootInode }

// Streams returns nil: ext4 has none.
func (f *FS) Streams(filesystem.ID) ([]filesystem.Stream, error) { return nil, nil }

// OpenStream returns [filesystem.ErrNotExist].
func (f *FS) OpenStream(id filesystem.ID, name string) (filesystem.File, error) {
	return nil, fmt.Errorf("stream %q of inode %d: %w", name, id, filesystem.ErrNotExist)
}

// damaged returns an ErrCorrupt that says what contradicts what.
func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", filesystem.ErrCorrupt, fmt.Sprintf(format, args...))
}

// unsupported returns an ErrUnsupported that names what is not known.
func unsupported(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), filesystem.ErrUnsupported)
}
