package files

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/filesystemtest"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// seeds are disks that the tests of the readers have, by name.
func seeds(t testing.TB) map[string]*filesystemtest.Pages {
	t.Helper()
	out := map[string]*filesystemtest.Pages{"fat": filesystemtest.PagesOf(smallFAT())}
	for _, pattern := range []string{"ext4/testdata/*.img.gz", "ntfs/testdata/*.img.gz", "lvm/testdata/*.img.gz"} {
		names, err := filepath.Glob("../filesystem/" + pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %q, %v", pattern, names, err)
		}
		for _, name := range names {
			kind := strings.Split(name, "/")[2]
			out[kind+"/"+filepath.Base(name)] = filesystemtest.PagesOf(filesystemtest.Unpacked(t, name))
		}
	}
	names, err := filepath.Glob("../filesystem/xfs/testdata/*.image.gz")
	if err != nil || len(names) == 0 {
		t.Fatalf("%q, %v", names, err)
	}
	for _, name := range names {
		out["xfs/"+filepath.Base(name)] = filesystemtest.LoadPages(t, name)
	}
	return out
}

// smallFAT is a FAT12 of 64 sectors with two directories in each other and a file in the second.
func smallFAT() []byte {
	d := make([]byte, 64*512)
	le := binary.LittleEndian
	copy(d, "\xeb\x3c\x90hf      ")
	le.PutUint16(d[11:], 512)
	d[13], d[16], d[21] = 1, 1, 0xf8
	le.PutUint16(d[14:], 1)
	le.PutUint16(d[17:], 16)
	le.PutUint16(d[19:], 64)
	le.PutUint16(d[22:], 1)
	copy(d[512:], "\xf8\xff\xff\xff\xff\xff\xff\x0f\x00")
	entry := func(at int, name string, attr byte, cluster uint16, size uint32) {
		copy(d[at:], name)
		d[at+11] = attr
		le.PutUint16(d[at+26:], cluster)
		le.PutUint32(d[at+28:], size)
	}
	const data = 1536
	entry(1024, "OUTER      ", 0x10, 2, 0)
	entry(data, "INNER      ", 0x10, 3, 0)
	entry(data+512, "LEAF    TXT", 0x20, 4, 300)
	return d
}

// inMemory returns a directory that is synced in no time, if there is one.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hf")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func scanned(t *testing.T, disk *filesystemtest.Pages) *Point {
	t.Helper()
	return Open(t.Context(), []volume.Disk{{Name: "vda", Size: disk.Size, Reader: disk}})
}

// only returns where the only file with a name is.
func only(t *testing.T, p *Point, name string) Place {
	t.Helper()
	got, err := found(t, p, FindRequest{Pattern: name})
	if err != nil || len(got) != 1 {
		t.Fatalf("%s: %q, %v", name, got, err)
	}
	at, err := p.Locate(got[0], false)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// In every file system a directory can be put into itself, and a second name can be given to it, by
// who writes the disk. Each is gone through once, what is beside it is found, and its second name
// is told.
func TestDirectoriesInThemselves(t *testing.T) {
	le, be := binary.LittleEndian, binary.BigEndian
	for _, tt := range []struct {
		seed, inner string
		// entry returns the bytes by which the entry of inner is found: the number that it has, and
		// what follows; and how the number of another directory is written there.
		entry func(id filesystem.ID) []byte
	}{
		{"ext4/ext2.img.gz", "sub", func(id filesystem.ID) []byte { return le.AppendUint32(nil, uint32(id)) }},
		{"ext4/ext4-no-checksums.img.gz", "sub", func(id filesystem.ID) []byte {
			return le.AppendUint32(nil, uint32(id))
		}},
		{"xfs/v4-clean.image.gz", "dir60", func(id filesystem.ID) []byte { return be.AppendUint64(nil, uint64(id)) }},
		{"ntfs/golden.img.gz", "plain", func(id filesystem.ID) []byte { return le.AppendUint64(nil, uint64(id)) }},
		{"fat", "INNER", nil},
	} {
		t.Run(tt.seed, func(t *testing.T) {
			disk := seeds(t)[tt.seed]
			whole, err := found(t, scanned(t, disk), FindRequest{Pattern: "*"})
			if err != nil || len(whole) == 0 {
				t.Fatalf("%d found, %v", len(whole), err)
			}
			at := only(t, scanned(t, disk), tt.inner)
			outer := at.Path[:strings.LastIndexByte(at.Path, '/')]
			up, err := scanned(t, disk).Locate("vda:"+outer+"/", false)
			if err != nil {
				t.Fatal(err)
			}
			disk = disk.Clone()
			if tt.entry == nil {
				disk.Put([]byte{2}, 1536+26) // the cluster of the outer one
			} else {
				rewrite(t, disk, tt.entry(at.Node.ID), tt.inner, tt.entry(up.Node.ID))
			}
			p := scanned(t, disk)
			got, err := found(t, p, FindRequest{Pattern: "*"})
			if !errors.Is(err, filesystem.ErrCorrupt) || len(got) == 0 || len(got) > len(whole) {
				t.Fatalf("%d found of %d, %v", len(got), len(whole), err)
			}
			failed := failuresOf(t, err)
			if want := "vda:" + at.Path; tt.entry != nil && !slices.Contains(failed, want) {
				t.Errorf("named are %q, want %s", failed, want)
			}
			if !strings.Contains(err.Error(), "inside itself") {
				t.Errorf("%v", err)
			}
			to := inMemory(t)
			_, err = get(t, p, to, "vda:/")
			if !errors.Is(err, filesystem.ErrCorrupt) || len(left(t, to)) > len(whole) {
				t.Errorf("%d fetched of %d, %v", len(left(t, to)), len(whole), err)
			}
		})
	}
}

// rewrite writes another number into the entry of a directory with a name, wherever it is.
func rewrite(t *testing.T, disk *filesystemtest.Pages, number []byte, name string, other []byte) {
	t.Helper()
	wide := make([]byte, 0, 2*len(name))
	for _, c := range name {
		wide = binary.LittleEndian.AppendUint16(wide, uint16(c))
	}
	const near = 100 // bytes from the number to the name, at most
	done := 0
	for _, no := range disk.Used() {
		page := disk.All[no]
		for at := bytes.Index(page, number); at >= 0 && at+len(number) <= len(page); {
			rest := page[at+len(number) : min(len(page), at+len(number)+near)]
			if bytes.Contains(rest, []byte(name)) || bytes.Contains(rest, wide) {
				disk.Put(other, no*filesystemtest.PageSize+int64(at))
				done++
			}
			next := bytes.Index(page[at+1:], number)
			if next < 0 {
				break
			}
			at += 1 + next
		}
	}
	if done == 0 {
		t.Fatalf("no entry of %s was found", name)
	}
}

// A tree that the tools of ext4 have made: each directory has two names for the next.
func TestTreeOfTwoNames(t *testing.T) {
	dir := t.TempDir()
	image, script := filepath.Join(dir, "vda"), filepath.Join(dir, "script")
	commands := "mkdir /d\n"
	path := "/d"
	for range 40 {
		commands += fmt.Sprintf("mkdir %[1]s/a\nln %[1]s/a %[1]s/b\n", path)
		path += "/a"
	}
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 4<<20),
		os.WriteFile(script, []byte(commands), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{{"mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", image},
		{"debugfs", "-w", "-f", script, image}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c, err, out)
		}
	}
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	p := scanned(t, filesystemtest.PagesOf(data))
	got, err := found(t, p, FindRequest{Pattern: "a"})
	if len(got) != 40 || len(failuresOf(t, err)) != 40 {
		t.Errorf("%d found, %v", len(got), err)
	}
	to := inMemory(t)
	if _, err := get(t, p, to, "vda:/d"); !errors.Is(err, filesystem.ErrCorrupt) || len(left(t, to)) != 41 {
		t.Errorf("%d fetched, %v", len(left(t, to)), err)
	}
}

