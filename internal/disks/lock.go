package disks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Locks are those of fcntl(2) that belong to an open file: they can be asked for without being
// taken.

// Locks of a disk. The one of work is held for each single step that changes record or image, the
// one of hydration as long as a process serves the export that the disk stands on.
const (
	workLock    = ".lock"
	hydrateLock = ".hydrate"
)

// lock takes a lock of a disk, or returns ErrBusy. It ends with unlock, or with the process.
func (p *Pool) lock(name, kind string) (unlock func(), err error) {
	path := filepath.Join(p.dir, recordDir, name+kind)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock disk %s: %w", name, err)
		}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
			f.Close()
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
				return nil, fmt.Errorf("disk %s: %w", name, ErrBusy)
			}
			return nil, fmt.Errorf("lock disk %s: %w", name, err)
		}
		if isNamed(f, path) {
			return func() { f.Close() }, nil
		}
		f.Close() // the disk was deleted between the two, and its lock with it
	}
}

// Whoever fills a disk takes the lock of work for moments, to record how far it is: others wait for
// that, for so long.
const (
	fillerPatience = 5 * time.Second
	fillerPause    = 10 * time.Millisecond
)

// lockBetween takes the lock of work, if need be between two moments of a process that fills the
// disk.
func (p *Pool) lockBetween(name string) (unlock func(), err error) {
	for began := time.Now(); ; time.Sleep(fillerPause) {
		unlock, err := p.lock(name, workLock)
		if !errors.Is(err, ErrBusy) || !p.held(name, hydrateLock) || time.Since(began) > fillerPatience {
			return unlock, err
		}
	}
}

func isNamed(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// held reports whether a living process has a lock of a disk.
func (p *Pool) held(name, kind string) bool {
	f, err := os.Open(filepath.Join(p.dir, recordDir, name+kind))
	if err != nil {
		return false
	}
	defer f.Close()
	found := unix.Flock_t{Type: unix.F_RDLCK}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &found) == nil && found.Type != unix.F_UNLCK
}

// dropLocks removes the lock files of a disk that is deleted; the caller has the locks.
func (p *Pool) dropLocks(name string) error {
	var all error
	for _, kind := range []string{workLock, hydrateLock} {
		if err := os.Remove(filepath.Join(p.dir, recordDir, name+kind)); err != nil && !errors.Is(err, os.ErrNotExist) {
			all = errors.Join(all, err)
		}
	}
	return all
}
