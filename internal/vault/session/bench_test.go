package session_test

import (
	"math/rand/v2"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/vault/session"
)

// halfRandom reads as chunks of which half is random.
type halfRandom struct{ page []byte }

func (h halfRandom) ReadAt(p []byte, off int64) (int, error) {
	for i := 0; i < len(p); i += len(h.page) {
		n := copy(p[i:], h.page)
		if n >= 8 {
			at := uint64(off) + uint64(i) + 1
			for j := range 8 {
				p[i+j] = byte(at >> (8 * j))
			}
		}
	}
	return len(p), nil
}

// BenchmarkFullBackup stores disks of 256 MiB.
func BenchmarkFullBackup(b *testing.B) {
	store, err := dir.Create(b.TempDir() + "/vault")
	if err != nil {
		b.Fatal(err)
	}
	r := newRoom(b, store)
	r.ChunkSize = 64 << 10
	const size = 256 << 20
	b.SetBytes(size)
	for i := range b.N {
		page := make([]byte, 64<<10)
		fill(rand.New(rand.NewPCG(uint64(i), 1)), page[:32<<10])
		d := &disk{data: nil}
		s := r.begin(b, "vm")
		out, err := s.PutDisk(b.Context(), session.DiskInput{Size: size, Data: wholeOf(size), Source: halfRandom{page}})
		if err != nil {
			b.Fatal(err)
		}
		d.root = out.Root
		p := newPoint("vm", d)
		p.Disks[0].Size = size
		if err := s.Commit(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}
