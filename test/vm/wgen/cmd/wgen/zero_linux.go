package main

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// zeroOut asks the block layer to zero a range, which reaches QEMU as a write-zeroes request.
func zeroOut(f *os.File, off, length int64) error {
	area := [2]uint64{uint64(off), uint64(length)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&area)))
	if errno != 0 {
		return fmt.Errorf("zero %d bytes at %d of %s: %w", length, off, f.Name(), errno)
	}
	return nil
}
