package diskimage

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// QEMU locks one byte of an image per permission that it uses, and one per permission that it
// grants nobody else, by locks of open file descriptions (block/file-posix.c). All its locks are
// shared; a conflict is found by asking.
const (
	lockUsed   = 100
	lockDenied = 200

	permRead   = 0 // consistent read
	permWrite  = 1
	permResize = 3
)

// lockShared locks f as QEMU does what it reads, and fails with ErrInUse if somebody may write it.
func lockShared(f *os.File) error {
	return lock(f, []int64{permRead}, []int64{permWrite, permResize})
}

// lockWhole locks f as QEMU does what it writes and shares with nobody; ErrInUse if somebody uses
// it in any way. Only for files open for writing and reading.
func lockWhole(f *os.File) error {
	return lock(f, []int64{permRead, permWrite, permResize}, []int64{permRead, permWrite, permResize})
}

func lock(f *os.File, use, deny []int64) error {
	for _, p := range use {
		if err := lockByte(f, lockUsed+p); err != nil {
			return err
		}
	}
	for _, p := range deny {
		if err := lockByte(f, lockDenied+p); err != nil {
			return err
		}
	}
	for _, p := range use {
		if err := lockFree(f, lockDenied+p); err != nil {
			return err
		}
	}
	for _, p := range deny {
		if err := lockFree(f, lockUsed+p); err != nil {
			return err
		}
	}
	return nil
}

// lockByte takes a shared lock of one byte. A file system without such locks has none of QEMU's
// either.
func lockByte(f *os.File, at int64) error {
	l := unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
	switch {
	case err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOLCK):
		return nil
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w by another process that has locked it", ErrInUse)
	}
	return fmt.Errorf("lock byte %d: %w", at, err)
}

// lockFree returns ErrInUse if another process has locked the byte.
func lockFree(f *os.File, at int64) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l)
	if err == nil && l.Type != unix.F_UNLCK {
		return fmt.Errorf("%w by another process, such as a running machine", ErrInUse)
	}
	return nil
}
