package files

import (
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/memfs"
)

// acl is an access control list in the kernel's form: of the owner, user 1000, the group with some
// permissions, a mask, and others.
func acl(group, mask uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 7, ^uint32(0)}, {2, 7, 1000}, {4, uint32(group), ^uint32(0)},
		{16, uint32(mask), ^uint32(0)}, {32, 0, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

// What a guest says of its files gives nobody power on this machine, unless that was asked for; and
// the report counts what was dropped.
func TestGetDropsWhatHasPower(t *testing.T) {
	f := newFS("ext4")
	attr := func(mode fs.FileMode) filesystem.Attr { return filesystem.Attr{Mode: mode, UID: 1000, GID: 1000} }
	root := func(mode fs.FileMode) filesystem.Attr { return filesystem.Attr{Mode: mode} }
	f.Add("/d", memfs.File{Attr: attr(fs.ModeDir | fs.ModeSetgid | fs.ModeSticky | 0o775)})
	f.Add("/d/suid", memfs.File{Attr: attr(fs.ModeSetuid | fs.ModeSetgid | 0o755), Data: []byte("x")})
	f.Add("/d/root", memfs.File{Attr: root(fs.ModeSetuid | 0o755), Data: []byte("x"), Attrs: map[string][]byte{
		"security.capability": {1}, "trusted.overlay.opaque": []byte("y"), "user.note": []byte("kept"),
		"system.nfs4_acl": {1}}})
	f.Add("/d/acl", memfs.File{Attr: attr(0o674), Attrs: map[string][]byte{"system.posix_acl_access": acl(5, 7)}})
	f.Add("/d/mask", memfs.File{Attr: attr(0o640), Attrs: map[string][]byte{"system.posix_acl_access": acl(6, 4),
		"system.posix_acl_default": acl(7, 7)}})
	f.Add("/d/disk", memfs.File{Attr: root(fs.ModeDevice | 0o666)})
	f.Add("/d/null", memfs.File{Attr: filesystem.Attr{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Links: 2}})
	f.Add("/d/link", memfs.File{Attr: attr(fs.ModeSymlink | 0o777), Target: "root"})
	f.Add("/d/fifo", memfs.File{Attr: root(fs.ModeNamedPipe | fs.ModeSetgid | 0o600)})

	to := t.TempDir()
	r, err := get(t, opened(f), to, "vda1:/d")
	if err != nil {
		t.Fatal(err)
	}
	want := Dropped{Owners: 5, Setuid: 4, Devices: 2, ACLs: 3, Attributes: 3}
	if os.Geteuid() == 1000 {
		want.Owners = 3
	}
	if r.Dropped != want || r.Files != 4 || r.Others != 2 || len(r.Warnings) != 0 {
		t.Errorf("%+v, want dropped %+v", r, want)
	}
	for name, mode := range map[string]uint32{"d": unix.S_IFDIR | 0o1775, "d/suid": unix.S_IFREG | 0o755,
		"d/root": unix.S_IFREG | 0o755,
		"d/acl":  unix.S_IFREG | 0o654, "d/mask": unix.S_IFREG | 0o640, "d/link": unix.S_IFLNK | 0o777,
		"d/fifo": unix.S_IFIFO | 0o600} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(to, name), &st); err != nil || st.Mode != mode ||
			int(st.Uid) != os.Geteuid() {
			t.Errorf("%s: mode %o, owner %d, %v", name, st.Mode, st.Uid, err)
		}
		buf := make([]byte, 1000)
		n, err := unix.Llistxattr(filepath.Join(to, name), buf)
		if got := string(buf[:max(n, 0)]); err != nil || got != "" && got != "user.note\x00" ||
			(got == "") == (name == "d/root") {
			t.Errorf("%s: attributes %q, %v", name, got, err)
		}
	}
	if slices.ContainsFunc(left(t, to), func(s string) bool {
		return strings.Contains(s, "null") || strings.Contains(s, "disk")
	}) {
		t.Errorf("%q", left(t, to))
	}
}

// File systems that know no owners have none to drop.
func TestNoOwnersToDrop(t *testing.T) {
	for _, kind := range []string{"ntfs", "vfat"} {
		f := newFS(kind)
		f.Text("/x", "")
		f.Add("/wsl", memfs.File{Attr: filesystem.Attr{Mode: 0o600, UID: 4242}})
		p := opened(f)
		r, err := get(t, p, t.TempDir(), "vda1:/x", "vda1:/wsl")
		if err != nil || r.Dropped.Owners != 1 {
			t.Errorf("%s: %+v, %v", kind, r, err)
		}
	}
}
