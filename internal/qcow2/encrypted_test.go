package qcow2_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/luks"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// An encrypted image that is made here is opened by QEMU with its secret, holds exactly what was
// written and zeros elsewhere, and shows nothing of it; what QEMU writes is read here.
func TestEncryptedImages(t *testing.T) {
	dir := t.TempDir()
	path, key, out := filepath.Join(dir, "e.qcow2"), filepath.Join(dir, "k"), filepath.Join(dir, "o")
	v, secret, err := luks.NewEphemeral()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	size := int64(10*mib + 512)
	data := extent.Set{{Off: 16 * kib, Len: 32 * kib}, {Off: 5 * mib, Len: 3*mib + 512}, {Off: 10 * mib, Len: 512}}
	w, err := qcow2.NewWriter(path, size, data, qcow2.CreateOptions{Encryption: v})
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{3})
	for _, e := range data {
		p := bytes.Repeat([]byte("GEHEIM. "), int(e.Len/8))
		rng.Read(p[e.Len/2:])
		copy(want[e.Off:], p)
		if _, err := w.WriteAt(p, e.Off); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil || bytes.Contains(raw, []byte("GEHEIM")) || bytes.Contains(raw, v.Header[:6]) == false {
		t.Fatalf("the image shows what it holds, or has no header: %v", err)
	}
	run(t, "qemu-img", "check", "-q", "--object", "secret,id=s,file="+key, "--image-opts", imageOpts(path))
	run(t, "qemu-img", "convert", "--object", "secret,id=s,file="+key, "--image-opts", imageOpts(path), "-O", "raw",
		out)
	got, err := os.ReadFile(out)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("QEMU reads other bytes: %v", err)
	}
	run(t, "qemu-io", "--object", "secret,id=s,file="+key, "--image-opts", "-c", "write -P 9 1M 100k", "-c",
		"write -P 8 5M 512", imageOpts(path))
	copy(want[mib:], bytes.Repeat([]byte{9}, 100<<10))
	copy(want[5*mib:], bytes.Repeat([]byte{8}, 512))
	img := open(t, path)
	if _, err := img.ReadAt(make([]byte, 1), 0); !errors.Is(err, qcow2.ErrUnsupported) ||
		img.Info().Encryption != "luks" {
		t.Errorf("read without the key: %v, encryption %q", err, img.Info().Encryption)
	}
	img.Unlock(v.Cipher)
	have := make([]byte, size)
	if _, err := img.ReadAt(have, 0); err != nil || !bytes.Equal(have, want) {
		t.Errorf("read other bytes than QEMU wrote: %v", err)
	}
	for range 100 { // in no relation to sectors
		off := rand.Int64N(size - 1)
		p := make([]byte, 1+rand.Int64N(min(size-off, 3000)))
		if _, err := img.ReadAt(p, off); err != nil && off+int64(len(p)) < size ||
			!bytes.Equal(p, want[off:off+int64(len(p))]) {
			t.Fatalf("%d bytes at %d: other bytes, %v", len(p), off, err)
		}
	}
}

func imageOpts(path string) string {
	return "driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.driver=file,file.filename=" + path
}
