package directio_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"unsafe"

	"github.com/holdfast-vm/holdfast/internal/directio"
	"github.com/holdfast-vm/holdfast/internal/extent"
)

// Whatever is aligned and whatever is not, written by many at once, the file holds what was
// written.
func TestWrites(t *testing.T) {
	const size = 8 << 20
	for name, dir := range map[string]string{"disk": t.TempDir(), "memory": shm(t)} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "file")
			f, err := directio.Create(path)
			ok(t, err)
			ok(t, f.Truncate(size))
			ok(t, f.Reserve(extent.Set{{Off: 0, Len: 1 << 20}, {Off: 3 << 20, Len: 1 << 20}}))
			want := make([]byte, size)
			rng := rand.New(rand.NewPCG(1, 2))
			var writers sync.WaitGroup
			for at := int64(0); at < size; {
				n := []int64{4096, 65536, 1 << 20, 100, 4095, 513}[rng.IntN(6)]
				n = min(n, size-at)
				p := directio.Buffer(int(n))
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				copy(want[at:], p)
				off := at
				writers.Go(func() {
					if n, err := f.WriteAt(p, off); n != len(p) || err != nil {
						t.Errorf("wrote %d of %d bytes at %d: %v", n, len(p), off, err)
					}
				})
				at += n
			}
			writers.Wait()
			ok(t, f.Sync())
			ok(t, f.Close())
			got, err := os.ReadFile(path)
			ok(t, err)
			if !bytes.Equal(got, want) {
				t.Error("the file holds other bytes than were written")
			}
		})
	}
}

func TestCreateWantsAFreeName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	ok(t, os.WriteFile(path, []byte("mine"), 0o600))
	if _, err := directio.Create(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created over a file: %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "mine" {
		t.Errorf("the file holds %q now", got)
	}
}

func TestBufferIsAligned(t *testing.T) {
	for _, n := range []int{1, 4096, 1 << 20} {
		p := directio.Buffer(n)
		if len(p) != n || uintptr(unsafe.Pointer(&p[0]))%directio.Align != 0 {
			t.Errorf("buffer of %d bytes: %d at %p", n, len(p), &p[0])
		}
	}
}

// shm is a directory in memory, where a file may not be written past the cache.
func shm(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "hf")
	ok(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
