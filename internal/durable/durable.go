// Package durable is the little of a file system that survives power loss when used rightly.
//
// An [FS] promises what POSIX does and no more: the bytes of a file are safe after [File.Sync], a
// name is safe after [FS.SyncDir] of the directory that holds it, and neither implies the other.
// [OS] is the real thing. [Crashable] keeps everything in memory, loses power at a chosen call, and
// shows what could be found afterwards; code that passes on it relies on nothing that a disk does
// not promise.
//
// Errors match [io/fs.ErrExist], [io/fs.ErrNotExist] and the errno of the system call. An FS is
// safe for concurrent use; a File is not. Paths are absolute.
package durable

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// FS is a file system.
type FS interface {
	// Create makes a new, empty file of mode 0600 and fails with fs.ErrExist if the name is taken.
	// The file is held until it is closed: RemoveAbandoned, in whichever process, leaves it alone.
	Create(name string) (File, error)
	// Open opens a file for reading. A directory is EISDIR.
	Open(name string) (Reader, error)
	// Link gives a file another name. It fails with fs.ErrExist if the new name is taken.
	Link(from, to string) error
	// RenameNew renames a file and fails with fs.ErrExist if the new name is taken.
	RenameNew(from, to string) error
	// Replace renames a file over what has the new name. One of both has the name at every instant.
	Replace(from, to string) error
	// Remove removes a file. A directory is EISDIR.
	Remove(name string) error
	// RemoveAbandoned removes a file that nobody holds and reports whether it did.
	RemoveAbandoned(name string) (bool, error)
	// Mkdir makes one directory, of mode 0700.
	Mkdir(name string) error
	// SyncDir makes the names in a directory, and the absence of those removed from it, survive
	// power loss.
	SyncDir(name string) error
	// Stat describes a file or directory.
	Stat(name string) (Info, error)
	// ReadDir returns the regular files and directories in a directory, in no particular order.
	ReadDir(name string) ([]Entry, error)
}

// File is a file being written. Every Write appends.
type File interface {
	io.Writer
	io.Closer
	// SetReadOnly takes away the permission to open the file for writing; this File can still be
	// written.
	SetReadOnly() error
	// Sync makes the file's bytes and size survive power loss, but not its name.
	// After an error the bytes are lost: a later Sync that succeeds proves nothing.
	Sync() error
}

// WriteBacker is a [File] that can begin to write bytes to disk early, so that Sync has less to
// wait for.
type WriteBacker interface {
	// StartWriteBack begins to write n bytes from offset off. It promises nothing.
	StartWriteBack(off, n int64)
}

// Reader is a file open for reading. It is safe for concurrent use.
type Reader interface {
	io.ReaderAt
	io.Closer
	// Stat describes the open file, which may have no name any more.
	Stat() (Info, error)
}

// Info describes a file or directory.
type Info struct {
	Size  int64 // bytes
	Dir   bool
	Links int // names of the file; 0 once the last has been removed
}

// Entry is a name in a directory.
type Entry struct {
	Name string
	Dir  bool
}

const (
	tempPrefix = "hf-"
	tempSuffix = ".tmp"
)

// CreateTemp creates a file in dir under a name that [Sweep] recognises, and returns it with its
// path.
func CreateTemp(fsys FS, dir string) (File, string, error) {
	for {
		var random [8]byte
		rand.Read(random[:])
		name := fmt.Sprintf("%s%d-%s%s", tempPrefix, os.Getpid(), hex.EncodeToString(random[:]), tempSuffix)
		path := filepath.Join(dir, name)
		f, err := fsys.Create(path)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		return f, path, err
	}
}

// Hidden reports whether a name is one that a network file system, or FUSE, gives to a file that
// was removed while it was open, until it is closed. It stays if the client dies before.
func Hidden(name string) bool {
	return strings.HasPrefix(name, ".nfs") || strings.HasPrefix(name, ".fuse_hidden")
}

