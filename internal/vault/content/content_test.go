package content_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/fault"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
)

// readChunks reads all of a disk through Chunk and ReadChunks.
func readChunks(t *testing.T, r *reader, d *content.Disk) ([]byte, error) {
	t.Helper()
	out := make([]byte, d.Chunks()*d.ChunkSize())
	var wanted []content.Wanted
	var mu sync.Mutex
	var failed error
	calls := 0
	for at := range d.Chunks() {
		id, err := d.Chunk(t.Context(), at)
		if err != nil {
			return nil, err
		}
		if id.IsHole() {
			continue
		}
		wanted = append(wanted, content.Wanted{ID: id, Plain: out[at*d.ChunkSize():][:d.ChunkSize()],
			Done: func(err error) {
				mu.Lock()
				defer mu.Unlock()
				calls++
				failed = errors.Join(failed, err)
			}})
	}
	r.ReadChunks(t.Context(), wanted)
	if calls != len(wanted) {
		t.Fatalf("%d chunks were wanted, %d answered", len(wanted), calls)
	}
	return out[:d.Size()], failed
}

// requireContent reads a disk in every way there is.
func requireContent(t *testing.T, r *reader, d *stored) {
	t.Helper()
	for _, cached := range []bool{false, true} {
		disk := d.open(t, r, cached)
		if got, err := readChunks(t, r, disk); err != nil || !bytes.Equal(got, d.data) {
			t.Fatalf("its chunks differ: %v", err)
		}
		got := make([]byte, len(d.data))
		if _, err := disk.ReadAt(got, 0); err != nil || !bytes.Equal(got, d.data) {
			t.Fatalf("it reads otherwise: %v", err)
		}
		clear(got)
		if err := disk.Restore(t.Context(), writerAt(got), nil); err != nil || !bytes.Equal(got, d.data) {
			t.Fatalf("it is restored otherwise: %v", err)
		}
		if bad, err := disk.Verify(t.Context(), nil); err != nil || len(bad) > 0 {
			t.Fatalf("damaged at %v: %v", bad, err)
		}
	}
}

// Of the chunks that a part of a disk touches all is written that is not zeros, and of the others
// nothing.
func TestRestorePart(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 2))
		s := newShelf(mem.New())
		size := rng.IntN(60*testChunk) + 1
		d := s.put(t, patchy(rng, size))
		disk := d.open(t, s.open(t), false)
		var part extent.Set
		want := make([]byte, size)
		for range rng.IntN(6) {
			off := rng.IntN(size)
			part = part.Union(extent.Of(extent.Extent{Off: int64(off), Len: int64(1 + rng.IntN(size-off))}))
		}
		for _, e := range part.Align(testChunk, int64(size)) {
			copy(want[e.Off:e.End()], d.data[e.Off:e.End()])
		}
		got := make(writerAt, size)
		if err := disk.RestorePart(t.Context(), part, got, nil); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %d: part %v of %d bytes is not what was to be restored, %v", seed, part, size, err)
		}
	}
}

// What was stored is read whatever became of the pack it was in: who has not heard reads the log
// on.
func TestWhatWasMovedIsFound(t *testing.T) {
	s := newShelf(mem.New())
	rng := rand.New(rand.NewPCG(1, 1))
	d := s.put(t, patchy(rng, 200*testChunk-5))
	ways := map[string]func(*reader, *content.Disk) ([]byte, error){
		"chunks": func(r *reader, disk *content.Disk) ([]byte, error) { return readChunks(t, r, disk) },
		"one by one": func(_ *reader, disk *content.Disk) ([]byte, error) {
			got := make([]byte, disk.Size())
			_, err := disk.ReadAt(got, 0)
			return got, err
		},
		"restore": func(_ *reader, disk *content.Disk) ([]byte, error) {
			got := make(writerAt, disk.Size())
			return got, disk.Restore(t.Context(), got, nil)
		},
	}
	readers := map[string]*reader{}
	for name := range ways {
		readers[name] = s.open(t)
	}
	s.move(t, d.object, d.entries)
	for name, read := range ways {
		if got, err := read(readers[name], d.open(t, readers[name], true)); err != nil || !bytes.Equal(got, d.data) {
			t.Errorf("%s: what was moved differs: %v", name, err)
		}
	}
}

// What was stored after the log was read is found too.
func TestLaterPacksAreFound(t *testing.T) {
	s := newShelf(mem.New())
	r := s.open(t)
	d := s.put(t, noise(3, 20*testChunk))
	requireContent(t, r, d)
	if r.looks != 2 { // one of open
		t.Errorf("the log was read %d times for one pack", r.looks-1)
	}
}

// Of several places the first that is whole serves.
func TestASecondCopyServes(t *testing.T) {
	store := mem.New()
	s := newShelf(store)
	d := s.put(t, noise(4, 100*testChunk))
	again := s.put(t, d.data)
	flip := func(b []byte) []byte {
		for i := 100; i < len(b); i += 5000 {
			b[i] ^= 1
		}
		return b
	}
	for _, name := range []string{d.object.Name(), again.object.Name()} {
		r := s.open(t) // it knows both tables
		if _, err := readChunks(t, r, d.open(t, r, false)); err != nil {
			t.Fatal(err)
		}
		if err := store.Corrupt(name, flip); err != nil {
			t.Fatal(err)
		}
		requireContent(t, r, d)
		if err := store.Corrupt(name, flip); err != nil { // as it was
			t.Fatal(err)
		}
	}
}

