package fat_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/fat"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "TZ=UTC", "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// format makes a file system of some KiB with mkfs.vfat.
func format(t *testing.T, kib int, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fat")
	run(t, "mkfs.vfat", append(append([]string{"-C"}, args...), path, fmt.Sprint(kib))...)
	return path
}

func open(t *testing.T, path string) *fat.FS {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := fat.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// tree returns the content of each file, "/" for directories, by path.
func tree(t *testing.T, f *fat.FS, dir filesystem.ID, prefix string, out map[string]string) {
	t.Helper()
	for e, err := range f.ReadDir(dir) {
		if err != nil {
			t.Fatal(err)
		}
		path := prefix + e.Name
		if id, err := f.Lookup(dir, strings.ToUpper(e.Name)); err != nil || id != e.ID {
			t.Errorf("look %s up: %d, %v, want %d", path, id, err, e.ID)
		}
		if e.Type.IsDir() {
			out[path] = "/"
			tree(t, f, e.ID, path+"/", out)
			continue
		}
		out[path] = content(t, f, e.ID)
	}
}

func content(t *testing.T, f *fat.FS, id filesystem.ID) string {
	t.Helper()
	file, err := f.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	attr, err := f.Stat(id)
	if err != nil || attr.Size != file.Size() || attr.ID != id {
		t.Fatalf("%+v, %v: the file has %d bytes", attr, err, file.Size())
	}
	data, err := io.ReadAll(io.NewSectionReader(file, 0, file.Size()+100))
	if err != nil || int64(len(data)) != file.Size() {
		t.Fatalf("%d bytes of %d: %v", len(data), file.Size(), err)
	}
	if set, err := file.Extents(); err != nil || set.Bytes() != file.Size() {
		t.Errorf("extents %v, %v of %d bytes", set, err, file.Size())
	}
	return string(data)
}

func pattern(n, seed int) string {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return string(b)
}

var kinds = []struct {
	name string
	kib  int
	args []string
}{
	{"FAT12", 2048, []string{"-F12", "-s2"}},
	{"FAT16", 16384, []string{"-F16", "-s1"}},
	{"FAT32", 40960, []string{"-F32", "-s1"}},
	{"FAT12 of large sectors", 4096, []string{"-F12", "-S", "2048"}},
}

// What mtools puts in comes out: names, contents, directories, files in many pieces.
func TestReadsWhatMtoolsWrites(t *testing.T) {
	for _, tt := range kinds {
		t.Run(tt.name, func(t *testing.T) {
			image := format(t, tt.kib, append(tt.args, "-n", "HOLDFAST 1", "-i", "1A2B3C4D")...)
			src := t.TempDir()
			want := map[string]string{}
			put := func(path, data string) {
				t.Helper()
				full := filepath.Join(src, path)
				if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o700),
					os.WriteFile(full, []byte(data), 0o600)); err != nil {
					t.Fatal(err)
				}
				for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
					want[dir] = "/"
				}
				want[path] = data
			}
			put("README.TXT", "short\n")
			put("lower.txt", "lower case\n")
			put("Mixed Case and long name.html", "long\n")
			put("größe ünïcode 漢字.txt", "unicode\n")
			put("empty", "")
			put("dir/sub/deep.bin", pattern(70_000, 1))
			put("large.bin", pattern(300_001, 2))
			put(strings.Repeat("n", 200)+".x", "a long name\n")
			for i := range 120 {
				put(fmt.Sprintf("many/file number %03d.dat", i), pattern(100, i))
			}
			entries, err := os.ReadDir(src)
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"-i", image, "-s", "-Q", "-p", "-o"}
			for _, e := range entries {
				args = append(args, filepath.Join(src, e.Name()))
			}
			run(t, "mcopy", append(args, "::")...)
			// Removing makes gaps, which a new file fills: it is in pieces.
			run(t, "mdel", "-i", image, "::many/file number 01*.dat", "::README.TXT")
			for path := range want {
				if path == "README.TXT" || strings.HasPrefix(path, "many/file number 01") {
					delete(want, path)
				}
			}
			pieces := filepath.Join(t.TempDir(), "pieces.bin")
			if err := os.WriteFile(pieces, []byte(pattern(200_000, 3)), 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, "mcopy", "-i", image, pieces, "::dir/sub/pieces.bin")
			want["dir/sub/pieces.bin"] = pattern(200_000, 3)

			f := open(t, image)
			got := map[string]string{}
			tree(t, f, f.Root(), "", got)
			if !maps.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
			}
			for path, data := range want {
				if got[path] != data {
					t.Errorf("%s differs: %d bytes, want %d", path, len(got[path]), len(data))
				}
			}
			info := f.Info()
			if info.Type != "vfat" || info.Label != "HOLDFAST 1" || info.UUID != "1A2B-3C4D" ||
				info.Size > int64(tt.kib)<<10 || info.Used < 600_000 || info.Used > info.Size {
				t.Errorf("%+v", info)
			}
		})
	}
}

func TestTimesAndModes(t *testing.T) {
	image := format(t, 2048)
	src := filepath.Join(t.TempDir(), "a.txt")
	when := time.Date(2024, 2, 29, 13, 14, 16, 0, time.UTC)
	if err := errors.Join(os.WriteFile(src, []byte("x"), 0o600), os.Chtimes(src, when, when)); err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", "-m", "-i", image, src, "::")
	run(t, "mattrib", "+r", "-i", image, "::a.txt")
	f := open(t, image)
	id, err := f.Lookup(f.Root(), "A.TXT")
	if err != nil {
		t.Fatal(err)
	}
	attr, err := f.Stat(id)
	if err != nil || !attr.Modified.Equal(when) || attr.Mode != 0o555 || attr.Links != 1 {
		t.Errorf("%+v, %v", attr, err)
	}
	if root, err := f.Stat(f.Root()); err != nil || root.Mode != fs.ModeDir|0o755 {
		t.Errorf("the root: %+v, %v", root, err)
	}
	if _, err := f.Lookup(f.Root(), "none"); !errors.Is(err, filesystem.ErrNotExist) {
		t.Errorf("a name that is not there: %v", err)
	}
	if _, err := f.Open(f.Root()); err == nil {
		t.Error("the root opens as a file")
	}
	if _, err := f.Stat(1 << 60); !errors.Is(err, filesystem.ErrNotExist) {
		t.Errorf("an ID that is none: %v", err)
	}
}

