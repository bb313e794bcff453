package files

import (
	"encoding/binary"
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

// keep gives name in dir what the file has beside its data, as far as that was asked for. Its order
// matters: a change of owner takes away capabilities and setuid, and all but the times change the
// times. n is the zero Node for what has no attributes of its own; fd is the open file, or -1.
func (g *getter) keep(dir *target, name string, fd int, path string, n volume.Node, attr filesystem.Attr) error {
	var attrs map[string][]byte
	if n.FS != nil {
		var err error
		if attrs, err = n.FS.Xattrs(n.ID); err != nil {
			return fmt.Errorf("extended attributes: %w", err)
		}
	}
	owned := false
	if g.AsStored {
		var err error
		if owned, err = g.owner(dir, name, path, attr); err != nil {
			return err
		}
	} else {
		attrs = g.drop(n, &attr, attrs)
	}
	if attr.Mode.Type() != fs.ModeSymlink {
		if err := g.mode(dir, name, fd, path, attr, owned); err != nil {
			return err
		}
	}
	if err := g.setXattrs(dir, name, fd, path, attrs); err != nil {
		return err
	}
	times := []unix.Timespec{timespec(attr.Accessed), timespec(attr.Modified)}
	if err := unix.UtimesNanoAt(dir.fd, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set its times: %w", err)
	}
	return nil
}

// drop takes off what has power on this machine, and counts it. It returns the attributes that are
// left.
func (g *getter) drop(n volume.Node, attr *filesystem.Attr, attrs map[string][]byte) map[string][]byte {
	d := &g.report.Dropped
	if n.FS != nil && hasOwner(n, attr) && (int(attr.UID) != os.Geteuid() || int(attr.GID) != os.Getegid()) {
		g.count(&d.Owners, 1)
	}
	if attr.Mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
		g.count(&d.Setuid, 1)
		attr.Mode &^= fs.ModeSetuid | fs.ModeSetgid
	}
	left := map[string][]byte{}
	for key, value := range attrs {
		switch {
		case strings.HasPrefix(key, "user."):
			left[key] = value
		case strings.HasPrefix(key, aclPrefix):
			g.count(&d.ACLs, 1)
			if key == aclPrefix+"access" {
				attr.Mode = withoutACL(attr.Mode, value)
			}
		default:
			g.count(&d.Attributes, 1)
		}
	}
	return left
}

// hasOwner tells whether a file says whose it is: on NTFS and FAT only what Linux has stored does.
func hasOwner(n volume.Node, attr *filesystem.Attr) bool {
	return n.Volume.Type != "ntfs" && n.Volume.Type != "vfat" || attr.UID != 0 || attr.GID != 0
}

const aclPrefix = "system.posix_acl_"

// withoutACL returns the permissions of a file whose access control list, in the kernel's form, is
// taken off. With one, the bits of the group are those that anybody named in it may have at most.
func withoutACL(mode fs.FileMode, acl []byte) fs.FileMode {
	const header, entry, groupTag = 4, 8, 0x04
	for at := header; at+entry <= len(acl); at += entry {
		if binary.LittleEndian.Uint16(acl[at:]) == groupTag {
			group := fs.FileMode(binary.LittleEndian.Uint16(acl[at+2:])&7) << 3
			return mode&^0o070 | mode&group
		}
	}
	return mode &^ 0o070
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
func (g *getter) mode(dir *target, name string, fd int, path string, attr filesystem.Attr, owned bool) error {
	mode := unixMode(attr.Mode)
	if !owned && mode&0o6000 != 0 && !attr.Mode.IsDir() {
		g.lose("setuid and setgid are not kept where the owner is not", path)
		mode &^= 0o6000
	}
	err := chmod(dir, name, fd, mode)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
		g.lose("permissions are not kept, the target does not take them", path)
		return nil
	}
	if err != nil {
		return fmt.Errorf("set its permissions: %w", err)
	}
	return nil
}

// chmod changes what fd is, or where there is none what name is in dir, and never where a link
// leads that somebody has put there meanwhile.
func chmod(dir *target, name string, fd int, mode uint32) error {
	if fd >= 0 {
		return unix.Fchmod(fd, mode)
	}
	at, err := unix.Openat(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", at), mode)
}

func (g *getter) setXattrs(dir *target, name string, fd int, path string, all map[string][]byte) error {
	for _, key := range slices.Sorted(maps.Keys(all)) {
		var err error
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
