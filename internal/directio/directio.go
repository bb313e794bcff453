// Package directio writes large files past the page cache.
//
// Filling an image through the cache copies every byte once more, keeps one writer of a file
// waiting for the other, pushes out of memory what the machines of a host need, and leaves the disk
// idle until the kernel begins to write. A [File] writes what is aligned straight to the disk, and
// everything else, or everything where the file system knows no other way, through the cache. Both
// reach the same file; Sync makes both durable.
package directio

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/extent"
)

// Align is what offset, length and address of a write must be multiples of to go past the cache, in
// bytes. No disk in use has larger blocks.
const Align = 4096

// Buffer returns n bytes at an address that is a multiple of [Align].
func Buffer(n int) []byte {
	raw := make([]byte, n+Align)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(raw))) & (Align - 1))
	return raw[skip : skip+n : skip+n]
}

// File is a file that is being filled. WriteAt may be called by many goroutines at once.
type File struct {
	*os.File          // through the cache
	direct   *os.File // past it; nil where that cannot be
	off      atomic.Bool
}

// Create makes a file of the permissions 0600 at path, which must not exist.
func Create(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return On(f), nil
}

// On returns f, a regular file or block device that is open for writing, as a File that owns it.
func On(f *os.File) *File {
	direct, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		direct = nil
	}
	return &File{File: f, direct: direct}
}

// worthReserving is the length from which on reserving is cheaper than allocating with the write.
const worthReserving = 256 << 10

// Reserve allocates the long ones of the ranges, so that many writers do not wait for one another
// to allocate, and most of a full disk is noticed before anything is written. Where the file system
// cannot, nothing is done. The file must be long enough.
func (f *File) Reserve(data extent.Set) error {
	for _, e := range data {
		if e.Len < worthReserving {
			continue
		}
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, e.Off, e.Len)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			return nil
		}
		if err != nil {
			return &os.PathError{Op: "reserve", Path: f.Name(), Err: err}
		}
	}
	return nil
}

// WriteAt implements [io.WriterAt].
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if f.direct == nil || f.off.Load() || !aligned(p, off) {
		return f.File.WriteAt(p, off)
	}
	n, err := f.direct.WriteAt(p, off)
	if errors.Is(err, unix.EINVAL) { // it wants more than we gave it
		f.off.Store(true)
		return f.File.WriteAt(p, off)
	}
	return n, err
}

func aligned(p []byte, off int64) bool {
	return len(p) > 0 && (uintptr(unsafe.Pointer(unsafe.SliceData(p)))|uintptr(len(p))|uintptr(off))%Align == 0
}

// Close closes the file. What was written is durable only after Sync.
func (f *File) Close() error {
	err := f.File.Close()
	if f.direct != nil {
		err = errors.Join(err, f.direct.Close())
	}
	return err
}
