package files

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// target is a directory that is written to, held open. Everything in it is reached by a single name
// that is no link, so that nothing that the guest made up, and nobody who changes the tree
// meanwhile, leads anywhere else.
type target struct {
	fd    int
	names []string // from the directory that everything goes to
}

// openTarget opens the directory that files go to, and makes it if its parent exists.
func openTarget(path string) (*target, error) {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make directory %s: %w", path, errors.Unwrap(err))
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", path, err)
	}
	return &target{fd: fd}, nil
}

func (t *target) close() { unix.Close(t.fd) }

// below opens the directory that names lead to.
func (t *target) below(names []string) (*target, error) {
	fd, err := unix.FcntlInt(uintptr(t.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hold a directory open: %w", err)
	}
	at := &target{fd: fd}
	for _, name := range names {
		next, err := at.open(name)
		at.close()
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

// open opens a directory in t.
func (t *target) open(name string) (*target, error) {
	fd, err := unix.Openat(t.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w, and is no directory", ErrExists)
	}
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", name, err)
	}
	return &target{fd: fd, names: append(slices.Clone(t.names), name)}, nil
}

// mkdir makes a directory; one that exists is taken if force says so.
func (t *target) mkdir(name string, force bool) (*target, error) {
	err := unix.Mkdirat(t.fd, name, 0o700)
	if errors.Is(err, unix.EEXIST) && !force {
		return nil, ErrExists
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	return t.open(name)
}

// place makes a file under another name, and gives it its own when it is complete. If anything
// fails nothing is left of it.
func (t *target) place(name string, force bool, build func(temp string) error) error {
	if !force && t.exists(name) {
		return ErrExists // before work is done in vain; rename looks again
	}
	temp := ".holdfast-" + rand.Text()[:12] + ".part"
	err := build(temp)
	if err == nil {
		err = t.rename(temp, name, force)
	}
	if err != nil {
		_ = unix.Unlinkat(t.fd, temp, 0)
	}
	return err
}

func (t *target) exists(name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(t.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

func (t *target) rename(temp, name string, force bool) error {
	flags := uint(unix.RENAME_NOREPLACE)
	if force {
		flags = 0
	}
	err := unix.Renameat2(t.fd, temp, t.fd, name, flags)
	if errors.Is(err, unix.EINVAL) && !force { // a file system that does not know the flag
		if t.exists(name) {
			return ErrExists
		}
		err = unix.Renameat2(t.fd, temp, t.fd, name, 0)
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return ErrExists
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTEMPTY):
		return fmt.Errorf("%w, and is a directory", ErrExists)
	case err != nil:
		return fmt.Errorf("give it its name: %w", err)
	}
	// Of two names of one file rename does nothing: the temporary one is left.
	if t.exists(temp) {
		_ = unix.Unlinkat(t.fd, temp, 0)
	}
	return nil
}

// packing are the file systems that may hold more than their free space: what they squeeze or share
// they know when it is written.
var packing = []int64{unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, 0x2fc12fc1 /* ZFS */, 0xca451a4e /* bcachefs */}

// free returns how many bytes of data there is room for, and whether that can be told.
func (t *target) free() (int64, bool) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(t.fd, &st); err != nil || slices.Contains(packing, int64(st.Type)) || st.Blocks == 0 {
		return 0, false
	}
	blocks := st.Bavail
	if os.Geteuid() == 0 {
		blocks = st.Bfree
	}
	return int64(min(blocks, math.MaxInt64/uint64(st.Bsize))) * st.Bsize, true
}
