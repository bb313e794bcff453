package ext4

import (
	"bytes"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/filesystemtest"
)

// seed is a small image, and where it is not zero.
type seed struct {
	name  string
	image []byte
	used  []int
}

// seeds are the images that testdata/make-seeds made.
func seeds(t testing.TB) (list []seed) {
	t.Helper()
	names, err := filepath.Glob("testdata/*.img.gz")
	if err != nil || len(names) == 0 {
		t.Fatalf("no seeds: %v", err)
	}
	for _, name := range names {
		image := filesystemtest.Unpacked(t, name)
		s := seed{name: filepath.Base(name), image: image}
		for i, b := range image {
			if b != 0 {
				s.used = append(s.used, i)
			}
		}
		list = append(list, s)
	}
	return list
}

// mutated returns a copy of the image with bytes changed: three bytes say near which used byte, one
// how far behind it, one to what.
func (s seed) mutated(changes []byte) []byte {
	image := bytes.Clone(s.image)
	for ; len(changes) >= 5; changes = changes[5:] {
		at := s.used[(int(changes[0])<<16|int(changes[1])<<8|int(changes[2]))%len(s.used)] + int(changes[3]%16)
		if at < len(image) {
			image[at] = changes[4]
		}
	}
	return image
}

// FuzzOpen walks small images with changed bytes: there is no panic, no walk without end, no memory
// without bound.
func FuzzOpen(f *testing.F) {
	images := seeds(f)
	for i := range images {
		f.Add(byte(i), []byte{})
		f.Add(byte(i), []byte{0, 1, 2, 3, 255, 1, 0, 0, 0, 1, 0, 0, 30, 0, 7})
	}
	f.Fuzz(func(t *testing.T, which byte, changes []byte) {
		image := images[int(which)%len(images)].mutated(changes)
		reader, err := Open(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			return
		}
		reader.Info()
		visit(t, reader, reader.Root(), map[filesystem.ID]bool{})
	})
}

// visit reads all below a directory once, and some of every file.
func visit(t *testing.T, f *FS, dir filesystem.ID, seen map[filesystem.ID]bool) {
	seen[dir] = true
	for e, err := range f.ReadDir(dir) {
		if err != nil {
			return
		}
		if e.Name == "" || e.Name == "." || e.Name == ".." || strings.Contains(e.Name, "/") {
			t.Fatalf("the name %q", e.Name)
		}
		if seen[e.ID] {
			continue
		}
		seen[e.ID] = true
		read(t, f, e.ID)
		if e.Type == fs.ModeDir && len(seen) < 2000 {
			visit(t, f, e.ID, seen)
		}
	}
}

func read(t *testing.T, f *FS, id filesystem.ID) {
	_, _ = f.Xattrs(id)
	a, err := f.Stat(id)
	if err != nil {
		return
	}
	if a.Mode&fs.ModeSymlink != 0 {
		if target, err := f.ReadLink(id); err == nil && int64(len(target)) != a.Size {
			t.Fatalf("a link of %d bytes to %q", a.Size, target)
		}
	}
	file, err := f.Open(id)
	if err != nil {
		return
	}
	_, _ = file.Extents()
	buf := make([]byte, 70000)
	for _, off := range []int64{0, 1 << 20, a.Size/2 + 1, a.Size - 5000} {
		n, err := file.ReadAt(buf, max(0, off))
		if err == nil && n != len(buf) || err == io.EOF && int64(n) != max(0, a.Size-max(0, off)) {
			t.Fatalf("%d bytes at %d of %d: %v", n, off, a.Size, err)
		}
	}
}

// The seeds are what they are to be: without changes they read well, and the dirty ones are
// replayed.
func TestSeedsRead(t *testing.T) {
	for _, s := range seeds(t) {
		f, err := Open(bytes.NewReader(s.image), int64(len(s.image)))
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		if v := viewOf(t, f); len(v) < 50 {
			t.Errorf("%s has %d files", s.name, len(v))
		}
		dirty := strings.HasPrefix(s.name, "journal") || strings.HasPrefix(s.name, "fast")
		if noted(f, "replayed") != dirty ||
			strings.HasPrefix(s.name, "fast") && !noted(f, "fast commits were replayed") {
			t.Errorf("%s: notes %q", s.name, f.Info().Notes)
		}
	}
}
