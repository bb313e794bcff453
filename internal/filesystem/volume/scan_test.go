package volume

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/filesystemtest"
	"github.com/holdfast-vm/holdfast/internal/filesystem/lvm"
)

const mebi = 1 << 20

// made returns a new disk of size bytes that a command has written to; %s in it is the disk.
func made(t *testing.T, size int64, command string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-ec", strings.ReplaceAll(command, "%s", path)).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func disk(name string, data []byte) Disk {
	return Disk{Name: name, Size: int64(len(data)), Reader: bytes.NewReader(data)}
}

func put(size int64, at map[int64]string) []byte {
	data := make([]byte, size)
	for off, s := range at {
		copy(data[off:], s)
	}
	return data
}

const md = "\xfc\x4e\x2b\xa9"

func le64(n uint64) string { return string(binary.LittleEndian.AppendUint64(nil, n)) }

// What is not read is told by its name, and nothing that wraps a file system is taken for one.
func TestRecognised(t *testing.T) {
	extra := put(4*mebi, map[int64]string{1024 + 56: "\x53\xef"}) // an ext superblock, as a RAID 1 member shows one
	over := func(at map[int64]string) []byte {
		out := bytes.Clone(extra)
		for off, s := range at {
			copy(out[off:], s)
		}
		return out
	}
	end := int64(4 * mebi)
	for _, tt := range []struct {
		kind string
		data []byte
		is   error
		text string
	}{
		{"swap", made(t, mebi, "mkswap -q -L scratch -U 01234567-89ab-cdef-0123-456789abcdef %s"), ErrNoFiles, "swap"},
		{"ntfs", put(mebi, map[int64]string{3: "NTFS    "}), nil, ""},
		{"vfat", made(t, 4*mebi, "mkfs.vfat -n LABEL %s"), nil, ""},
		{"ext2", made(t, 4*mebi, "mkfs.ext2 -qF %s"), nil, ""},
		{"ext3", made(t, 8*mebi, "mkfs.ext3 -qF %s"), nil, ""},
		{"ext4", made(t, 8*mebi, "mkfs.ext4 -qF -L root %s"), nil, ""},
		{"crypto_LUKS", over(map[int64]string{0: "LUKS\xba\xbe\x00\x02", 24: "secret"}), filesystem.ErrUnsupported,
			"LUKS"},
		{"BitLocker", over(map[int64]string{0: "\xeb\x58\x90-FVE-FS-"}), filesystem.ErrUnsupported, "BitLocker"},
		{"exfat", over(map[int64]string{0: "\xeb\x76\x90EXFAT   "}), filesystem.ErrUnsupported, "exFAT"},
		{"ReFS", put(mebi, map[int64]string{3: "ReFS\x00\x00\x00\x00"}), filesystem.ErrUnsupported, "ReFS"},
		{"btrfs", put(mebi, map[int64]string{0x10040: "_BHRfS_M", 0x1012b: "pool"}), filesystem.ErrUnsupported,
			"btrfs"},
		{"iso9660", put(mebi, map[int64]string{0x8001: "CD001", 0x8028: "DEBIAN 12       "}), filesystem.ErrUnsupported,
			"ISO 9660"},
		{"zfs_member", put(4*mebi, map[int64]string{128<<10 + 3072: le64(0x00bab10c)}), filesystem.ErrUnsupported,
			"ZFS"},
		{"linux_raid_member", over(map[int64]string{4096: md + "\x01\x00\x00\x00", 4096 + 144: le64(8)}),
			filesystem.ErrUnsupported, "RAID"},
		{"linux_raid_member", over(map[int64]string{0: md + "\x01\x00\x00\x00"}), filesystem.ErrUnsupported, "RAID"},
		{"linux_raid_member", over(map[int64]string{end - 8192: md + "\x01\x00\x00\x00",
			end - 8192 + 144: le64(uint64(end-8192) / 512)}), filesystem.ErrUnsupported, "RAID"},
		{"linux_raid_member", over(map[int64]string{end - 65536: md + "\x00\x00\x00\x00\x5a\x00\x00\x00"}),
			filesystem.ErrUnsupported, "RAID"},
		{"", put(mebi, nil), ErrNoFiles, "nothing that is known"},
		{"", put(100, nil), ErrNoFiles, "nothing that is known"},
		{"", nil, ErrNoFiles, "nothing that is known"},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			v := Scan(t.Context(), []Disk{disk("vda", tt.data)})
			if len(v.List) != 1 || v.List[0].Type != tt.kind || v.List[0].Name != "vda" {
				t.Fatalf("%+v", v.List)
			}
			if tt.is == nil {
				return
			}
			_, err := v.List[0].Open()
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v, want one that is %v and says %q", err, tt.is, tt.text)
			}
		})
	}
}

