package diskimage

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// formats are the names that Options.Format may have: those of QEMU's drivers that read an image
// file and nothing else.
var formats = []string{"raw", "qcow2", formatLUKS, "vmdk", "vhdx", "vdi", "vpc", "qed", "qcow", "parallels"}

// Detect returns the format that the beginning of r looks like; raw if none. A guest that owns a
// raw disk can make it look like any.
func Detect(r io.ReaderAt) (string, error) {
	head := make([]byte, 512)
	n, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	head = head[:n]
	for _, m := range []struct{ magic, format string }{
		{"QFI\xfb\x00\x00\x00\x01", "qcow"}, {"QFI\xfb", "qcow2"}, {"KDMV", "vmdk"}, {"COWD", "vmdk"},
		{"# Disk DescriptorFile", "vmdk"},
		{"vhdxfile", "vhdx"}, {"conectix", "vpc"}, {"QED\x00", "qed"}, {"WithoutFreeSpace", "parallels"},
		{"WithouFreSpacExt", "parallels"},
	} {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.format, nil
		}
	}
	if len(head) >= 0x44 && binary.LittleEndian.Uint32(head[0x40:]) == 0xbeda107f {
		return "vdi", nil
	}
	return "raw", nil
}

// guess returns the format of an image for which none was told, or ErrFormat where a wrong guess
// would show files of the host.
func guess(path string, f *os.File, device bool) (string, error) {
	format, err := Detect(f)
	if err != nil || format == "raw" {
		return format, err
	}
	ext := strings.ToLower(filepath.Ext(path))
	if device || ext == ".raw" || ext == ".img" {
		return "", fmt.Errorf("%w: the name says raw, the content begins as %s does, which a guest can write too; "+
			"say which format it is", ErrFormat, format)
	}
	head := make([]byte, 21)
	if _, err := f.ReadAt(head, 0); err == nil && string(head) == "# Disk DescriptorFile" {
		return "", fmt.Errorf("%w: a vmdk description names further files; say that the format is vmdk if it may be "+
			"followed", ErrFormat)
	}
	return format, nil
}

// known returns ErrFormat for a format that is not to be had.
func known(format string) error {
	if slices.Contains(formats, format) {
		return nil
	}
	return fmt.Errorf("%w: %q is not one of %s", ErrFormat, format, strings.Join(formats, ", "))
}

// refers returns ErrFormat because a guessed format makes the image refer to another file.
func refers(format, file string) error {
	return fmt.Errorf("%w: it looks like %s and refers to the file %q; say that the format is %s if that may be "+
		"followed", ErrFormat, format, file, format)
}