// Sweep removes the files of [CreateTemp] in dir whose owner has died, and returns how many. Those
// of living processes, on whichever host, stay; on a file system without locks all stay.
func Sweep(fsys FS, dir string) (int, error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	removed := 0
	for _, e := range entries {
		ours := strings.HasPrefix(e.Name, tempPrefix) && strings.HasSuffix(e.Name, tempSuffix)
		if e.Dir || !ours && !Hidden(e.Name) {
			continue
		}
		gone, err := fsys.RemoveAbandoned(filepath.Join(dir, e.Name))
		if err != nil {
			return removed, err
		}
		if gone {
			removed++
		}
	}
	return removed, nil
}

// Publish moves a temporary file to its final name and fails with fs.ErrExist, leaving both alone,
// if that is taken. The caller has synced the file before and syncs the directory of the final name
// afterwards.
//
// A network file system repeats a call whose answer was lost, and then says that the name is taken
// although it was this file that took it. Nobody else links the file, so two names tell, or that
// its old name is gone. Both are asked of an open file: what a network file system knows of others
// may be old.
func Publish(fsys FS, temp, name string) error {
	err := fsys.Link(temp, name)
	if errors.Is(err, fs.ErrExist) && names(fsys, temp) > 1 {
		err = nil
	}
	switch {
	case err == nil:
		// What stays here has another name, costs no space, and is swept later.
		_ = fsys.Remove(temp)
		return nil
	case noLinks(err):
		return publishByRename(fsys, temp, name)
	default:
		return err
	}
}

func publishByRename(fsys FS, temp, name string) error {
	err := fsys.RenameNew(temp, name)
	if !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if names(fsys, temp) == 0 && names(fsys, name) > 0 {
		return nil
	}
	return err
}

// names returns how many names a file has, 0 if it is known that there is no such file, and -1 if
// it is not known.
func names(fsys FS, name string) int {
	r, err := fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	if err != nil {
		return -1
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return -1
	}
	return info.Links
}

// noLinks reports whether an error of Link says that the file system cannot make this link but
// might rename.
func noLinks(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EMLINK} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// WriteNew writes a new file that is there whole, or not at all, whenever power fails; once it
// returns nil the file survives. It fails with fs.ErrExist if the name is taken. The directory must
// exist.
func WriteNew(fsys FS, name string, data []byte) error {
	return writeFile(fsys, name, data, func(temp string) error { return Publish(fsys, temp, name) })
}

// WriteReplace writes a file in place of the one that has the name, if any. Whenever power fails,
// the old or the new one is there, whole; once it returns nil the new one survives. The directory
// must exist.
func WriteReplace(fsys FS, name string, data []byte) error {
	return writeFile(fsys, name, data, func(temp string) error { return fsys.Replace(temp, name) })
}

func writeFile(fsys FS, name string, data []byte, publish func(temp string) error) error {
	f, temp, err := CreateTemp(fsys, filepath.Dir(name))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = publish(temp)
	}
	if err != nil {
		return errors.Join(err, discard(fsys, temp))
	}
	return fsys.SyncDir(filepath.Dir(name))
}

// discard removes a temporary file if it is still there.
func discard(fsys FS, temp string) error {
	if err := fsys.Remove(temp); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ReadFile returns the whole file.
func ReadFile(fsys FS, name string) ([]byte, error) {
	r, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, info.Size)
	n, err := r.ReadAt(data, 0)
	if err == io.EOF {
		err = nil
	}
	return data[:n], err
}

// MkdirAll makes a directory and the parents it lacks. Once it returns nil they survive power loss.
func MkdirAll(fsys FS, dir string) error {
	parent := filepath.Dir(dir)
	if parent == dir {
		return nil
	}
	info, err := fsys.Stat(dir)
	existed := err == nil
	if existed && !info.Dir {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	}
	if err := MkdirAll(fsys, parent); err != nil {
		return err
	}
	if !existed {
		if err := fsys.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// Also what was there already may have been made a moment ago by a process that has not synced
	// it yet. Where its parent is not ours to sync, it was not us who made it.
	err = fsys.SyncDir(parent)
	if existed && (errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) ||
		errors.Is(err, syscall.EINVAL)) {
		return nil
	}
	return err
}
