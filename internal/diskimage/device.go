package diskimage

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/directio"
	"github.com/holdfast-vm/holdfast/internal/extent"
)

const sector = 512

// device is what a restore to a block device needs of one.
type device interface {
	io.WriterAt
	io.Closer
	Sync() error
	// zero makes whole sectors read as zeros, or says that the device cannot and they must be
	// written.
	zero(off, n int64) error
}

// deviceTarget is a block device, written in place.
type deviceTarget struct {
	device
	path string
	size int64
	over bool
}

// createDevice opens the device at path and zeroes what is not data.
func createDevice(path string, size int64, data extent.Set) (Target, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0) // exclusive: the kernel refuses one that is mounted or held
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%w: the device is mounted, or part of another", ErrInUse)
	}
	if err != nil {
		return nil, plain(err)
	}
	length, err := f.Seek(0, io.SeekEnd)
	if err == nil && length < size {
		err = fmt.Errorf("%w: the device has %d bytes, the disk %d", ErrTooSmall, length, size)
	}
	if err == nil {
		err = lockWhole(f)
	}
	t := &deviceTarget{device: blockDevice{directio.On(f)}, path: path, size: size}
	if err == nil {
		err = zeroRest(t.device, size, data)
	}
	if err != nil {
		t.device.Close()
		return nil, err
	}
	return t, nil
}

// zeroRest zeroes what is not data of the first size bytes.
func zeroRest(d device, size int64, data extent.Set) error {
	for _, e := range (extent.Set{{Off: 0, Len: size}}).Subtract(data) {
		from, to := (e.Off+sector-1)&^(sector-1), e.End()&^(sector-1)
		if from >= to {
			from, to = e.End(), e.End()
		}
		if err := writeZeros(d, e.Off, from-e.Off); err != nil {
			return err
		}
		if from < to && d.zero(from, to-from) != nil {
			if err := writeZeros(d, from, to-from); err != nil {
				return err
			}
		}
		if err := writeZeros(d, to, e.End()-to); err != nil {
			return err
		}
	}
	return nil
}

var zeros [1 << 20]byte

func writeZeros(d io.WriterAt, off, n int64) error {
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if _, err := d.WriteAt(zeros[:k], off); err != nil {
			return fmt.Errorf("write zeros at %d: %w", off, err)
		}
		off, n = off+k, n-k
	}
	return nil
}

func (t *deviceTarget) WriteAt(p []byte, off int64) (int, error) {
	err := within(p, off, t.size)
	n := 0
	if err == nil {
		n, err = t.device.WriteAt(p, off)
	}
	if err != nil {
		err = fmt.Errorf("write device %s: %w", t.path, full(err))
	}
	return n, err
}

func (t *deviceTarget) Commit() error {
	if t.over {
		return fmt.Errorf("commit device %s: %w", t.path, os.ErrClosed)
	}
	t.over = true
	if err := errors.Join(t.Sync(), t.Close()); err != nil {
		return fmt.Errorf("commit device %s: %w", t.path, err)
	}
	return nil
}

func (t *deviceTarget) Abort() error {
	if t.over {
		return nil
	}
	t.over = true
	return t.Close()
}

// blockDevice is a device of the kernel.
type blockDevice struct{ *directio.File }

func (b blockDevice) zero(off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, b.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return errno
	}
	return nil
}
