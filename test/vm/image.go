package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Image is the guest that was built: what QEMU boots, a disk to copy, and how it runs on this
// machine.
type Image struct {
	Kernel string
	Initrd string
	Disk   string // qcow2 without a backing file; never written to
	Accel  Accel
}

// recipe is everything that decides what is in the image, below the repository's root.
var recipe = []string{"test/vm/image", "test/vm/wgen", "packaging/guest/fsfreeze-hook",
	"packaging/guest/fsfreeze-hook.d/sqlite.sh"}

// servicesRecipe is the same of the guest with services.
var servicesRecipe = []string{"test/vm/services", "test/vm/image/sources"}

// FindImage returns the cached guest, or builds it, which takes a minute or two, with the build's
// output going to log. Only one process builds at a time; the others wait for it. The first time
// after the machine has started it also finds out whether the guest runs under KVM here.
func FindImage(ctx context.Context, log io.Writer) (Image, error) {
	dir, err := built(ctx, "guest", recipe, log)
	if err != nil {
		return Image{}, err
	}
	image := Image{
		Kernel: filepath.Join(dir, "vmlinuz"),
		Initrd: filepath.Join(dir, "initrd.img"),
		Disk:   filepath.Join(dir, "disk.qcow2"),
	}
	if image.Accel, err = findAccel(ctx, image.Kernel, accelMemory(dir), log); err != nil {
		return Image{}, fmt.Errorf("find out whether guests run under KVM: %w", err)
	}
	return image, nil
}

// LabImage is [FindImage] for a test.
func LabImage(t testing.TB) Image {
	t.Helper()
	image, err := FindImage(context.Background(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// LabServices returns the disk of the guest with services, which is not to be written to: systemd
// is its process 1, PostgreSQL serves its database and port 80 a page. The lab's kernel boots it,
// with the program "/sbin/init" as [Options.Init].
func LabServices(t testing.TB) string {
	t.Helper()
	dir, err := built(context.Background(), "services", servicesRecipe, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "disk.qcow2")
}

// built returns the directory of what a recipe makes, whose first part has the program that does
// it.
func built(ctx context.Context, kind string, recipe []string, log io.Writer) (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	hash, err := hashRecipe(root, recipe)
	if err != nil {
		return "", fmt.Errorf("hash the recipe of the image %s: %w", kind, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache of guest images: %w", err)
	}
	dir := filepath.Join(cache, "holdfast", kind+"-"+hash)
	if err := ensureImage(ctx, filepath.Join(root, recipe[0], "build"), dir, log); err != nil {
		return "", fmt.Errorf("build image %s: %w", dir, err)
	}
	return dir, nil
}

func ensureImage(ctx context.Context, program, dir string, log io.Writer) error {
	if exists(dir) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	unlock, err := lockFile(filepath.Join(filepath.Dir(dir), "guest.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if exists(dir) {
		return nil
	}
	building, err := os.MkdirTemp(filepath.Dir(dir), "building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(building)
	if err := os.Chmod(building, 0o755); err != nil {
		return err
	}
	fmt.Fprintf(log, "building the guest image in %s; this is done once\n", dir)
	build := exec.CommandContext(ctx, program, building)
	build.Stdout, build.Stderr = log, log
	if err := build.Run(); err != nil {
		return err
	}
	return os.Rename(building, dir)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// lockFile waits for an exclusive lock, which also ends with the process.
func lockFile(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f.Close, nil
}

// repository returns the root of the source tree that the current directory lies in.
func repository() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if exists(filepath.Join(dir, "go.mod")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find the recipe of the guest image: %s lies in no Go module", start)
		}
	}
}

// hashRecipe covers names, modes and contents of the recipe's files, tests and documents excepted.
func hashRecipe(root string, recipe []string) (string, error) {
	hash := sha256.New()
	for _, part := range recipe {
		err := filepath.WalkDir(filepath.Join(root, part), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() || !inRecipe(path) {
				return skipTestdata(entry, err)
			}
			return hashFile(hash, root, path)
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(hash.Sum(nil))[:16], nil
}

func inRecipe(path string) bool {
	test, _ := filepath.Match("*_test.go", filepath.Base(path))
	return !test && filepath.Ext(path) != ".md"
}

func skipTestdata(entry fs.DirEntry, err error) error {
	if err == nil && entry.IsDir() && entry.Name() == "testdata" {
		return filepath.SkipDir
	}
	return err
}

func hashFile(hash io.Writer, root, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	name, err := filepath.Rel(root, path)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(hash, "%s\x00%o\x00%d\x00%s", name, info.Mode().Perm()&0o111, len(content), content)
	return err
}
