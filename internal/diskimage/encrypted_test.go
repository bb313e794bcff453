package diskimage_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/luks"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// encryptedImages makes images of every kind of the raw disk, all with the secret geheim. QEMU
// takes seconds for a LUKS header, so it makes one only.
func encryptedImages(t *testing.T, raw string) (dir string, secret []byte) {
	t.Helper()
	dir, secret = t.TempDir(), []byte("geheim")
	shell(t, `cd "$2"; printf geheim >key
	conv() { out=$1; shift # QEMU measures the processor first, and may give up on a busy one
		for i in 1 2 3 4 5 6 7 8 9; do qemu-img convert --object secret,id=s,file=key -f raw "$RAW" "$@" "$out" && return; done
		false; }
	RAW=$1
	conv luks.qcow2 -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10
	conv aes.qcow2 -O qcow2 -o encrypt.format=aes,encrypt.key-secret=s
	conv old.qcow -O qcow -o encrypt.format=aes,encrypt.key-secret=s`, raw, dir)
	plain, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	v, err := luks.New(secret, luks.Fewest)
	if err != nil {
		t.Fatal(err)
	}
	v.Cipher.Encrypt(plain, 0)
	if err := os.WriteFile(filepath.Join(dir, "disk.luks"), append(v.Header, plain...), 0o600); err != nil {
		t.Fatal(err)
	}
	err = qcow2.Create(filepath.Join(dir, "over.qcow2"), int64(len(plain)),
		qcow2.CreateOptions{BackingFile: "luks.qcow2", BackingFormat: "qcow2", Encryption: v})
	if err != nil {
		t.Fatal(err)
	}
	return dir, secret
}

// An encrypted image is said to be one, opens with its secret, and not with another; nothing of it
// is called damaged.
func TestEncryptedImages(t *testing.T) {
	raw := rawDisk(t)
	dir, secret := encryptedImages(t, raw)
	t.Run("as it is", func(t *testing.T) { testAsIs(t, dir) })
	for _, tt := range []struct{ file, format, encryption string }{
		{"luks.qcow2", "", "luks"}, {"luks.qcow2", "qcow2", "luks"}, {"disk.luks", "luks", "luks"},
		{"disk.luks", "", "luks"},
		{"aes.qcow2", "", "aes"}, {"old.qcow", "", "aes"}, {"over.qcow2", "qcow2", "luks"},
	} {
		t.Run(tt.file+" "+tt.format, func(t *testing.T) {
			path := filepath.Join(dir, tt.file)
			_, err := diskimage.Open(t.Context(), path, diskimage.Options{Format: tt.format})
			if tt.file == "disk.luks" && tt.format == "" {
				err = diskimage.ErrEncrypted // it is read as it lies
			}
			if !errors.Is(err, diskimage.ErrEncrypted) || errors.Is(err, diskimage.ErrDamaged) {
				t.Errorf("without a secret: %v", err)
			}
			m := open(t, path, diskimage.Options{Format: tt.format, Secret: secret})
			if m.Encryption() != tt.encryption || m.AsIs() {
				t.Errorf("encryption %q, as it is: %t", m.Encryption(), m.AsIs())
			}
			requireContent(t, m, raw)
			if tt.encryption == "aes" { // has no way to tell a wrong key
				return
			}
			if _, err := diskimage.Open(t.Context(), path,
				diskimage.Options{Format: tt.format, Secret: []byte("falsch")}); !errors.Is(err, diskimage.ErrSecret) {
				t.Errorf("with another secret: %v", err)
			}
		})
	}
}

// requireContent is requireDisk for an image that may have no holes.
func requireContent(t *testing.T, m *diskimage.Image, raw string) {
	t.Helper()
	if m.Format() != "luks" {
		requireDisk(t, m, raw)
		return
	}
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(m, 0, m.Size()))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes are read, other than those of the disk: %v", len(got), err)
	}
}

// As it lies an image gives its own bytes, but not one that says nothing without another file.
func testAsIs(t *testing.T, dir string) {
	for _, file := range []string{"luks.qcow2", "disk.luks", "aes.qcow2", "old.qcow"} {
		path := filepath.Join(dir, file)
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m := open(t, path, diskimage.Options{AsIs: true})
		got, err := io.ReadAll(io.NewSectionReader(m, 0, m.Size()))
		if err != nil || !bytes.Equal(got, want) || !m.AsIs() || m.Encryption() == "" {
			t.Errorf("%s: other bytes (%v), encryption %q, as it is: %t", file, err, m.Encryption(), m.AsIs())
		}
	}
	if _, err := diskimage.Open(t.Context(), filepath.Join(dir, "over.qcow2"),
		diskimage.Options{AsIs: true}); !errors.Is(err, diskimage.ErrFormat) {
		t.Errorf("an image that stands on another: %v", err)
	}
	plain := open(t, rawDisk(t), diskimage.Options{AsIs: true})
	if plain.AsIs() || plain.Encryption() != "" {
		t.Error("a plain image is called encrypted")
	}
}

// What is written encrypted opens with its secret, in QEMU too, and is durable under its name only
// when it is complete.
func TestCreateEncrypted(t *testing.T) {
	dir, raw := t.TempDir(), rawDisk(t)
	source := open(t, raw, diskimage.Options{Format: "raw"})
	data, err := source.Extents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "e.qcow2")
	w, err := diskimage.CreateEncrypted(path, source.Size(), []byte("geheim"), data.Align(64<<10, source.Size()), false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, e := range data.Align(64<<10, source.Size()) {
		p := make([]byte, e.Len)
		if _, err := source.ReadAt(p, e.Off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if _, err := w.WriteAt(p, e.Off); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	m := open(t, path, diskimage.Options{Secret: []byte("geheim")})
	requireContent(t, m, raw)
	if _, err := diskimage.Open(t.Context(), path, diskimage.Options{}); !errors.Is(err, diskimage.ErrEncrypted) {
		t.Errorf("open without the secret: %v", err)
	}
	if _, err := diskimage.CreateEncrypted(filepath.Join(dir, "x"), 1<<20, nil, nil, false); err == nil {
		t.Error("an empty secret is taken")
	}
}
