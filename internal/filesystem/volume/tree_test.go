package volume

import (
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/memfs"
)

func ext(uuid, label string) *memfs.FS {
	return memfs.New(filesystem.Info{Type: "ext4", UUID: uuid, Label: label, Size: 1 << 30})
}

// machine is a guest of three file systems.
func machine(fstab string) *Volumes {
	root, home, inner := ext("1111-aa", "root"), ext("2222-bb", "home"), ext("3333-cc", "inner")
	for _, dir := range []string{"/etc", "/home", "/srv", "/usr", "/usr/lib", "/deep", "/deep/er"} {
		root.Dir(dir)
	}
	root.Text("/etc/fstab", fstab)
	root.Text("/home/underneath", "")
	root.Text("/usr/lib/x", "x")
	root.Link("/lib", "usr/lib")
	root.Link("/abs", "/home/user")
	root.Link("/up", "../../../../etc/fstab")
	root.Link("/loop", "pool")
	root.Link("/pool", "loop")
	root.Link("/mnt", "/srv")
	home.Dir("/user")
	home.Text("/user/file", "in home")
	home.Link("/user/out", "../../etc")
	home.Link("/user/root", "/etc/fstab")
	home.Dir("/user/inner")
	inner.Text("/leaf", "leaf")
	v := &Volumes{List: []*Volume{Of("vda1", root), Of("vda2", home), Of("vg-0/in", inner)},
		disks: []Disk{{Name: "vda"}}}
	v.List[0].PartUUID, v.List[1].PartLabel = "c0ffee-01", "Home Data"
	return v
}

const fstab = "# comment\n\nUUID=1111-AA / ext4 defaults 0 1\nLABEL=home\t/home ext4\n/dev/mapper/vg--0-in " +
	"/home/user/inner ext4 defaults\n" +
	"tmpfs /srv tmpfs size=1G\nproc /proc proc\n/etc /deep none bind\nUUID=1111-aa /deep/er ext4 noauto\n"

// Paths mean what they mean in the machine: links within it, across mounts, and never above its
// root.
func TestResolve(t *testing.T) {
	g, err := machine(fstab).Guest()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, volume, data string // data "" is a directory
		err                error
	}{
		{"/", "vda1", "", nil},
		{"", "vda1", "", nil},
		{"/lib/x", "vda1", "x", nil},
		{"//lib/./x", "vda1", "x", nil},
		{"/home/user/file", "vda2", "in home", nil},
		{"/home/underneath", "", "", filesystem.ErrNotExist},
		{"/abs/file", "vda2", "in home", nil},
		{"/home/user/inner/leaf", "vg-0/in", "leaf", nil},
		{"/home/user/inner/../file", "vda2", "in home", nil},
		{"/home/..", "vda1", "", nil},
		{"/../../..", "vda1", "", nil},
		{"/up", "vda1", fstab, nil},
		{"/home/user/out/fstab", "vda1", fstab, nil},
		{"/home/user/root", "vda1", fstab, nil},
		{"/abs/../../etc/fstab", "vda1", fstab, nil},
		{"/loop", "", "", ErrLoop},
		{"/loop/x", "", "", ErrLoop},
		{"/etc/fstab/x", "", "", filesystem.ErrNotExist},
		{"/none", "", "", filesystem.ErrNotExist},
		{"/mnt/", "vda1", "", nil},
		{strings.Repeat("/etc/..", 40_000), "", "", ErrLoop},
	} {
		n, err := g.Resolve(tt.path, true)
		if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
			t.Errorf("%.60s: %v, want %v", tt.path, err, tt.err)
			continue
		}
		if err != nil {
			continue
		}
		attr, err := n.Stat()
		if err != nil || n.Volume.Name != tt.volume || attr.Mode.IsDir() != (tt.data == "") {
			t.Errorf("%s: on %s, %+v, %v", tt.path, n.Volume.Name, attr, err)
		}
		if f, err := n.FS.Open(n.ID); tt.data != "" {
			got := make([]byte, f.Size())
			if f.ReadAt(got, 0); err != nil || string(got) != tt.data {
				t.Errorf("%s: %q, %v", tt.path, got, err)
			}
		}
	}
	if n, err := g.Resolve("/abs", false); err != nil {
		t.Error(err)
	} else if attr, _ := n.Stat(); attr.Mode.Type() != fs.ModeSymlink {
		t.Errorf("/abs itself: %+v", attr)
	}
	var mounts []string
	for _, m := range g.Mounts {
		mounts = append(mounts, m.Path+"="+m.Volume.Name)
	}
	if got := strings.Join(mounts, " "); got != "/=vda1 /home=vda2 /home/user/inner=vg-0/in" || len(g.Notes) != 0 {
		t.Errorf("mounts %s, notes %q", got, g.Notes)
	}
}

// A mount that cannot be had says why, for whatever is below it, and is never taken for an empty
// directory.
func TestMountsThatAreNotThere(t *testing.T) {
	for _, tt := range []struct {
		name, line, text string // text "" means that /home/underneath is what the machine shows
	}{
		{"unknown", "UUID=9999 /home ext4 defaults", "UUID=9999 is on no disk"},
		{"not missed", "UUID=9999 /home ext4 nofail", ""},
		{"of another machine", "server:/export /home nfs4 defaults", "of another machine"},
		{"no device", "zpool/home /home zfs defaults", "no device of a disk"},
		{"by slot", "/dev/disk/by-path/pci-0000:00:05.0-part9 /home ext4 defaults", "on no disk"},
		{"no directory", "LABEL=home /none ext4 defaults", ""},
		{"on a file", "LABEL=home /etc/fstab ext4 defaults", ""},
		{"mounted already", "LABEL=root /home ext4 defaults", ""},
		{"not at start", "LABEL=home /home ext4 noauto", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, err := machine("UUID=1111-aa / ext4\n" + tt.line + "\n").Guest()
			if err != nil {
				t.Fatal(err)
			}
			_, err = g.Resolve("/home/underneath", true)
			if tt.text == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrNotMounted) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v, want something of %q", err, tt.text)
			}
		})
	}
	v := machine("LABEL=root / ext4\nLABEL=home /home ext4\n")
	v.List[1].open = failing(filesystem.ErrCorrupt)
	g, err := v.Guest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Resolve("/home/user", true); !errors.Is(err, filesystem.ErrCorrupt) ||
		!errors.Is(err, ErrNotMounted) {
		t.Errorf("below a file system that is damaged: %v", err)
	}
}

