package ntfs_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/filesystemtest"
	"github.com/holdfast-vm/holdfast/internal/filesystem/ntfs"
)

func golden(t testing.TB) []byte {
	t.Helper()
	return filesystemtest.Unpacked(t, "testdata/golden.img.gz")
}

// The golden image holds what its listing says.
func TestGolden(t *testing.T) {
	image := golden(t)
	f, err := ntfs.Open(bytes.NewReader(image), int64(len(image)))
	ok(t, err)
	list, err := os.ReadFile("testdata/golden.txt")
	ok(t, err)
	for line := range strings.Lines(string(list)) {
		sum, path, _ := strings.Cut(strings.TrimSpace(line), "  ./")
		id := f.Root()
		for name := range strings.SplitSeq(path, "/") {
			if id, err = f.Lookup(id, name); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
		}
		file, err := f.Open(id)
		ok(t, err)
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(file, 0, file.Size())); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if got := fmt.Sprintf("%x", h.Sum(nil)); got != sum {
			t.Errorf("%s: SHA-256 %s, want %s", path, got, sum)
		}
	}
}

// walk reads all that can be reached, as little of each file as shows whether it can be read, and
// returns how many files it saw.
func walk(f *ntfs.FS, id filesystem.ID, depth int, seen map[filesystem.ID]bool) int {
	if depth > 20 || seen[id] || len(seen) > 2000 {
		return 0
	}
	seen[id] = true
	n := 0
	for e, err := range f.ReadDir(id) {
		if err != nil {
			return n
		}
		n++
		a, err := f.Stat(e.ID)
		if err != nil {
			continue
		}
		_, _ = f.Xattrs(e.ID)
		_, _ = f.Lookup(id, e.Name)
		if a.Mode.IsDir() {
			n += walk(f, e.ID, depth+1, seen)
			continue
		}
		_, _ = f.ReadLink(e.ID)
		file, err := f.Open(e.ID)
		if err != nil {
			continue
		}
		_, _ = file.Extents()
		p := make([]byte, 70_000)
		_, _ = file.ReadAt(p, 0)
		_, _ = file.ReadAt(p, file.Size()-1000)
		streams, _ := f.Streams(e.ID)
		for _, s := range streams {
			if file, err := f.OpenStream(e.ID, s.Name); err == nil {
				_, _ = file.ReadAt(p, 0)
			}
		}
	}
	return n
}

// FuzzOpen overwrites bytes of the golden image: three bytes of place and one of value each.
func FuzzOpen(f *testing.F) {
	image := golden(f)
	f.Add([]byte{})
	for at := range 40 { // the first records, and the boot sector
		f.Add([]byte{0, 0, byte(at), 0xff, 0, byte(at), byte(at * 7), 1, 0, 0x44, byte(at), 0x80})
	}
	f.Fuzz(func(t *testing.T, patch []byte) {
		img := bytes.Clone(image)
		for ; len(patch) >= 4; patch = patch[4:] {
			at := int(patch[0])<<16 | int(patch[1])<<8 | int(patch[2])
			img[at%len(img)] = patch[3]
		}
		if fsys, err := ntfs.Open(bytes.NewReader(img), int64(len(img))); err == nil {
			walk(fsys, fsys.Root(), 0, map[filesystem.ID]bool{})
		}
	})
}

// A disk that ends early gives errors and nothing else.
func TestCutOff(t *testing.T) {
	image := golden(t)
	whole, err := ntfs.Open(bytes.NewReader(image), int64(len(image)))
	ok(t, err)
	all := walk(whole, whole.Root(), 0, map[filesystem.ID]bool{})
	for n := 0; n < len(image); n += len(image)/97 + 1 {
		f, err := ntfs.Open(bytes.NewReader(image[:n]), int64(len(image)))
		if err != nil {
			continue
		}
		if got := walk(f, f.Root(), 0, map[filesystem.ID]bool{}); got > all {
			t.Errorf("%d of %d bytes show %d files of %d", n, len(image), got, all)
		}
	}
}