// Label and UUID are what blkid prints.
func TestIdentifiedAsBlkidDoes(t *testing.T) {
	for _, command := range []string{
		`mkswap -q -L scratch "$d"`, `mkfs.vfat -n LABEL "$d"`, `mkfs.vfat -F32 -s1 "$d"`, `mkfs.ext4 -qF -L root "$d"`, `mkfs.xfs -qf -L data "$d"`,
		`mkntfs -qFf "$d" 2>&1`,
	} {
		t.Run(strings.Fields(command)[0], func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			size := int64(40 * mebi)
			if strings.Contains(command, "xfs") {
				size = 300 * mebi
			}
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			raw, err := exec.Command("sh", "-ec",
				fmt.Sprintf("d='%s'; %s > /dev/null; blkid -p -o export -s LABEL -s UUID -s TYPE \"$d\"", f.Name(),
					command)).Output()
			if err != nil {
				t.Fatal(err)
			}
			v := Scan(t.Context(), []Disk{{"vda", size, f}}).List[0]
			want := map[string]string{}
			for line := range strings.Lines(string(raw)) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				want[key] = value
			}
			if got := fmt.Sprint(v.Type, " ", v.Label, " ", v.UUID); got != fmt.Sprint(want["TYPE"], " ", want["LABEL"],
				" ", want["UUID"]) {
				t.Errorf("%q, blkid says %q", got, want)
			}
		})
	}
}

func names(v *Volumes) (out []string) {
	for _, vol := range v.List {
		out = append(out, vol.Name+":"+vol.Type)
	}
	return out
}

// golden returns a physical volume that the tests of package lvm have.
func golden(t *testing.T, name string) []byte {
	t.Helper()
	return filesystemtest.Unpacked(t, "../lvm/testdata/"+name+".img.gz")
}

// A volume group may be on disks and partitions; without one of them its volumes say what is
// missing.
func TestVolumesAcrossDisks(t *testing.T) {
	a, b := golden(t, "a"), golden(t, "b")
	whole := made(t, 16*mebi, "printf 'label: dos\n2: start=2048,size=20480,type=5\n5: "+
		"start=4096,size=12288,type=8e\n' | sfdisk -q %s")
	copy(whole[4096*512:], b)
	v := Scan(t.Context(), []Disk{disk("vda", whole), disk("sdb", a)})
	if got := names(v); !slices.Equal(got[:2], []string{"vda5:LVM2_member", "sdb:LVM2_member"}) || len(got) != 11 {
		t.Errorf("%q", got)
	}
	root := v.Find("vg-x/root")
	if root == nil || !slices.Equal(root.Disks, []string{"vda", "sdb"}) || root.Size != 1835008 || !root.Logical {
		t.Errorf("%+v", root)
	}
	if _, err := v.Find("vda5").Open(); !errors.Is(err, ErrNoFiles) ||
		!strings.Contains(err.Error(), "volume group vg-x") {
		t.Errorf("a physical volume: %v", err)
	}
	v = Scan(t.Context(), []Disk{disk("sdb", a)})
	if _, err := v.Find("vg-x/root").Open(); !errors.Is(err, lvm.ErrMissing) || len(v.Notes) != 1 {
		t.Errorf("without the other disk: %v, notes %q", err, v.Notes)
	}
}

