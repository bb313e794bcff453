package export

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// cachedFile is a file of a layer with a page cache, as treacherous as the one of Linux: every
// process reads at once what was written, power loss takes what was not synced, and what a sync has
// failed to write counts as written.
type cachedFile struct {
	disk        *crashDisk
	cache, safe []byte
	dirty       map[int]bool // by sector
}

func newCachedFile(d *crashDisk, size int64) *cachedFile {
	return &cachedFile{disk: d, cache: make([]byte, size), safe: make([]byte, size), dirty: map[int]bool{}}
}

func (f *cachedFile) touch(off, n int64) {
	for s := off / sector; s*sector < off+n; s++ {
		f.dirty[int(s)] = true
	}
}

func (f *cachedFile) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(f.cache)) {
		return 0, io.EOF
	}
	return copy(p, f.cache[off:]), nil
}

func (f *cachedFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.disk.call(); err != nil {
		return 0, err
	}
	f.touch(off, int64(len(p)))
	return copy(f.cache[off:], p), nil
}

func (f *cachedFile) Zero(off, n int64, _ bool) error {
	if err := f.disk.call(); err != nil {
		return err
	}
	f.touch(off, n)
	clear(f.cache[off : off+n])
	return nil
}

func (f *cachedFile) Sync() error {
	if err := f.disk.call(); err != nil {
		if errors.Is(err, errBadSector) {
			clear(f.dirty)
		}
		return err
	}
	for s := range f.dirty {
		copy(f.safe[s*sector:min((s+1)*sector, len(f.safe))], f.cache[s*sector:])
	}
	clear(f.dirty)
	return nil
}

// Reread implements layerFile.
func (f *cachedFile) Reread() error {
	if err := f.Sync(); err != nil {
		return err
	}
	copy(f.cache, f.safe)
	return nil
}

func (f *cachedFile) Run(_, n int64) (int64, bool, error) { return n, false, nil }
func (f *cachedFile) TryReadAt([]byte, int64) bool        { return false }
func (f *cachedFile) Close() error                        { return nil }

// losePower leaves of what was not synced each sector by chance.
func (f *cachedFile) losePower(rng *rand.Rand) {
	odds := rng.Float64()
	for s := 0; s*sector < len(f.cache); s++ {
		if f.dirty[s] && rng.Float64() < odds {
			copy(f.safe[s*sector:min((s+1)*sector, len(f.safe))], f.cache[s*sector:])
		}
	}
	copy(f.cache, f.safe)
	clear(f.dirty)
}

var (
	errKilled    = errors.New("killed")
	errBadSector = errors.New("input/output error")
)

// Wherever a process that writes a layer is killed or told that its disk is bad, what the next one
// flushes is there after power loss: what it read and did not write itself, too.
func TestALayerSurvivesKillAtEveryCall(t *testing.T) {
	for _, why := range []error{errKilled, errBadSector} {
		for seed := range uint64(4) {
			for n := 0; killLayer(t, seed, n, why); n++ {
			}
		}
	}
}

// killLayer has a process end at call n, another go on, and then power fail. It reports whether it
// came to that.
func killLayer(t *testing.T, seed uint64, n int, why error) bool {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 5))
	below := memDisk(randomBytes(rng, 9*layerBlock+700))
	d := &crashDisk{crashAt: -1, failAt: -1}
	data, meta := newCachedFile(d, below.Size()), newCachedFile(d, mapSize(below.Size()))
	one, err := newLayer(below, data, meta)
	if err != nil {
		t.Fatal(err)
	}
	d.failAt, d.failErr = d.calls+n, why
	ended := false
	for range 12 {
		if rng.IntN(3) == 0 {
			err = one.Flush(t.Context())
		} else {
			err = scribble(t.Context(), rng, one, bytes.Clone(below))
		}
		if ended = err != nil; ended {
			break
		}
	}
	d.failAt = -1
	two, err := newLayer(below, data, meta) // the next process
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, below.Size())
	if err := two.ReadAt(t.Context(), want, 0); err != nil {
		t.Fatal(err)
	}
	for range rng.IntN(4) {
		if err := scribble(t.Context(), rng, two, want); err != nil {
			t.Fatal(err)
		}
	}
	if err := two.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	data.losePower(rng)
	meta.losePower(rng)
	three, err := newLayer(below, data, meta)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, below.Size())
	if err := three.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	if at := firstDifference(got, want); at >= 0 {
		t.Fatalf("seed %d, %v at call %d: byte %d was flushed as %d and is %d after power loss", seed, why, n, at,
			want[at], got[at])
	}
	return ended
}
