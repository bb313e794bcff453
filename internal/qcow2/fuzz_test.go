package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// samples returns small images of all kinds that this package writes, and QEMU.
func samples(t testing.TB) map[string][]byte {
	t.Helper()
	dir := t.TempDir()
	list := make(map[string][]byte)
	keep := func(name string) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		list[name] = b
	}
	w, err := qcow2.NewWriter(filepath.Join(dir, "ours"), 100*kib,
		extent.Set{{Off: 0, Len: 5000}, {Off: 90 * kib, Len: 10 * kib}},
		qcow2.CreateOptions{ClusterSize: 512,
			Bitmaps: []qcow2.Bitmap{{Name: "b", Granularity: 512, Set: extent.Set{{Off: 5000, Len: 9000}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	keep("ours")
	for name, options := range map[string]string{
		"v2": "compat=0.10", "v3": "compat=1.1", "extended": "extended_l2=on,cluster_size=16k",
		"backed": "backing_file=x,backing_fmt=raw",
	} {
		if name != "extended" {
			options += ",cluster_size=512"
		}
		path := filepath.Join(dir, name)
		run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-o", options, path, "100k")
		if name != "backed" {
			run(t, "qemu-io", "-f", "qcow2", "-c", "write 10k 3k", "-c", "write -z 20k 3k", path)
		}
		keep(name)
	}
	run(t, "qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", filepath.Join(dir, "v3"),
		filepath.Join(dir, "compressed"))
	keep("compressed")
	return list
}

// readAll does all that can be done with an image and checks what must hold for any.
func readAll(t *testing.T, b []byte) error {
	img, err := qcow2.New(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return err
	}
	list, err := img.Bitmaps()
	if err != nil {
		return err
	}
	for _, m := range list[:min(len(list), 10)] {
		if _, err := img.ReadBitmap(m.Name); err != nil {
			return err
		}
	}
	if err := img.Check(); err != nil {
		return err
	}
	data, zero, err := img.Map()
	if err != nil {
		return err
	}
	if n := data.Bytes() + zero.Bytes(); n > img.Size() || len(data.Intersect(zero)) > 0 {
		t.Fatalf("%d bytes mapped of a disk of %d, or data and zero overlap", n, img.Size())
	}
	if img.Info().BackingFile != "" {
		return nil
	}
	buf := make([]byte, 64*kib)
	for off := int64(0); off < min(img.Size(), mib); off += int64(len(buf)) {
		if n, err := img.ReadAt(buf, off); n < len(buf) && err != io.EOF {
			t.Fatalf("Map finds nothing wrong, but reading at %d: %v", off, err)
		}
	}
	return nil
}

func FuzzImage(f *testing.F) {
	for _, b := range samples(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := readAll(t, b); err != nil {
			t.Log(err)
		}
	})
}

// Wherever a file is cut off, either nothing of the disk is lost or the image is called corrupt,
// and by name.
func TestTruncatedImages(t *testing.T) {
	for name, whole := range samples(t) {
		img, err := qcow2.New(bytes.NewReader(whole), int64(len(whole)))
		if err != nil {
			t.Fatal(err)
		}
		if err := img.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		want := contents(img)
		for n := 0; n < len(whole); n += 509 {
			img, err := qcow2.New(bytes.NewReader(whole[:n]), int64(n))
			if err == nil {
				err = img.Check()
			}
			switch {
			case err == nil && contents(img) != want:
				t.Fatalf("%s cut at %d of %d reads as another disk, without an error", name, n, len(whole))
			case err != nil && !errors.Is(err, qcow2.ErrCorrupt) && !errors.Is(err, qcow2.ErrNotQcow2):
				t.Fatalf("%s cut at %d: %v", name, n, err)
			}
		}
	}
}

// contents reads the whole disk, or says why it cannot be read.
func contents(img *qcow2.Image) string {
	buf := make([]byte, img.Size())
	if _, err := img.ReadAt(buf, 0); err != nil {
		return fmt.Sprint(err)
	}
	return string(buf)
}

func TestUnsupportedIsNamed(t *testing.T) {
	list := samples(t)
	for name, feature := range map[string]string{"extended": "extended L2", "compressed": "compressed",
		"backed": "backing file"} {
		img, err := qcow2.New(bytes.NewReader(list[name]), int64(len(list[name])))
		if err != nil {
			t.Fatal(err)
		}
		_, err = img.ReadAt(make([]byte, img.Size()), 0)
		if !errors.Is(err, qcow2.ErrUnsupported) || !bytes.Contains([]byte(err.Error()), []byte(feature)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