// What is on every disk that the readers are tested with is gone through without an error, and all
// of it can be fetched.
func TestSeedsAreWhole(t *testing.T) {
	for name, disk := range seeds(t) {
		t.Run(name, func(t *testing.T) {
			p := scanned(t, disk)
			got, err := found(t, p, FindRequest{Pattern: "*"})
			if strings.HasPrefix(name, "lvm") {
				return // its volumes hold no file systems
			}
			if err != nil || len(got) < 3 {
				t.Fatalf("%d found, %v", len(got), err)
			}
			to := inMemory(t)
			r, err := get(t, p, to, "vda:/")
			if n := int64(len(left(t, to))) + r.Dropped.Devices - r.Streams; err != nil || n != int64(len(got)) {
				t.Errorf("%d fetched of %d, %v", n, len(got), err)
			}
		})
	}
}

// FuzzWalk changes a disk anywhere, and lists, finds and fetches all of it: that ends, within the
// limits, and nothing is written but where it was to be.
func FuzzWalk(f *testing.F) {
	all := seeds(f)
	var names []string
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for i := range names {
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{0, 1, 0, 60, 2, 0, 2, 0, 30, 255, 0, 3, 1, 8, 12})
	}
	f.Fuzz(func(t *testing.T, which uint8, changes []byte) {
		disk := all[names[int(which)%len(names)]].Clone()
		used := disk.Used()
		for ; len(changes) >= 5; changes = changes[5:] { // a page in use, a place in it, a byte
			page := used[(int(changes[0])<<8|int(changes[1]))%len(used)]
			at := (int(changes[2])<<8 | int(changes[3])) % filesystemtest.PageSize
			disk.Put(changes[4:5], page*filesystemtest.PageSize+int64(at))
		}
		walkAll(t, disk)
	})
}

func walkAll(t *testing.T, disk *filesystemtest.Pages) {
	limits := Limits{Entries: 3000, Depth: 30, Bytes: 4 << 20}
	p := scanned(t, disk)
	p.Describe()
	entries := int64(0)
	err := p.Find(context.Background(), FindRequest{Pattern: "*", Limits: limits, Found: func(e Entry) error {
		entries++
		if e.Name == "" || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00") {
			t.Fatalf("the name %q", e.Name)
		}
		return nil
	}})
	var some *Incomplete
	if err != nil && !errors.As(err, &some) && !errors.Is(err, ErrLimit) || entries > limits.Entries {
		t.Fatalf("%d found, %v", entries, err)
	}
	parent := inMemory(t)
	for _, v := range p.Volumes().List {
		to := filepath.Join(parent, "to")
		r, err := p.Get(context.Background(),
			GetRequest{Places: []string{v.Name + ":/"}, To: to, Limits: limits, Force: true})
		if r.Stored > limits.Bytes {
			t.Fatalf("%d bytes were written, %v", r.Stored, err)
		}
	}
	if names, err := os.ReadDir(parent); err != nil || len(names) > 1 {
		t.Fatalf("%v were made beside the target, %v", names, err)
	}
	err = filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeDevice != 0 {
			t.Fatalf("%s is a device", path)
		}
		return nil // what may not be read is as the guest had it
	})
	if err != nil {
		t.Fatal(err)
	}
}
