package content_test

import (
	"math/rand/v2"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
)

// Status says of every range what the disk holds, and agrees with Extents.
func TestStatusTellsHolesFromData(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 7))
		s := newShelf(mem.New())
		size := 4500*testChunk + int64(seed)*777
		parts := map[int64][]byte{}
		for range 40 {
			parts[rng.Int64N(4400)*testChunk] = patchy(rng, rng.IntN(9*testChunk))
		}
		w := newWriter(t, s.begin())
		root := w.disk(size, parts)
		s.commit(t, w.w)
		disk, err := s.open(t).CachedDisk(root, size)
		if err != nil {
			t.Fatal(err)
		}
		want, err := disk.Extents(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 40 {
			off := rng.Int64N(size)
			window := extent.Extent{Off: off, Len: rng.Int64N(size-off) + 1}
			if got := statusData(t, disk, window); !equalSets(got, want.Clip(window)) {
				t.Fatalf("seed %d: of %+v the status says %v, the extents %v", seed, window, got, want.Clip(window))
			}
		}
	}
}

// statusData asks until the window is covered, and returns what is data.
func statusData(t *testing.T, d *content.Disk, window extent.Extent) extent.Set {
	t.Helper()
	var out extent.Set
	for off := window.Off; off < window.End(); {
		runs, err := d.Status(t.Context(), off, window.End()-off)
		if err != nil || len(runs) == 0 {
			t.Fatalf("status at %d: %d runs, %v", off, len(runs), err)
		}
		for i, r := range runs {
			if r.Len <= 0 || i > 0 && r.Hole == runs[i-1].Hole {
				t.Fatalf("runs %v are not maximal", runs)
			}
			if !r.Hole {
				out = out.Append(extent.Extent{Off: off, Len: r.Len})
			}
			off += r.Len
		}
	}
	return out
}

func equalSets(a, b extent.Set) bool {
	return len(a.Subtract(b)) == 0 && len(b.Subtract(a)) == 0
}

// A disk of many TiB is asked for holes, and read, through the few nodes on the way.
func TestHugeDisksCostFewNodes(t *testing.T) {
	store := &spoiling{Store: mem.New()}
	s := newShelf(store)
	const size, at = 8 << 40, 5<<40 + 3*testChunk
	w := newWriter(t, s.begin())
	root := w.disk(size, map[int64][]byte{at: noise(7, testChunk)})
	s.commit(t, w.w)
	r := s.open(t)
	store.reads.Store(0)
	d, err := r.CachedDisk(root, size)
	if err != nil {
		t.Fatal(err)
	}
	runs, err := d.Status(t.Context(), 0, size)
	if err != nil || len(runs) != 3 || runs[0] != (content.Run{Len: at, Hole: true}) || runs[1].Len != testChunk {
		t.Fatalf("status is %v, %v", runs, err)
	}
	for range 100 {
		if id, err := d.Chunk(t.Context(), at/testChunk); err != nil || id.IsHole() {
			t.Fatalf("the chunk is %v, %v", id, err)
		}
	}
	if _, ok := d.CachedChunk(at / testChunk); !ok {
		t.Error("a chunk that was asked for is not at hand")
	}
	if n := store.reads.Load(); n > 6 { // the levels of its tree
		t.Errorf("%d nodes were read, 6 are on the way", n)
	}
}
