package ext4

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/filesystem/filesystemtest"
)

// TestMain has the tests keep their images in memory that ends with them, where they may mount.
func TestMain(m *testing.M) {
	filesystemtest.OwnMounts(m, mayMount(), func() error {
		const scratch = "/mnt" // exists everywhere; only this process sees what is put over it
		if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, "size=3g"); err != nil {
			return err
		}
		return os.Setenv("TMPDIR", scratch)
	})
}

// mayMount tells whether the kernel's driver is to be compared with: root has loop devices. Where
// it is so, a mount that does not succeed fails the test. Elsewhere the corpus made without mounts
// (corpus_test.go) stands alone.
func mayMount() bool {
	_, err := os.Stat("/dev/loop-control")
	return os.Geteuid() == 0 && err == nil
}

// mounted mounts an image and returns the directory, and a function that unmounts it, once.
func mounted(t testing.TB, image, options string) (string, func()) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, "mount", "-t", "ext4", "-o", strings.TrimSuffix("loop,"+options, ","), image, dir)
	done := false
	unmount := func() {
		if !done {
			done = true
			command(t, "umount", dir)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/sbin:"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// makeImage makes a file system of size bytes with the options of mke2fs.
func makeImage(t testing.TB, size int64, options ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	command(t, "mke2fs", append(append([]string{"-q", "-F"}, options...), image)...)
	return image
}

// opened opens an image with our reader.
func opened(t testing.TB, image string) *FS {
	t.Helper()
	file, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(file, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return f
}
