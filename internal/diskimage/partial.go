package diskimage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/directio"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// Partial is a [Target] that another process goes on with if this one ends before Commit.
type Partial struct{ *fileTarget }

// CreatePartial begins the image of a file as [Create] does.
func CreatePartial(path string, size int64, format string, data extent.Set) (*Partial, error) {
	t, err := create(path, size, format, data, false, qcow2.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create disk image %s: %w", path, err)
	}
	f, ok := t.(*fileTarget)
	if !ok {
		return nil, errors.Join(fmt.Errorf("create disk image %s: %w: it is a device", path, ErrFormat), t.Abort())
	}
	return &Partial{f}, nil
}

// OpenPartial goes on with what CreatePartial began with the same arguments, in the file that
// [Partial.Name] told. Everything written before a [Partial.Sync] that succeeded is there. The
// error is os.ErrNotExist if there is no such file.
func OpenPartial(path, name string, size int64, format string, data extent.Set) (*Partial, error) {
	path, err := resolve(path)
	var c contents
	temp := filepath.Join(filepath.Dir(path), filepath.Base(name))
	if err == nil {
		c, err = reopen(temp, size, format, data)
	}
	if err != nil {
		return nil, fmt.Errorf("go on with disk image %s: %w", path, full(plain(err)))
	}
	return &Partial{&fileTarget{contents: c, path: path, temp: temp}}, nil
}

func reopen(temp string, size int64, format string, data extent.Set) (contents, error) {
	if format == "qcow2" {
		w, err := qcow2.ReopenWriter(temp, size, data, qcow2.CreateOptions{})
		return qcow2Contents{w}, err
	}
	f, err := os.OpenFile(temp, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != size {
		err = fmt.Errorf("%w: it has %d bytes, not %d", ErrDamaged, info.Size(), size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &rawContents{directio.On(f), size}, nil
}

// Name returns the name of the file as it is until Commit, in the directory of the image.
func (p *Partial) Name() string { return filepath.Base(p.temp) }

// Sync makes what was written durable, but not the image.
func (p *Partial) Sync() error {
	if err := p.sync(); err != nil {
		return fmt.Errorf("sync disk image %s: %w", p.path, full(err))
	}
	return syncDir(filepath.Dir(p.path))
}

// Leave closes the file and leaves it for OpenPartial. After Commit and Abort it does nothing.
func (p *Partial) Leave() error {
	if p.over {
		return nil
	}
	p.over = true
	return p.leave()
}

// Room returns how many bytes can be written to the file system of dir.
func Room(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}
