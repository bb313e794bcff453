package files

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// keep gives name in dir what the file has beside its data. Its order matters: a change of owner
// takes away capabilities and setuid, and all but the times change the times. n is the zero Node
// for what has no attributes of its own; fd is the open file, or -1.
func (g *getter) keep(dir *target, name string, fd int, path string, n volume.Node, attr filesystem.Attr) error {
	link := attr.Mode.Type() == fs.ModeSymlink
	owned, err := g.owner(dir, name, path, attr)
	if err != nil {
		return err
	}
	if !link {
		if err := g.mode(dir, name, path, attr, owned); err != nil {
			return err
		}
	}
	if n.FS != nil {
		if err := g.xattrs(dir, name, fd, path, n); err != nil {
			return err
		}
	}
	times := []unix.Timespec{timespec(attr.Accessed), timespec(attr.Modified)}
	if err := unix.UtimesNanoAt(dir.fd, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set its times: %w", err)
	}
	return nil
}

func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// owner reports whether the file has its own owner and group.
func (g *getter) owner(dir *target, name, path string, attr filesystem.Attr) (bool, error) {
	if !g.root {
		if int(attr.UID) == os.Geteuid() && int(attr.GID) == os.Getegid() {
			return true, nil
		}
		g.lose("owners are not kept, only root can set them", path)
		return false, nil
	}
	err := unix.Fchownat(dir.fd, name, int(attr.UID), int(attr.GID), unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		g.lose("owners are not kept, the target does not take them", path)
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("set its owner: %w", err)
	}
	return true, nil
}

// mode sets the permissions. A file that is not its owner's must not run as whoever it belongs to
// now.
func (g *getter) mode(dir *target, name, path string, attr filesystem.Attr, owned bool) error {
	mode := unixMode(attr.Mode)
	if !owned && mode&0o6000 != 0 && !attr.Mode.IsDir() {
		g.lose("setuid and setgid are not kept where the owner is not", path)
		mode &^= 0o6000
	}
	// The name is one that we have just made, in a directory that we hold: no link.
	err := unix.Fchmodat(dir.fd, name, mode, 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
		g.lose("permissions are not kept, the target does not take them", path)
		return nil
	}
	if err != nil {
		return fmt.Errorf("set its permissions: %w", err)
	}
	return nil
}

func (g *getter) xattrs(dir *target, name string, fd int, path string, n volume.Node) error {
	all, err := n.FS.Xattrs(n.ID)
	if err != nil {
		return fmt.Errorf("extended attributes: %w", err)
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if fd >= 0 {
			err = unix.Fsetxattr(fd, key, all[key], 0)
		} else {
			err = unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", dir.fd, name), key, all[key], 0)
		}
		if err == nil {
			continue
		}
		if fatal(err) && !errors.Is(err, unix.ENOSPC) { // no space for attributes is a limit of their own
			return fmt.Errorf("set extended attribute %s: %w", key, err)
		}
		space, _, _ := strings.Cut(key, ".")
		g.lose(fmt.Sprintf("extended attributes %s.* are not kept (%v)", space, err), path)
	}
	return nil
}
