package diskimage_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
)

var someData = extent.Set{{Off: 1000, Len: 5000}, {Off: 3 * mib, Len: mib}, {Off: 8*mib - 700, Len: 700}}

// write fills someData of a target in parallel and returns what a disk of 8 MiB must then hold.
func write(t testing.TB, target diskimage.Target) []byte {
	t.Helper()
	want := make([]byte, 8*mib)
	var wg sync.WaitGroup
	for i, e := range someData {
		copy(want[e.Off:e.End()], bytes.Repeat([]byte{byte(i + 1)}, int(e.Len)))
		wg.Go(func() {
			if _, err := target.WriteAt(want[e.Off:e.End()], e.Off); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return want
}

func requireBytes(t testing.TB, path, format string, want []byte) {
	t.Helper()
	m := open(t, path, diskimage.Options{Format: format})
	got := make([]byte, len(want))
	if n, _ := m.ReadAt(got, 0); n != len(want) || !bytes.Equal(got, want) {
		t.Errorf("%s reads %d of %d bytes, or others than were written", path, n, len(want))
	}
}

func names(t testing.TB, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range list {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestTargetFiles(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "disk")
			target, err := diskimage.Create(path, 8*mib, format, someData, false)
			if err != nil {
				t.Fatal(err)
			}
			want := write(t, target)
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("before Commit: %v", err)
			}
			if err := target.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := target.Abort(); err != nil {
				t.Errorf("Abort after Commit: %v", err)
			}
			requireBytes(t, path, format, want)
			if got := names(t, dir); got != "disk" {
				t.Errorf("the directory holds %s", got)
			}
			if got := shell(t, `stat -c %b "$1"`, path); len(got) > 4 { // 512-byte blocks: 8 MiB would be 16,384
				t.Errorf("%s blocks of the disk are in use", got)
			}
			if _, err := diskimage.Create(path, 8*mib, format, nil, false); !errors.Is(err, diskimage.ErrExists) {
				t.Errorf("Create over it: %v, want %v", err, diskimage.ErrExists)
			}
		})
	}
}

func TestTargetForce(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "disk"), filepath.Join(dir, "link")
	shell(t, `echo old >"$1"; chmod 640 "$1"; ln -s disk "$2"`, path, link)
	for _, commit := range []bool{false, true} {
		target, err := diskimage.Create(link, 8*mib, "raw", someData, true)
		if err != nil {
			t.Fatal(err)
		}
		want := write(t, target)
		if got := shell(t, `cat "$1"`, path); got != "old" {
			t.Errorf("before the end the file holds %q", got)
		}
		if !commit {
			if err := target.Abort(); err != nil {
				t.Fatal(err)
			}
			if err := target.Commit(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("Commit after Abort: %v", err)
			}
			if got := shell(t, `cat "$1"; ls -A "$(dirname "$1")"`, path); got != "old\ndisk\nlink" {
				t.Errorf("after Abort: %q", got)
			}
			continue
		}
		if err := target.Commit(); err != nil {
			t.Fatal(err)
		}
		requireBytes(t, path, "raw", want)
		if got := shell(t, `stat -c %a "$1"; readlink "$2"`, path, link); got != "640\ndisk" {
			t.Errorf("permissions and link are now %q", got)
		}
	}
}

// A file that takes the name while the target is written is not replaced.
func TestTargetLosesTheName(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	target, err := diskimage.Create(path, mib, "qcow2", nil, false)
	if err != nil {
		t.Fatal(err)
	}
	shell(t, `echo theirs >"$1"`, path)
	if err := target.Commit(); !errors.Is(err, diskimage.ErrExists) {
		t.Errorf("Commit: %v, want %v", err, diskimage.ErrExists)
	}
	if got := shell(t, `cat "$1"`, path) + " " + names(t, dir); got != "theirs disk" {
		t.Errorf("afterwards: %q", got)
	}
}

func TestTargetRefuses(t *testing.T) {
	dir := t.TempDir()
	const pib = int64(1) << 50
	for name, err := range map[string]error{
		"ErrNoSpace": failed(diskimage.Create(filepath.Join(dir, "a"), pib, "qcow2", extent.Set{{Off: 0, Len: pib}},
			false)),
		"directory": failed(diskimage.Create(dir, mib, "raw", nil, true)),
		"vmdk":      failed(diskimage.Create(filepath.Join(dir, "a"), mib, "vmdk", nil, false)),
		"outside": failed(diskimage.Create(filepath.Join(dir, "a"), mib, "raw", extent.Set{{Off: mib, Len: 1}},
			false)),
		"no such": failed(diskimage.Create(filepath.Join(dir, "b", "a"), mib, "raw", nil, false)),
	} {
		if err == nil || !strings.Contains(err.Error(), name) && !errors.Is(err, diskimage.ErrNoSpace) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := names(t, dir); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

func failed(_ diskimage.Target, err error) error { return err }

// loop returns a block device of 10 MiB, every byte of which is 0xff.
func loop(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "device")
	shell(t, `head -c 10M /dev/zero | tr '\000' '\377' >"$1"`, file)
	dev := shell(t, `losetup -f --show "$1"`, file)
	t.Cleanup(func() { shell(t, `losetup -d "$1"`, dev) })
	return dev
}

func TestTargetDevice(t *testing.T) {
	dev := loop(t)
	if _, err := diskimage.Create(dev, 11*mib, "raw", nil, false); !errors.Is(err, diskimage.ErrTooSmall) {
		t.Errorf("a larger disk: %v", err)
	}
	if _, err := diskimage.Create(dev, mib, "qcow2", nil, false); !errors.Is(err, diskimage.ErrFormat) {
		t.Errorf("qcow2: %v", err)
	}
	target, err := diskimage.Create(dev, 8*mib, "raw", someData, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := diskimage.Create(dev, 8*mib, "raw", someData, false); !errors.Is(err, diskimage.ErrInUse) {
		t.Errorf("a device that is held: %v", err)
	}
	want := write(t, target)
	if _, err := target.WriteAt([]byte{1}, 8*mib); err == nil {
		t.Error("a write after the disk's end was accepted")
	}
	if err := target.Commit(); err != nil {
		t.Fatal(err)
	}
	requireBytes(t, dev, "raw", append(want, bytes.Repeat([]byte{0xff}, int(2*mib))...))
	m := open(t, dev, diskimage.Options{})
	if data, err := m.Extents(t.Context()); err != nil || data.Bytes() != 10*mib {
		t.Errorf("Extents of a device: %v, %v", data, err)
	}
}
