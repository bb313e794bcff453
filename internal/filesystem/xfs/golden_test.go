package xfs

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem/filesystemtest"
)

// disk is an image in memory of which only pages that are not zero are kept.
type disk struct {
	size  int64
	pages map[int64][]byte
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	return (&filesystemtest.Pages{Size: d.size, All: d.pages}).ReadAt(p, off)
}

// loadDisk reads what saveDisk wrote: the size, then number and contents of each page.
func loadDisk(t testing.TB, path string) *disk {
	t.Helper()
	p := filesystemtest.LoadPages(t, path)
	return &disk{p.Size, p.All}
}

func saveDisk(t testing.TB, path, image string) {
	t.Helper()
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	_ = binary.Write(z, binary.LittleEndian, int64(len(b)))
	for at := 0; at < len(b); at += pageSize {
		if pg := b[at : at+pageSize]; !bytes.Equal(pg, zeroPage[:]) {
			_ = binary.Write(z, binary.LittleEndian, int64(at/pageSize))
			_, _ = z.Write(pg)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, packed.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Images made once, and what their makers' mounts showed, are read the same everywhere, also where
// no XFS is.
func TestGoldenImages(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.image.gz")
	if err != nil || len(paths) < 2 {
		t.Fatalf("%d images: %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			d := loadDisk(t, path)
			x, err := Open(d, d.size)
			if err != nil {
				t.Fatal(err)
			}
			if dirty := strings.Contains(path, "dirty"); dirty != (len(x.Info().Notes) > 0) {
				t.Errorf("notes %q", x.Info().Notes)
			}
			compare(t, path, walk(t, x), loadTree(t, strings.TrimSuffix(path, ".image.gz")+".json.gz"))
		})
	}
}

func saveTree(t testing.TB, path string, all tree) {
	t.Helper()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	quoted := tree{}
	for path, k := range all {
		quoted[strconv.Quote(path)] = k // JSON is for UTF-8 only
	}
	if err := errors.Join(json.NewEncoder(z).Encode(quoted), z.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, packed.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func loadTree(t testing.TB, path string) tree {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	z, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var quoted tree
	if err := json.NewDecoder(z).Decode(&quoted); err != nil {
		t.Fatal(err)
	}
	all := tree{}
	for q, k := range quoted {
		path, err := strconv.Unquote(q)
		if err != nil {
			t.Fatal(err)
		}
		all[path] = k
	}
	return all
}

// TestMakeGoldenImages makes the images of this kernel again, if HOLDFAST_GOLDEN says so, and else
// checks that it can.
func TestMakeGoldenImages(t *testing.T) {
	to := t.TempDir()
	if os.Getenv("HOLDFAST_GOLDEN") != "" {
		to = "testdata"
	}
	image := filepath.Join(tempDir(t), "image")
	makeImage(t, image, 64<<20, "-i", "nrext64=1")
	dir, unmount := mount(t, image, "noatime")
	f := filler{t: t, dir: dir, rng: rand.New(rand.NewPCG(1, 2)), dirs: []int{8, 60, 150}, last: 160}
	f.all(true)
	unmount()
	saveDisk(t, filepath.Join(to, "clean.image.gz"), image)
	dir, unmount = mount(t, image, "ro,noatime")
	saveTree(t, filepath.Join(to, "clean.json.gz"), walkMount(t, dir))
	unmount()

	image += " dirty"
	makeImage(t, image, 64<<20, "-m", "rmapbt=1")
	dir, unmount = mount(t, image, "noatime")
	b := busy{dir: dir, rng: rand.New(rand.NewPCG(3, 4))}
	for range 90 {
		b.step()
	}
	crash(t, dir, true)
	unmount()
	saveDisk(t, filepath.Join(to, "dirty.image.gz"), image)
	dir, unmount = mount(t, image, "noatime")
	saveTree(t, filepath.Join(to, "dirty.json.gz"), walkMount(t, dir))
	unmount()
}