// Of several that look like one, the root is the one whose own fstab says so.
func TestFindRoot(t *testing.T) {
	old := ext("old", "old")
	old.Dir("/etc")
	old.Text("/etc/fstab", "UUID=1111-aa / ext4\n") // a copy of the root's
	v := machine(fstab)
	v.List = append([]*Volume{Of("vdb", old)}, v.List...)
	if g, err := v.Guest(); err != nil || g.Mounts[0].Volume.Name != "vda1" {
		t.Errorf("%+v, %v", g, err)
	}

	image := ext("x", "")
	image.Dir("/usr")
	image.Dir("/usr/lib")
	image.Text("/usr/lib/os-release", "ID=debian\n")
	if g, err := (&Volumes{List: []*Volume{Of("vda", image)}}).Guest(); err != nil || g.Windows {
		t.Errorf("an image without an fstab: %+v, %v", g, err)
	}
	windows := memfs.New(filesystem.Info{Type: "ntfs"})
	windows.Dir("/Windows")
	windows.Dir("/Windows/System32")
	if g, err := (&Volumes{List: []*Volume{Of("vda2", windows)}}).Guest(); err != nil || !g.Windows {
		t.Errorf("Windows: %+v, %v", g, err)
	}
	if g, err := (&Volumes{List: []*Volume{Of("vda", ext("data", ""))}}).Guest(); !errors.Is(err, ErrNoGuest) {
		t.Errorf("a disk of data: %+v, %v", g, err)
	}
	broken := machine(fstab)
	broken.List[0].open = failing(filesystem.ErrCorrupt)
	if g, err := broken.Guest(); !errors.Is(err, ErrNoGuest) || !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("a root that is damaged: %+v, %v", g, err)
	}
}

// All that fstab can call a volume.
func TestSource(t *testing.T) {
	v := machine(fstab)
	v.disks = []Disk{{Name: "vda"}, {Name: "vdb"}, {Name: "nvme0n1"}}
	v.List = append(v.List, Of("vdb", ext("4444", "with space")), Of("nvme0n1p2", ext("5555", "")),
		Of("vdb1", ext("1111-aa", "twice")))
	for spec, want := range map[string]string{
		"UUID=2222-bb": "vda2", "UUID=2222-BB": "vda2", `UUID="2222-bb"`: "vda2", "LABEL=home": "vda2", "PARTUUID=C0FFEE-01": "vda1",
		"PARTLABEL=Home Data": "vda2", "/dev/vda2": "vda2", "/dev/sda2": "vda2", "/dev/xvda2": "vda2",
		"/dev/sdb": "vdb", "/dev/nvme0n1p2": "nvme0n1p2",
		"/dev/sdc2": "nvme0n1p2", "/dev/mapper/vg--0-in": "vg-0/in", "/dev/vg-0/in": "vg-0/in",
		"/dev/disk/by-uuid/2222-bb":         "vda2",
		"/dev/disk/by-label/with\\x20space": "vdb", "/dev/disk/by-partlabel/Home\\x20Data": "vda2",
		"/dev/disk/by-id/dm-name-vg--0-in": "vg-0/in",
		"UUID=1111-aa":                     "", "UUID=": "", "LABEL=none": "", "/dev/sdz1": "", "/dev/sda": "",
		"/dev/sda0": "", "rootfs": "", "/dev/nvme1n1": "vdb",
		"/dev/disk/by-id/virtio-1234-part1": "",
	} {
		vol, err := v.source(spec)
		got := ""
		if vol != nil {
			got = vol.Name
		}
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s is %q (%v), want %q", spec, got, err, want)
		}
	}
	v.disks = v.disks[:1]
	if vol, err := v.source("/dev/disk/by-id/virtio-1234-part1"); err != nil || vol.Name != "vda1" {
		t.Errorf("a partition of the only disk: %v, %v", vol, err)
	}
}

func failing(err error) func(io.ReaderAt, int64) (filesystem.FS, error) {
	return func(io.ReaderAt, int64) (filesystem.FS, error) { return nil, err }
}

func FuzzFstab(f *testing.F) {
	f.Add(fstab)
	f.Add("LABEL=a\\040b /x\\011y ext4 bind,noauto 0 0\nUUID=\"1\" / x\n/dev/nvme0n1p1 /y z\n/dev/disk/by-id/x-part1 " +
		"/z q")
	f.Fuzz(func(t *testing.T, text string) {
		v := machine(text)
		for _, e := range parseFstab([]byte(text)) {
			if !strings.HasPrefix(e.file, "/") {
				t.Fatalf("%+v", e)
			}
			if vol, err := v.source(e.spec); (vol == nil) == (err == nil) {
				t.Fatalf("%q: %v, %v", e.spec, vol, err)
			}
		}
		g, err := v.Guest()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range g.Mounts {
			if _, err := g.Resolve(m.Path, true); (err == nil) != (m.Err == nil) && !errors.Is(err, ErrNotMounted) {
				t.Fatalf("%s: %v, %v", m.Path, err, m.Err)
			}
		}
	})
}
