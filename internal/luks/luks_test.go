package luks_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/luks"
)

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// QEMU opens what is made here with the secret, reads what was encrypted, and writes what is
// decrypted here.
func TestQEMUReadsVolumes(t *testing.T) {
	v, secret, err := luks.NewEphemeral()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	image, key, out := filepath.Join(dir, "i"), filepath.Join(dir, "k"), filepath.Join(dir, "o")
	plain := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(plain)
	sealed := bytes.Clone(plain)
	v.Cipher.Encrypt(sealed, 0)
	if err := os.WriteFile(image, append(bytes.Clone(v.Header), sealed...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	opts := "driver=luks,key-secret=s,file.driver=file,file.filename=" + image
	object := "secret,id=s,file=" + key
	run(t, "qemu-img", "convert", "--object", object, "--image-opts", opts, "-O", "raw", out)
	got, err := os.ReadFile(out)
	if err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("QEMU reads other bytes, %v", err)
	}
	run(t, "qemu-io", "--object", object, "--image-opts", "-c", "write -P 7 512k 64k", opts)
	all, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	written := all[luks.HeaderSize+512<<10:][:64<<10]
	v.Cipher.Decrypt(written, 1024)
	if !bytes.Equal(written, bytes.Repeat([]byte{7}, 64<<10)) {
		t.Error("what QEMU wrote is decrypted to other bytes")
	}
	if err := os.WriteFile(key, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if exec.Command("qemu-img", "convert", "--object", object, "--image-opts", opts, "-O", "raw", out).Run() == nil {
		t.Error("another secret opens it")
	}
}

// A secret of a person's is derived with many iterations, and an empty one is refused.
func TestSecretsOfPeople(t *testing.T) {
	if _, err := luks.New(nil, 0); err == nil {
		t.Error("an empty secret is taken")
	}
	v, err := luks.New([]byte("geheim"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := int(v.Header[212])<<24 | int(v.Header[213])<<16 | int(v.Header[214])<<8 | int(v.Header[215]); n < 100_000 {
		t.Errorf("%d iterations", n)
	}
}

func BenchmarkEncrypt(b *testing.B) {
	v, _, err := luks.NewEphemeral()
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		v.Cipher.Encrypt(p, 0)
	}
}
