package vault_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func openReader(t *testing.T, v *vault.Vault) *vault.Reader {
	t.Helper()
	r, err := v.OpenReader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func readerDisk(t *testing.T, r *vault.Reader, d point.Disk) *vault.Disk {
	t.Helper()
	disk, err := r.Disk(d.Root, d.Size)
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

// readChunks reads all of a disk through Chunk and ReadChunks.
func readChunks(t *testing.T, r *vault.Reader, d *vault.Disk) ([]byte, error) {
	t.Helper()
	out := make([]byte, d.Chunks()*d.ChunkSize())
	var wanted []vault.Wanted
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
		wanted = append(wanted, vault.Wanted{ID: id, Plain: out[at*d.ChunkSize():][:d.ChunkSize()],
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

func requireReaderContent(t *testing.T, r *vault.Reader, p *point.RecoveryPoint, want []byte) {
	t.Helper()
	d := readerDisk(t, r, p.Disks[0])
	if got, err := readChunks(t, r, d); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("chunks of point %s differ: %v", p.ID, err)
	}
	got := make([]byte, len(want))
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("point %s differs: %v", p.ID, err)
	}
}

// A point that a reader named stays while the reader is open: it cannot be purged, and collections
// leave it alone.
func TestAReaderKeepsItsPoint(t *testing.T) {
	store := mem.New()
	key := newVault(t, store)
	v := openVault(t, store, key)
	a := randomDisk(1, 100)
	pa := backUpWhole(t, v, a)
	r := openReader(t, openVault(t, store, key))
	if err := r.RequirePoint(t.Context(), pa.ID); err != nil {
		t.Fatal(err)
	}
	if err := v.PurgePoint(t.Context(), pa.ID); !errors.Is(err, vault.ErrHeld) {
		t.Fatalf("purged under its reader: %v", err)
	}
	collect(t, v)
	requireReaderContent(t, r, pa, a.data)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	deletePoint(t, v, pa.ID)
	collect(t, v)
	collect(t, v)
	if left := storedBytes(t, store); left > 4*testChunk {
		t.Fatalf("%d bytes are left after the reader has gone", left)
	}
}

// A reader whose packs went away finds the chunks where they were moved to.
func TestAReaderFindsWhatWasMoved(t *testing.T) {
	store := mem.New()
	key := newVault(t, store)
	v := openVault(t, store, key)
	all := randomDisk(1, 100)
	whole := backUpWhole(t, v, all)
	part := &disk{data: bytes.Clone(all.data[:20*testChunk])}
	stays := backUpWhole(t, v, part)
	readOnly, err := vault.Open(t.Context(), store, key, vault.Options{Workers: 2, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	one, many := openReader(t, readOnly), openReader(t, readOnly)
	if err := v.PurgePoint(t.Context(), whole.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := v.CollectGarbage(t.Context(), vault.GCOptions{Full: true}); err != nil {
		t.Fatal(err)
	}
	if left := storedBytes(t, store); left > 25*testChunk {
		t.Fatalf("nothing was moved: %d bytes", left)
	}
	d := readerDisk(t, one, stays.Disks[0])
	got := make([]byte, 100)
	if _, err := d.ReadAt(got, testChunk); err != nil || !bytes.Equal(got, part.data[testChunk:][:100]) {
		t.Fatalf("a moved chunk differs: %v", err)
	}
	requireReaderContent(t, many, stays, part.data)
}

// A point that was committed after the reader was opened can be read too.
func TestAReaderSeesLaterPoints(t *testing.T) {
	store := mem.New()
	key := newVault(t, store)
	r := openReader(t, openVault(t, store, key))
	d := randomDisk(3, 20)
	p := backUpWhole(t, openVault(t, store, key), d)
	requireReaderContent(t, r, p, d.data)
}

// One damaged chunk is an error of its own, and of no other.
func TestDamageHitsOnlyItsChunk(t *testing.T) {
	store := &spoiling{Store: mem.New()}
	v := openVault(t, store, newVault(t, store))
	d := randomDisk(4, 40)
	p := backUpWhole(t, v, d)
	r := openReader(t, v)
	store.at.Store(25 * testChunk)
	disk := readerDisk(t, r, p.Disks[0])
	got, err := readChunks(t, r, disk)
	if !errors.Is(err, vault.ErrCorrupt) {
		t.Fatalf("damage was not found: %v", err)
	}
	differ := 0
	for at := range 40 {
		if !bytes.Equal(got[at*testChunk:][:testChunk], d.data[at*testChunk:][:testChunk]) {
			differ++
		}
	}
	if differ != 1 {
		t.Fatalf("%d chunks cannot be read, one is damaged", differ)
	}
}

// spoiling flips a bit of what is read at an offset of data packs, and counts reads of nodes.
type spoiling struct {
	blob.Store
	at    atomic.Int64 // 0 spoils nothing
	nodes atomic.Int64
}

func (s *spoiling) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if strings.HasPrefix(name, "pack/") {
		s.nodes.Add(1)
	}
	n, err := s.Store.ReadAt(ctx, name, p, off)
	if at := s.at.Load(); at > 0 && strings.HasPrefix(name, "pack/") && off <= at && at < off+int64(n) {
		p[at-off] ^= 1
	}
	return n, err
}

// Status says of every range what the disk holds, and agrees with Extents.
func TestStatusTellsHolesFromData(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 7))
		store := mem.New()
		v := openVault(t, store, newVault(t, store))
		s := begin(t, v)
		d := &disk{data: make([]byte, 4500*testChunk+int(seed)*777)}
		for range 12 {
			data, zero := d.scribble(rng)
			if err := put(t.Context(), s, d, data, zero); err != nil {
				t.Fatal(err)
			}
		}
		p := newPoint("vm", d)
		if err := s.Commit(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		stored := readerDisk(t, openReader(t, v), p.Disks[0])
		want, err := stored.Extents(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 40 {
			off := rng.Int64N(stored.Size())
			n := rng.Int64N(stored.Size()-off) + 1
			window := extent.Extent{Off: off, Len: n}
			if got := statusData(t, stored, window); !equalSets(got, want.Clip(window)) {
				t.Fatalf("seed %d: of %+v the status says %v, the extents %v", seed, window, got, want.Clip(window))
			}
		}
	}
}

// statusData asks until the window is covered, and returns what is data.
func statusData(t *testing.T, d *vault.Disk, window extent.Extent) extent.Set {
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

// constant is a source of bytes without end.
type constant byte

func (c constant) ReadAt(p []byte, _ int64) (int, error) {
	for i := range p {
		p[i] = byte(c)
	}
	return len(p), nil
}

var _ io.ReaderAt = constant(0)

// A disk of many TiB is asked for holes, and read, through the few nodes on the way.
func TestHugeDisksCostFewNodes(t *testing.T) {
	store := &spoiling{Store: mem.New()}
	key := newVault(t, store)
	v := openVault(t, store, key)
	const size, at = 8 << 40, 5<<40 + 3*testChunk
	s := begin(t, v)
	out, err := s.PutDisk(t.Context(),
		vault.DiskInput{Size: size, Data: extent.Of(extent.Extent{Off: at, Len: testChunk}), Source: constant(7)})
	if err != nil {
		t.Fatal(err)
	}
	p := newPoint("vm")
	p.Disks = []point.Disk{{Name: "vda", Size: size, Root: out.Root, Used: out.Used}}
	if err := s.Commit(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	r := openReader(t, openVault(t, store, key))
	store.nodes.Store(0)
	d := readerDisk(t, r, p.Disks[0])
	runs, err := d.Status(t.Context(), 0, size)
	if err != nil || len(runs) != 3 || runs[0] != (vault.Run{Len: at, Hole: true}) ||
		runs[1] != (vault.Run{Len: testChunk}) {
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
	if n := store.nodes.Load(); n > 6 { // the levels of its tree
		t.Errorf("%d nodes were read, 6 are on the way", n)
	}
}
