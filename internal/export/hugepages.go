package export

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const hugePage = 2 << 20

// hugePages asks the kernel to back fresh memory with huge pages, as far as it has whole ones.
func hugePages(b []byte) {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	skip := -at & (hugePage - 1)
	if n := (uintptr(len(b)) - skip) &^ (hugePage - 1); skip < uintptr(len(b)) && n > 0 {
		_ = unix.Madvise(b[skip:skip+n], unix.MADV_HUGEPAGE) // it is advice
	}
}