// A chain of clusters that breaks off, leaves the disk or comes back to itself is damage; what is
// cut off is too.
func TestDamage(t *testing.T) {
	image := format(t, 16384, "-F16", "-s1")
	src := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(src, []byte(pattern(100_000, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", "-i", image, src, "::")
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	table := int(binary.LittleEndian.Uint16(data[14:])) * 512
	for _, next := range []uint16{0, 1, 0xfff0, 0xffff, 39, 40, 3} { // the last come back
		bad := bytes.Clone(data)
		binary.LittleEndian.PutUint16(bad[table+2*40:], next) // in the middle of the file
		f, err := fat.Open(bytes.NewReader(bad), int64(len(bad)))
		if err != nil {
			t.Fatal(err)
		}
		id, err := f.Lookup(f.Root(), "big")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Open(id); !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("cluster 40 is followed by %#x: %v", next, err)
		}
	}
	if _, err := fat.Open(bytes.NewReader(data[:1<<20]), 1<<20); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("cut off: %v", err)
	}
	for _, size := range []int{0, 511, 512} {
		if _, err := fat.Open(bytes.NewReader(make([]byte, size)), int64(size)); !errors.Is(err,
			filesystem.ErrNotThis) {
			t.Errorf("%d zeros: %v", size, err)
		}
	}
}

// A directory that is its own continuation ends.
func TestLoopOfADirectory(t *testing.T) {
	image := format(t, 40960, "-F32", "-s1")
	run(t, "mmd", "-i", image, "::d")
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	table := int(binary.LittleEndian.Uint16(data[14:])) * 512
	root := binary.LittleEndian.Uint32(data[44:])
	binary.LittleEndian.PutUint32(data[table+4*int(root):], root)
	f, err := fat.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	var last error
	for _, last = range f.ReadDir(f.Root()) {
	}
	if !errors.Is(last, filesystem.ErrCorrupt) {
		t.Errorf("%v", last)
	}
}

// small is a FAT12 with a file and a directory, written by hand.
func small() []byte {
	d := make([]byte, 64*512)
	le := binary.LittleEndian
	copy(d, "\xeb\x3c\x90hf      ")
	le.PutUint16(d[11:], 512)
	d[13], d[16], d[21] = 1, 1, 0xf8
	le.PutUint16(d[14:], 1)
	le.PutUint16(d[17:], 16)
	le.PutUint16(d[19:], 64)
	le.PutUint16(d[22:], 1)
	copy(d[512:], "\xf8\xff\xff\x03\xf0\xff\xff\x0f\x00")
	copy(d[1024:], "FILE    TXT\x20")
	le.PutUint16(d[1024+26:], 2)
	le.PutUint32(d[1024+28:], 700)
	copy(d[1056:], "DIR        \x10")
	le.PutUint16(d[1056+26:], 4)
	return d
}

func FuzzFAT(f *testing.F) {
	f.Add(small())
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := fat.Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		budget := 2000
		var visit func(dir filesystem.ID, depth int)
		visit = func(dir filesystem.ID, depth int) {
			for e, err := range v.ReadDir(dir) {
				if budget--; err != nil || budget < 0 {
					return
				}
				if e.Type.IsDir() && depth < 8 {
					visit(e.ID, depth+1)
				}
				file, err := v.Open(e.ID)
				if err != nil {
					continue
				}
				if n, err := file.ReadAt(make([]byte, 64), file.Size()/2); int64(n) < min(64,
					file.Size()-file.Size()/2) || err != nil && !errors.Is(err, io.EOF) {
					t.Fatalf("%q of %d bytes opens, and %d bytes of it are read: %v", e.Name, file.Size(), n, err)
				}
			}
		}
		visit(v.Root(), 0)
	})
}

// Directories may be in each other, and in two places, by the cluster that they begin at: they have
// the entries that are there, and the numbers of these are the same by each way.
func TestDirectoriesByHand(t *testing.T) {
	le := binary.LittleEndian
	disk := small()
	copy(disk[512+6:], "\xff\x0f\x00") // cluster 4 is one of its own
	inner := disk[1536+2*512:][:512]   // of DIR
	copy(inner, "UP         \x10")     // DIR again
	le.PutUint16(inner[26:], 4)
	copy(inner[32:], "A/B     TXT\x20")
	copy(disk[1088:], "OTHER      \x10") // and by another name
	le.PutUint16(disk[1088+26:], 4)
	f, err := fat.Open(bytes.NewReader(disk), int64(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]filesystem.ID{}
	for _, path := range []string{"DIR/UP", "DIR/UP/UP/UP", "OTHER/UP"} {
		id := f.Root()
		for name := range strings.SplitSeq(path, "/") {
			if id, err = f.Lookup(id, name); err != nil {
				t.Fatal(err)
			}
		}
		ids[path] = id
	}
	if ids["DIR/UP"] != ids["DIR/UP/UP/UP"] || ids["DIR/UP"] != ids["OTHER/UP"] {
		t.Errorf("%v", ids)
	}
}
