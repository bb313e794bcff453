package durable_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/directio"
	"github.com/holdfast-vm/holdfast/internal/durable"
)

// Whatever the length of the writes, and wherever in memory their bytes lie, a file holds them one
// after the other: long ones take another way to the disk than short ones.
func TestWritesFollowOneAnother(t *testing.T) {
	both(t, func(t *testing.T, fsys durable.FS, dir string) {
		buf := directio.Buffer(1 << 20)
		for i := range buf {
			buf[i] = byte(i>>8 ^ i>>3)
		}
		for seed := range uint64(4) {
			rng := rand.New(rand.NewPCG(seed, 1))
			name := filepath.Join(dir, string(rune('a'+seed)))
			f, err := fsys.Create(name)
			must(t, err)
			var want []byte
			for range 4 {
				n := rng.IntN(2) * (512 << 10)
				if rng.IntN(3) == 0 {
					n += rng.IntN(10_000)
				}
				p := buf[rng.IntN(2)*rng.IntN(5000):][:n]
				if m, err := f.Write(p); m != n || err != nil {
					t.Fatalf("seed %d: wrote %d of %d bytes: %v", seed, m, n, err)
				}
				want = append(want, p...)
			}
			must(t, f.Sync())
			must(t, f.Close())
			r, err := fsys.Open(name)
			must(t, err)
			got := make([]byte, len(want))
			if n, err := r.ReadAt(got, 0); n != len(got) || !bytes.Equal(got, want) {
				t.Fatalf("seed %d: read %d of %d bytes, or others than were written: %v", seed, n, len(want), err)
			}
			info, err := r.Stat()
			if must(t, err); info.Size != int64(len(want)) {
				t.Fatalf("seed %d: it has %d bytes, %d were written", seed, info.Size, len(want))
			}
			must(t, r.Close())
		}
	})
}

// On a file system that is known for it a long write leaves nothing in the page cache.
func TestLongWritesGoPastTheCache(t *testing.T) {
	name := filepath.Join(t.TempDir(), "long")
	f, err := durable.OS{}.Create(name)
	must(t, err)
	defer f.Close()
	var st unix.Statfs_t
	if must(t, unix.Statfs(name, &st)); st.Type != unix.EXT4_SUPER_MAGIC && st.Type != unix.XFS_SUPER_MAGIC {
		t.Skipf("file system %x is not known for it", st.Type)
	}
	p := directio.Buffer(8 << 20)
	if _, err := f.Write(p); err != nil {
		t.Fatal(err)
	}
	if n := cachedPages(t, name, len(p)); n > 0 {
		t.Errorf("%d pages of it are in the cache", n)
	}
}

// cachedPages returns how many of the pages of a file of size bytes are in the page cache.
func cachedPages(t *testing.T, name string, size int) int {
	t.Helper()
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(m)
	in := make([]byte, (size+4095)/4096)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(size),
		uintptr(unsafe.Pointer(&in[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	n := 0
	for _, b := range in {
		n += int(b & 1)
	}
	return n
}
