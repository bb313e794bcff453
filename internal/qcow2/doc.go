// Package qcow2 reads and writes QEMU's qcow2 disk images without any process of QEMU.
//
// An [Image] gives the allocation map, the data of allocated clusters and the persistent dirty
// bitmaps of an image that somebody else wrote; nothing in the file is trusted, and memory stays
// bounded by a cache of a few MiB and the first-level table, whatever the file claims. A [Writer]
// lays out a new image whose allocated clusters are known beforehand, so that many goroutines can
// fill it at once. [Create] makes an empty image, whose bitmaps can carry chosen bits into a
// running QEMU (block-dirty-bitmap-merge).
//
// New images can be encrypted (LUKS inside qcow2), and such an image is read with the cipher that
// it was made with; others' need QEMU.
//
// What is not implemented is refused with [ErrUnsupported], never guessed: others' encryption,
// external data files, extended L2 entries, compressed clusters, and what only a backing file
// knows. The package takes no lock: the caller knows that nobody writes the image.
//
// Offsets, sizes and lengths are bytes. The format is QEMU's docs/interop/qcow2.txt; all integers
// are big-endian.
package qcow2

import (
	"errors"
	"fmt"
)

var (
	// ErrNotQcow2 reports that the file does not begin as a qcow2 image.
	ErrNotQcow2 = errors.New("not a qcow2 image")
	// ErrUnsupported reports a feature of the image that this package cannot read; the text names
	// it. qemu-nbd may be able to.
	ErrUnsupported = errors.New("qcow2 feature not supported")
	// ErrCorrupt reports that the image contradicts itself or is shorter than its tables say.
	ErrCorrupt = errors.New("corrupt qcow2 image")
	// ErrNoBitmap reports that the image has no bitmap of that name.
	ErrNoBitmap = errors.New("no such bitmap")
	// ErrBitmapInconsistent reports that a bitmap was not saved properly: what it says of changes
	// may not be trusted.
	ErrBitmapInconsistent = errors.New("bitmap was not saved properly")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}
