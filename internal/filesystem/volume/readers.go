package volume

import (
	"errors"
	"io"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/ext4"
	"github.com/holdfast-vm/holdfast/internal/filesystem/fat"
	"github.com/holdfast-vm/holdfast/internal/filesystem/ntfs"
	"github.com/holdfast-vm/holdfast/internal/filesystem/xfs"
)

func openExt(r io.ReaderAt, size int64) (filesystem.FS, error) { return ext4.Open(r, size) }

func openXFS(r io.ReaderAt, size int64) (filesystem.FS, error) { return xfs.Open(r, size) }

func openNTFS(r io.ReaderAt, size int64) (filesystem.FS, error) { return ntfs.Open(r, size) }

func openFAT(r io.ReaderAt, size int64) (filesystem.FS, error) { return fat.Open(r, size) }

// identifyFAT asks the reader, since FAT has no signature to go by.
func identifyFAT(r io.ReaderAt, size int64) (finding, error) {
	f, err := fat.Open(r, size)
	switch {
	case err == nil:
		info := f.Info()
		return finding{kind: info.Type, label: info.Label, uuid: info.UUID, open: openFAT}, nil
	case errors.Is(err, filesystem.ErrNotThis):
		return finding{}, nil
	case errors.Is(err, filesystem.ErrCorrupt):
		return finding{kind: "vfat", open: openFAT}, nil
	}
	return finding{}, err
}