// A logical volume may be a disk with partitions of its own.
func TestPartitionsOfALogicalVolume(t *testing.T) {
	a := golden(t, "a")
	inner := made(t, 256<<10, "printf 'label: dos\n1: start=64,size=128,type=c\n' | sfdisk -q %s")
	fat := made(t, 64<<10, "mkfs.vfat %s")
	copy(inner[64*512:], fat)
	copy(a[(128+14*128)<<10:], inner) // only-a is at extents 14 and 15
	v := Scan(t.Context(), []Disk{disk("vda", a)})
	vol := v.Find("vg-x/only-a1")
	if vol == nil || vol.Type != "vfat" {
		t.Fatalf("%q", names(v))
	}
	if _, err := vol.Open(); err != nil {
		t.Error(err)
	}
}

// An MBR of a disk with sectors of 4096 bytes counts these, which only what is on it can tell.
func TestSectorsOf4096(t *testing.T) {
	data := make([]byte, 8*mebi)
	copy(data[446:], "\x00\x00\x00\x00\x0c\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00")
	data[510], data[511] = 0x55, 0xaa
	copy(data[256*4096:], made(t, 2*mebi, "mkfs.vfat %s"))
	v := Scan(t.Context(), []Disk{disk("vda", data)})
	if got := names(v); !slices.Equal(got, []string{"vda1:vfat"}) || v.List[0].Offset != mebi ||
		v.List[0].Size != 2*mebi {
		t.Errorf("%q, %+v", got, v.List[0])
	}
}

// broken fails reads of one range.
type broken struct {
	io.ReaderAt
	from, to int64
}

var errBroken = errors.New("a damaged chunk")

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off < b.to && off+int64(len(p)) > b.from {
		return 0, errBroken
	}
	return b.ReaderAt.ReadAt(p, off)
}

// A disk that cannot be read in one place is that volume's trouble alone.
func TestUnreadable(t *testing.T) {
	data := made(t, 16*mebi, "printf 'label: gpt\nsize=4M\nsize=4M\n' | sfdisk -q %s")
	copy(data[mebi:], made(t, 4*mebi, "mkfs.vfat %s"))
	copy(data[5*mebi:], made(t, 4*mebi, "mkfs.vfat %s"))
	other := made(t, 4*mebi, "mkfs.vfat %s")
	v := Scan(t.Context(), []Disk{{"vda", 16 * mebi, broken{bytes.NewReader(data), mebi, mebi + 512}},
		{"vdb", 4 * mebi, broken{bytes.NewReader(other), 0, 1}}, disk("vdc", other)})
	if got := names(v); !slices.Equal(got, []string{"vda1:", "vda2:vfat", "vdb:", "vdc:vfat"}) {
		t.Fatalf("%q", got)
	}
	for i, want := range []error{errBroken, nil, errBroken, nil} {
		if _, err := v.List[i].Open(); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", v.List[i].Name, err, want)
		}
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add([]byte("LUKS\xba\xbe"), 0, 100)
	f.Add([]byte(md+"\x01\x00\x00\x00"), 4096, 70_000)
	f.Add([]byte("\xeb\x3c\x90mkfs.fat\x00\x02\x01\x01\x00\x02\x00\x02"), 0, 600)
	f.Fuzz(func(t *testing.T, p []byte, at, size int) {
		if at < 0 || size < 0 || size > 200<<10 || at > size {
			return
		}
		data := make([]byte, size)
		copy(data[at:], p)
		if _, err := identify(bytes.NewReader(data), int64(size)); err != nil {
			t.Fatal(err)
		}
		Scan(t.Context(), []Disk{disk("vda", data)})
	})
}