// One damaged chunk is an error of its own, and of no other.
func TestDamageHitsOnlyItsChunk(t *testing.T) {
	store := &spoiling{Store: mem.New()}
	s := newShelf(store)
	d := s.put(t, noise(5, 40*testChunk))
	r := s.open(t)
	disk := d.open(t, r, true)
	if _, err := disk.Chunk(t.Context(), 0); err != nil { // its only node
		t.Fatal(err)
	}
	store.at.Store(25 * testChunk)
	got, err := readChunks(t, r, disk)
	if !errors.Is(err, content.ErrCorrupt) {
		t.Fatalf("damage was not found: %v", err)
	}
	var differ []int
	for at := range 40 {
		if !bytes.Equal(got[at*testChunk:][:testChunk], d.data[at*testChunk:][:testChunk]) {
			differ = append(differ, at)
		}
	}
	if len(differ) != 1 {
		t.Fatalf("chunks %v cannot be read, one is damaged", differ)
	}
	want := extent.Extent{Off: int64(differ[0]) * testChunk, Len: testChunk}
	if bad, err := disk.Verify(t.Context(), nil); err != nil || len(bad) != 1 || bad[0] != want {
		t.Errorf("damage is at %v, not at %v: %v", bad, want, err)
	}
	if err := disk.Restore(t.Context(), make(writerAt, len(d.data)), nil); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("restored what is damaged: %v", err)
	}
}

// spoiling flips a bit of what is read at an offset of packs, and counts reads of them.
type spoiling struct {
	blob.Store
	at    atomic.Int64 // 0 spoils nothing
	reads atomic.Int64
}

func (s *spoiling) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	n, err := s.Store.ReadAt(ctx, name, p, off)
	if !strings.HasPrefix(name, "index") {
		s.reads.Add(1)
		if at := s.at.Load(); at > 0 && off <= at && at < off+int64(n) {
			p[at-off] ^= 1
		}
	}
	return n, err
}

// A node that is damaged takes what is below it along, and no more.
func TestVerifyPassesADamagedNode(t *testing.T) {
	store := mem.New()
	s := newShelf(store)
	d := s.put(t, noise(6, 200*testChunk))
	leaf := d.entries[200] // the first node: chunks 0 to 63
	if leaf.Kind != 2 {
		t.Fatalf("row 200 is of kind %d", leaf.Kind)
	}
	disk := d.open(t, s.open(t), false)
	err := store.Corrupt(d.object.Name(), func(b []byte) []byte { b[leaf.Offset] ^= 1; return b })
	if err != nil {
		t.Fatal(err)
	}
	bad, err := disk.Verify(t.Context(), nil)
	if want := (extent.Extent{Len: 64 * testChunk}); err != nil || len(bad) != 1 || bad[0] != want {
		t.Errorf("damage is at %v, not at %v: %v", bad, want, err)
	}
}

// A fault of access is not reported as damage, whichever call fails, and the next try succeeds.
func TestAFaultIsNoDamage(t *testing.T) {
	store := fault.New(mem.New())
	s := newShelf(store)
	w, size := newWriter(t, s.begin()), int64(70*testChunk)
	parts := map[int64][]byte{0: noise(7, testChunk), 66 * testChunk: noise(8, 99)}
	d := &stored{data: make([]byte, size), root: w.disk(size, parts)}
	s.commit(t, w.w)
	broken := errors.New("broken")
	for i := 0; ; i++ {
		r := s.open(t)
		before := store.Calls()
		store.FailCall(before+i, broken)
		bad, err := d.open(t, r, false).Verify(t.Context(), nil)
		if len(bad) > 0 || err != nil && (!errors.Is(err, broken) || content.IsDamage(err)) {
			t.Fatalf("call %d failed: damage at %v, %v", i, bad, err)
		}
		if store.Calls() <= before+i {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		if bad, err := d.open(t, r, false).Verify(t.Context(), nil); err != nil || len(bad) > 0 {
			t.Fatalf("after call %d failed: damage at %v, %v", i, bad, err)
		}
	}
}

// Two disks differ where their bytes do, in whole chunks, and where only the larger one has any.
func TestDiff(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 3))
		s := newShelf(mem.New())
		a := s.put(t, patchy(rng, rng.IntN(200*testChunk)+1))
		b := s.put(t, append(bytes.Clone(a.data), patchy(rng, rng.IntN(10*testChunk)+1)...))
		r := s.open(t)
		got, err := r.Diff(t.Context(), a.root, int64(len(a.data)), b.root, int64(len(b.data)))
		if err != nil {
			t.Fatal(err)
		}
		long := append(bytes.Clone(a.data), make([]byte, len(b.data)-len(a.data))...)
		for off := 0; off < len(long); off += testChunk {
			end := min(off+testChunk, len(long))
			at := extent.Extent{Off: int64(off), Len: int64(end - off)}
			differ := !bytes.Equal(long[off:end], b.data[off:end])
			if said := len(got.Clip(at)) > 0; differ && !said {
				t.Fatalf("seed %d: nothing is said of %v, where they differ", seed, at)
			} else if said && !differ {
				t.Fatalf("seed %d: %v is said to differ", seed, at)
			}
		}
	}
}
