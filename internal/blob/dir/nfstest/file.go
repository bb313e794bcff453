package nfstest

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// file is an open file.
type file struct {
	c      *client
	h      *handle
	fd     int
	writes bool
}

var (
	_ fs.FileReader   = (*file)(nil)
	_ fs.FileWriter   = (*file)(nil)
	_ fs.FileReleaser = (*file)(nil)
	_ fs.FileSetlker  = (*file)(nil)
	_ fs.FileSetlkwer = (*file)(nil)
	_ fs.FileGetlker  = (*file)(nil)
)

// Read implements [fs.FileReader]. A file that another client has removed is a stale handle.
func (f *file) Read(_ context.Context, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return nil, errnoOf(err)
	}
	if st.Nlink == 0 {
		return nil, unix.ESTALE
	}
	n, err := unix.Pread(f.fd, p, off)
	return fuse.ReadResultData(p[:max(n, 0)]), errnoOf(err)
}

// Write implements [fs.FileWriter].
func (f *file) Write(_ context.Context, p []byte, off int64) (uint32, syscall.Errno) {
	n, err := unix.Pwrite(f.fd, p, off)
	f.c.s.mu.Lock()
	defer f.c.s.mu.Unlock()
	f.h.attr = nil
	return uint32(max(n, 0)), errnoOf(err)
}

// Release implements [fs.FileReleaser].
func (f *file) Release(context.Context) syscall.Errno {
	err := unix.Close(f.fd)
	f.c.s.mu.Lock()
	defer f.c.s.mu.Unlock()
	f.h.opens--
	if d := f.h.sillyDir; f.h.opens == 0 && d != nil {
		f.h.sillyDir = nil
		if gone := unix.Unlinkat(d.fd, f.h.sillyName, 0); gone != nil && gone != unix.ENOENT {
			return errnoOf(gone)
		}
		f.h.attr = nil
		f.c.changed(d)
	}
	return errnoOf(err)
}

// Setlk implements [fs.FileSetlker].
func (f *file) Setlk(_ context.Context, _ uint64, lk *fuse.FileLock, _ uint32) syscall.Errno {
	how := unix.LOCK_UN
	switch lk.Typ {
	case unix.F_RDLCK:
		how = unix.LOCK_SH
	case unix.F_WRLCK:
		how = unix.LOCK_EX
		if !f.writes {
			return unix.EBADF
		}
	}
	return errnoOf(unix.Flock(f.fd, how|unix.LOCK_NB))
}

// Setlkw implements [fs.FileSetlkwer]. Nobody here waits for a lock.
func (f *file) Setlkw(ctx context.Context, owner uint64, lk *fuse.FileLock, flags uint32) syscall.Errno {
	return f.Setlk(ctx, owner, lk, flags)
}

// Getlk implements [fs.FileGetlker].
func (f *file) Getlk(context.Context, uint64, *fuse.FileLock, uint32, *fuse.FileLock) syscall.Errno {
	return unix.ENOSYS
}
