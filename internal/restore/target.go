package restore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
)

// peek is how much of a block device is looked at for signs of use, in bytes: partition tables,
// file systems and volumes begin there.
const peek = 1 << 20

// target is a place that a disk is written to.
type target struct {
	path   string
	format string
	force  bool
	secret []byte // the image is encrypted with it; nil means plain
}

func (t target) encrypts() bool { return len(t.secret) > 0 }

// check refuses to encrypt what would have no holes.
func (t target) check() error {
	if t.encrypts() && t.format != "qcow2" {
		return fmt.Errorf("only qcow2 images are encrypted, not %s: one would have no holes, and a device no room for "+
			"the header", t.format)
	}
	return nil
}

func (t target) create(size int64, data extent.Set) (diskimage.Target, error) {
	if t.encrypts() {
		return diskimage.CreateEncrypted(t.path, size, t.secret, data, t.force)
	}
	return diskimage.Create(t.path, size, t.format, data, t.force)
}

// chooseFormat returns the format of a target by what was asked, else by its name.
func chooseFormat(path, asked string) (string, error) {
	switch {
	case asked == "raw" || asked == "qcow2":
		return asked, nil
	case asked != "":
		return "", fmt.Errorf("format %q cannot be written, only raw and qcow2", asked)
	case strings.HasSuffix(path, ".qcow2"):
		return "qcow2", nil
	}
	return "raw", nil
}

// guard returns diskimage.ErrExists for a block device that holds something and may not be
// overwritten. Files are guarded where they are made.
func (t target) guard() error {
	info, err := os.Stat(t.path)
	if err != nil || t.force || info.Mode().Type() != fs.ModeDevice {
		return nil // also what is wrong with the path is told there
	}
	f, err := os.Open(t.path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, peek)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	if len(bytes.TrimLeft(head[:n], "\x00")) > 0 {
		return fmt.Errorf("block device %s holds data: %w", t.path, diskimage.ErrExists)
	}
	return nil
}
