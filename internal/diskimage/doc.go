// Package diskimage opens the disk image of a machine that is off, read-only, and makes new ones
// for a restore.
//
// [Open] reads raw files, block devices and plain qcow2 images directly; every other format, and
// qcow2 with a backing file, compression and the like, through a qemu-nbd process that lives as
// long as the [Image] and dies with this process. While an image is open it is locked as QEMU locks
// what it reads: an image that a running machine writes is refused with [ErrInUse], and a machine
// that is started meanwhile fails to start.
//
// A guest can write any bytes to its raw disk, a qcow2 header that names a file of the host among
// them. So a guessed format is trusted only as far as it can do no harm; where it could, Open asks
// for an explicit format with [ErrFormat].
//
// [Create] makes the target of a restore. A file appears under its name complete and durable, with
// Commit, or not at all.
//
// Offsets, sizes and lengths are bytes.
package diskimage

import "errors"

var (
	// ErrInUse reports that another process, as a rule a running machine, uses the image, or that a
	// device is mounted.
	ErrInUse = errors.New("in use")
	// ErrFormat reports that the format must be told, or is not known.
	ErrFormat = errors.New("image format not certain")
	// ErrEmpty reports an image of zero length.
	ErrEmpty = errors.New("image is empty")
	// ErrDamaged reports that the image is shorter than it says, or contradicts itself.
	ErrDamaged = errors.New("image is damaged")
	// ErrNoBitmap reports that the image has no dirty bitmap of that name.
	ErrNoBitmap = errors.New("no such bitmap")
	// ErrBitmapInconsistent reports that what the dirty bitmap says may not be trusted.
	ErrBitmapInconsistent = errors.New("bitmap was not saved properly")
	// ErrExists reports that a target exists and was left alone.
	ErrExists = errors.New("exists already")
	// ErrTooSmall reports a device that is smaller than the disk.
	ErrTooSmall = errors.New("target is too small")
	// ErrNoSpace reports that the target's file system has too little room, before or while it is
	// written.
	ErrNoSpace = errors.New("not enough space")
)
