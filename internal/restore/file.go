package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// filePath returns where a file of the machine goes. Names come from a point and may not lead out
// of the directory.
func (w *workplace) filePath(f point.File) (string, error) {
	name := f.Name
	if name == "" {
		name = filepath.Base(f.Path)
	}
	if !filepath.IsLocal(name) || !filepath.IsLocal(f.Role) || strings.Contains(f.Role, "/") {
		return "", fmt.Errorf("%q is no name for a file of a machine", f.Role+"/"+f.Name)
	}
	if f.Role == "tpm" { // a directory of its own, whose layout the TPM emulator knows
		return filepath.Join(w.dir, w.name+"-tpm", name), nil
	}
	return filepath.Join(w.dir, w.name+"-"+f.Role+"-"+strings.ReplaceAll(name, "/", "-")), nil
}

// requireFree returns an error if anything is where something is to be written.
func (w *workplace) requireFree(disks []target, files []point.File) error {
	var paths []string
	for _, d := range disks {
		paths = append(paths, d.path)
	}
	for _, f := range files {
		path, err := w.filePath(f)
		if err != nil {
			return err
		}
		paths = append(paths, path)
	}
	for _, p := range paths {
		_, err := os.Lstat(p)
		if err == nil {
			err = diskimage.ErrExists
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

// writeFile writes a small file of the machine, verified and durable.
func (w *workplace) writeFile(ctx context.Context, v *vault.Vault, f point.File) (string, error) {
	path, err := w.filePath(f)
	if err != nil {
		return "", err
	}
	disk, err := v.OpenDisk(f.Root, f.Size)
	if err != nil {
		return "", err
	}
	if err := w.openDirs(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	w.made(path)
	_, err = io.Copy(out, &contextReader{ctx, io.NewSectionReader(disk, 0, f.Size)})
	if err == nil && f.Mode != 0 {
		err = out.Chmod(fs.FileMode(f.Mode).Perm())
	}
	return path, errors.Join(err, out.Sync(), out.Close(), syncDir(filepath.Dir(path)))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// contextReader stops reading when ctx ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
