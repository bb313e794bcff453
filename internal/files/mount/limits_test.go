package mount_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/files/mount"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/memfs"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// A directory is shown in one place. Of a tree in which each has two names for the next, and one
// back to the top, as many directories are shown as there are.
func TestDirectoriesOfTwoNames(t *testing.T) {
	a := memfs.New(filesystem.Info{Type: "ext4"})
	root := &memfs.File{Attr: filesystem.Attr{ID: a.Root(), Mode: fs.ModeDir}}
	path := ""
	for range 30 {
		next := a.Dir(path + "/a")
		a.Name("/"+path, "b", next)
		a.Name("/"+path, "back", root)
		path += "/a"
	}
	a.Text(path+"/leaf", "data")
	a.Dir("/other")
	shared := a.Dir("/other/shared")
	a.Dir("/third")
	a.Name("/third", "shared", shared)
	var tr troubles
	dir, _ := mounted(t, &tr, nil, volume.Of("vda1", a))
	dirs, refused := 0, 0 // each is named, and those that are shown are gone into
	err := filepath.WalkDir(filepath.Join(dir, "volumes/vda1"), func(_ string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, syscall.ELOOP):
			refused++
			return nil
		case err == nil && d.IsDir():
			dirs++
		}
		return err
	})
	if err != nil || dirs-refused != 1+30+3 || refused != 30+30+1 {
		t.Errorf("%d directories, %d refused, %v", dirs-refused, refused, err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "volumes/vda1", path, "leaf")); err != nil ||
		string(data) != "data" {
		t.Errorf("%q, %v", data, err)
	}
	if !tr.has(`"b" is a second name of a directory`) {
		t.Errorf("%q", tr.told)
	}
}

// folding finds names whatever their case.
type folding struct{ *memfs.FS }

func (f folding) Lookup(dir filesystem.ID, name string) (filesystem.ID, error) {
	for e, err := range f.ReadDir(dir) {
		if err == nil && strings.EqualFold(e.Name, name) {
			return e.ID, nil
		}
	}
	return 0, filesystem.ErrNotExist
}

// Where case does not matter, a directory has many spellings, and is in one place by all of them.
func TestSpellingsOfADirectory(t *testing.T) {
	a := memfs.New(filesystem.Info{Type: "ntfs"})
	a.Dir("/Windows")
	a.Text("/Windows/x", "")
	a.Dir("/other")
	a.Name("/other", "WINDOWS", &memfs.File{Attr: filesystem.Attr{ID: 2, Mode: fs.ModeDir}})
	var tr troubles
	dir, _ := mounted(t, &tr, nil, volume.Of("vda1", folding{a}))
	for _, name := range []string{"Windows", "WINDOWS", "windows"} {
		if _, err := os.Stat(filepath.Join(dir, "volumes/vda1", name, "x")); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "volumes/vda1/other/WINDOWS")); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("in another directory: %v", err)
	}
}

// What is too deep or too much is refused, with the limit.
func TestMountLimits(t *testing.T) {
	a := memfs.New(filesystem.Info{Type: "ext4"})
	a.Dir("/1")
	a.Dir("/1/2")
	a.Dir("/1/2/3")
	for _, name := range []string{"/1/a", "/1/b", "/1/c", "/1/d"} {
		a.Text(name, "")
	}
	var tr troubles
	dir := filepath.Join(t.TempDir(), "m")
	m, err := mount.New(dir, nil, files.Of(&volume.Volumes{List: []*volume.Volume{volume.Of("vda1", a)}}),
		mount.Options{Limits: files.Limits{Depth: 2, Entries: 3}, Trouble: tr.add})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = m.Unmount()
		m.Wait()
	})
	if _, err := os.Stat(filepath.Join(dir, "volumes/vda1/1/2/3")); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("too deep: %v", err)
	}
	if _, err := os.ReadDir(filepath.Join(dir, "volumes/vda1/1")); !errors.Is(err, syscall.EIO) {
		t.Errorf("too much: %v", err)
	}
	if _, err := os.ReadDir(filepath.Join(dir, "volumes/vda1/1/2")); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"more than 2 directories are in each other", "more than 3 entries"} {
		if !tr.has(text) {
			t.Errorf("nothing was told of %q: %q", text, tr.told)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[1] == dir {
			options := strings.Split(f[3], ",")
			for _, o := range []string{"ro", "nosuid", "nodev"} {
				if !slices.Contains(options, o) {
					t.Errorf("it is mounted without %s: %s", o, f[3])
				}
			}
			return
		}
	}
	t.Error("it is not mounted")
}
