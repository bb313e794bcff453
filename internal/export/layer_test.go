package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/nbd"
)

// memDisk is a read-only disk in memory.
type memDisk []byte

func (m memDisk) Size() int64 { return int64(len(m)) }
func (m memDisk) ReadAt(_ context.Context, p []byte, off int64) error {
	copy(p, m[off:off+int64(len(p))])
	return nil
}
func (m memDisk) Status(_ context.Context, off, n int64) ([]nbd.StatusExtent, error) {
	return []nbd.StatusExtent{{Length: min(n, 3*layerBlock)}, {Length: max(0, n-3*layerBlock)}}, nil
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32() | 1) // never zero, as what was lost is
	}
	return b
}

var testOf = LayerOf{Vault: strings.Repeat("ab", 16), Root: strings.Repeat("cd", 32)}

func openTestLayer(t *testing.T, dir string, below memDisk) *Layer {
	t.Helper()
	of := testOf
	of.Size = below.Size()
	l, err := OpenLayer(dir, "vda", below, of)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// scribble does one random write, zeroing or trim, to the layer and to the model.
func scribble(ctx context.Context, rng *rand.Rand, l *Layer, model []byte) error {
	size := int64(len(model))
	off := rng.Int64N(size)
	n := min(rng.Int64N(5*layerBlock)+1, size-off)
	if rng.IntN(2) == 0 {
		off &^= layerBlock - 1
		n = min((n+layerBlock-1)&^(layerBlock-1), size-off)
	}
	switch rng.IntN(6) {
	case 0:
		clear(model[off : off+n])
		return l.WriteZeroes(ctx, off, n, rng.IntN(2) == 0)
	case 1:
		start, end := (off+layerBlock-1)&^(layerBlock-1), off+n
		if end < size {
			end &^= layerBlock - 1
		}
		if start < end {
			clear(model[start:end])
		}
		return l.Trim(ctx, off, n)
	default:
		p := randomBytes(rng, int(n))
		copy(model[off:], p)
		return l.WriteAt(ctx, p, off)
	}
}

func requireLayer(t *testing.T, l *Layer, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if err := l.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("the layer differs at offset %d", firstDifference(got, want))
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// Whatever is written, zeroed and trimmed at whatever offsets reads back, now and after opening it
// again; holes are never data; and the disk below shows wherever nothing was written.
func TestALayerIsADisk(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 0))
		below := memDisk(randomBytes(rng, 60*layerBlock+int(seed)*512))
		model := bytes.Clone(below)
		dir := filepath.Join(t.TempDir(), "new", "layers")
		for range 3 {
			l := openTestLayer(t, dir, below)
			for range 40 {
				if err := scribble(t.Context(), rng, l, model); err != nil {
					t.Fatal(err)
				}
				off := rng.Int64N(l.Size())
				p := make([]byte, rng.Int64N(min(l.Size()-off, 3*layerBlock)))
				if err := l.ReadAt(t.Context(), p, off); err != nil || !bytes.Equal(p, model[off:][:len(p)]) {
					t.Fatalf("seed %d: %d bytes at %d differ: %v", seed, len(p), off, err)
				}
			}
			requireLayer(t, l, model)
			requireHolesAreZeros(t, l, model)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		l := openTestLayer(t, dir, below)
		requireLayer(t, l, model)
		l.Close()
	}
}

func requireHolesAreZeros(t *testing.T, l *Layer, model []byte) {
	t.Helper()
	for off := int64(0); off < l.Size(); {
		status, err := l.Status(t.Context(), off, l.Size()-off)
		if err != nil || len(status) == 0 {
			t.Fatalf("status at %d: %v, %v", off, status, err)
		}
		for _, e := range status {
			if e.Flags&nbd.AllocationZero != 0 && len(bytes.Trim(model[off:off+e.Length], "\x00")) > 0 {
				t.Fatalf("the hole at %d holds data", off)
			}
			off += e.Length
		}
	}
}

// Writers of parts of one block, at the same time, all find their bytes again.
func TestWritersOfOneBlockDoNotUndoEachOther(t *testing.T) {
	below := memDisk(make([]byte, 64*layerBlock))
	l := openTestLayer(t, t.TempDir(), below)
	defer l.Close()
	var writers sync.WaitGroup
	for part := range 8 {
		writers.Go(func() {
			for block := range int64(64) {
				p := bytes.Repeat([]byte{byte(part + 1)}, 512)
				if err := l.WriteAt(t.Context(), p, block*layerBlock+int64(part)*512); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	want := make([]byte, 0, len(below))
	for range 64 {
		for part := range 8 {
			want = append(want, bytes.Repeat([]byte{byte(part + 1)}, 512)...)
		}
	}
	requireLayer(t, l, want)
}

// A layer is refused, with an error that says why, over another disk, to a second writer, and when
// its files are not what they were.
func TestOpenLayerRefuses(t *testing.T) {
	below := memDisk(randomBytes(rand.New(rand.NewPCG(1, 1)), 10*layerBlock))
	of := testOf
	of.Size = below.Size()
	other, smaller, elsewhere := of, of, of
	other.Root = strings.Repeat("ef", 32)
	smaller.Size -= layerBlock
	elsewhere.Vault = strings.Repeat("01", 16)
	for _, tt := range []struct {
		name string
		of   LayerOf
		hurt func(dir string) error
		want error
	}{
		{"another root", other, nil, ErrOtherDisk},
		{"a disk of holes", LayerOf{Vault: of.Vault, Size: of.Size}, nil, ErrOtherDisk},
		{"another size", smaller, nil, ErrOtherDisk},
		{"another vault", elsewhere, nil, ErrOtherDisk},
		{"map cut", of, func(dir string) error {
			return os.Truncate(filepath.Join(dir, "vda.map"), layerHeader+100)
		}, ErrLayerDamaged},
		{"map empty", of, func(dir string) error {
			return os.Truncate(filepath.Join(dir, "vda.map"), 0)
		}, ErrLayerDamaged},
		{"map lost", of, func(dir string) error { return os.Remove(filepath.Join(dir, "vda.map")) }, ErrLayerDamaged},
		{"data cut", of, func(dir string) error {
			return os.Truncate(filepath.Join(dir, "vda.layer"), layerBlock)
		}, ErrLayerDamaged},
		{"data lost", of, func(dir string) error {
			return os.Remove(filepath.Join(dir, "vda.layer"))
		}, ErrLayerDamaged},
		{"header changed", of, func(dir string) error {
			return flip(filepath.Join(dir, "vda.map"), 1000)
		}, ErrLayerDamaged},
		{"magic changed", of, func(dir string) error {
			return flip(filepath.Join(dir, "vda.map"), 0)
		}, ErrLayerDamaged},
		{"a block past the end", of, func(dir string) error {
			return flip(filepath.Join(dir, "vda.map"), layerHeader+2)
		}, ErrLayerDamaged},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			l := openTestLayer(t, dir, below)
			if err := l.WriteAt(t.Context(), []byte("x"), 5); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenLayer(dir, "vda", below, of); !errors.Is(err, ErrLayerInUse) {
				t.Fatalf("a second writer: %v", err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if tt.hurt != nil {
				if err := tt.hurt(dir); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := OpenLayer(dir, "vda", below, tt.of); !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
		})
	}
}

func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b, at)
	return err
}

// crashDisk is what the files of a layer lie on in tests: of what was not synced when the power
// fails, each sector is there or not.
type crashDisk struct {
	calls, crashAt int
	failAt         int
	failErr        error
}

var errPower = errors.New("power lost")

// call counts a call that changes something.
func (d *crashDisk) call() error {
	n := d.calls
	d.calls++
	if d.crashAt >= 0 && n >= d.crashAt {
		return errPower
	}
	if n == d.failAt {
		return d.failErr
	}
	return nil
}

const sector = 512

type crashFile struct {
	disk         *crashDisk
	now, durable []byte
}

func newCrashFile(d *crashDisk, size int64) *crashFile {
	return &crashFile{disk: d, now: make([]byte, size), durable: make([]byte, size)}
}

func (f *crashFile) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(f.now)) {
		return 0, io.EOF
	}
	return copy(p, f.now[off:]), nil
}

func (f *crashFile) TryReadAt([]byte, int64) bool { return false }

// WriteAt has its effect even if power fails at it: it may or may not survive.
func (f *crashFile) WriteAt(p []byte, off int64) (int, error) {
	err := f.disk.call()
	if errors.Is(err, syscall.ENOSPC) {
		return 0, err
	}
	return copy(f.now[off:], p), err
}

func (f *crashFile) Zero(off, n int64, _ bool) error {
	err := f.disk.call()
	clear(f.now[off : off+n])
	return err
}

func (f *crashFile) Run(_, n int64) (int64, bool, error) { return n, false, nil }
func (f *crashFile) Close() error                        { return nil }

func (f *crashFile) Sync() error {
	if err := f.disk.call(); err != nil {
		return err
	}
	copy(f.durable, f.now)
	return nil
}

func (f *crashFile) Reread() error { return f.Sync() }

// afterCrash returns what may be found: of what was not synced, each sector by chance.
func (f *crashFile) afterCrash(rng *rand.Rand, d *crashDisk) *crashFile {
	after := newCrashFile(d, int64(len(f.now)))
	odds := rng.Float64()
	for at := 0; at < len(f.now); at += sector {
		from := f.durable
		if rng.Float64() < odds {
			from = f.now
		}
		copy(after.durable[at:min(at+sector, len(f.now))], from[at:])
	}
	copy(after.now, after.durable)
	return after
}

// history is what a disk may hold: per sector all values it had since the last flush that
// succeeded.
type history map[int][][]byte

func (h history) add(model []byte) {
	for at := 0; at < len(model); at += sector {
		h[at] = append(h[at], bytes.Clone(model[at:min(at+sector, len(model))]))
	}
}

func (h history) check(got []byte) error {
	for at, possible := range h {
		found := false
		for _, p := range possible {
			found = found || bytes.Equal(p, got[at:at+len(p)])
		}
		if !found {
			return fmt.Errorf("the sector at %d is none of the %d things that were written there", at, len(possible))
		}
	}
	return nil
}

// Wherever the power fails, everything that was flushed is there, and every sector holds something
// that was written to it since, whole.
func TestALayerSurvivesCrashAtEveryCall(t *testing.T) {
	for seed := range uint64(5) {
		for n := 0; crashLayer(t, seed, n); n++ {
		}
	}
}

// crashLayer writes with power failing at call n, looks at what is left, and reports whether it
// came to that.
func crashLayer(t *testing.T, seed uint64, n int) bool {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 3))
	below := memDisk(randomBytes(rng, 9*layerBlock+700))
	d := &crashDisk{crashAt: -1, failAt: -1}
	data, meta := newCrashFile(d, below.Size()), newCrashFile(d, mapSize(below.Size()))
	l, err := newLayer(below, data, meta)
	if err != nil {
		t.Fatal(err)
	}
	d.crashAt = d.calls + n
	model := bytes.Clone(below)
	h := history{}
	h.add(model)
	for range 30 {
		if rng.IntN(4) == 0 {
			if err = l.Flush(t.Context()); err == nil {
				h = history{}
			}
		} else {
			err = scribble(t.Context(), rng, l, model)
		}
		h.add(model)
		if err != nil {
			break
		}
	}
	if err != nil && !errors.Is(err, errPower) {
		t.Fatal(err)
	}
	for variant := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed<<32|uint64(n), variant))
		alive := &crashDisk{crashAt: -1, failAt: -1}
		again, err := newLayer(below, data.afterCrash(rng, alive), meta.afterCrash(rng, alive))
		if err != nil {
			t.Fatalf("seed %d, crash at %d: %v", seed, n, err)
		}
		got := make([]byte, below.Size())
		if err := again.ReadAt(t.Context(), got, 0); err != nil {
			t.Fatal(err)
		}
		if err := h.check(got); err != nil {
			t.Fatalf("seed %d, crash at %d, variant %d: %v", seed, n, variant, err)
		}
	}
	return err != nil
}

// Whoever writes or flushes is told of a full disk; nothing acknowledged is lost, and a later flush
// makes it good.
func TestAFullDiskLosesNothing(t *testing.T) {
	for n := 0; ; n++ {
		rng := rand.New(rand.NewPCG(9, 9))
		below := memDisk(randomBytes(rng, 20*layerBlock))
		d := &crashDisk{crashAt: -1, failAt: -1, failErr: syscall.ENOSPC}
		data, meta := newCrashFile(d, below.Size()), newCrashFile(d, mapSize(below.Size()))
		l, err := newLayer(below, data, meta)
		if err != nil {
			t.Fatal(err)
		}
		d.failAt = d.calls + n
		model := bytes.Clone(below)
		var failed error
		for i := range 12 {
			off := rng.Int64N(20) * layerBlock
			p := randomBytes(rng, layerBlock)
			if err := l.WriteAt(t.Context(), p, off); err == nil {
				copy(model[off:], p)
			} else {
				failed = err
			}
			if i%4 == 3 {
				if err := l.Flush(t.Context()); err != nil {
					failed = err
				}
			}
		}
		if d.calls <= d.failAt {
			if failed != nil {
				t.Fatal(failed)
			}
			return
		}
		if !errors.Is(failed, syscall.ENOSPC) {
			t.Fatalf("fault at %d: the error is %v", n, failed)
		}
		requireLayer(t, l, model)
		// a sync that failed once is never trusted again
		if err := l.Flush(t.Context()); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		again, err := newLayer(below, data, meta)
		if err != nil {
			t.Fatal(err)
		}
		if l.broken == nil {
			requireLayer(t, again, model)
		}
	}
}

// After a sync that failed no flush may say that all is well.
func TestAFailedSyncIsForGood(t *testing.T) {
	below := memDisk(make([]byte, 20*layerBlock))
	d := &crashDisk{crashAt: -1, failAt: -1, failErr: syscall.EIO}
	l, err := newLayer(below, newCrashFile(d, below.Size()), newCrashFile(d, mapSize(below.Size())))
	if err != nil {
		t.Fatal(err)
	}
	d.failAt = d.calls + 1
	if err := l.WriteAt(t.Context(), make([]byte, layerBlock), 0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := l.Flush(t.Context()); !errors.Is(err, syscall.EIO) {
			t.Fatalf("flush says %v", err)
		}
	}
}

// A map may hold anything: it is refused or read, without end or crash.
func FuzzLayerMap(f *testing.F) {
	f.Add(make([]byte, mapPage), uint16(300))
	f.Add(bytes.Repeat([]byte{0xff}, mapPage), uint16(1))
	f.Fuzz(func(t *testing.T, raw []byte, blocks uint16) {
		below := memDisk(make([]byte, int(blocks)*layerBlock/8+1))
		d := &crashDisk{crashAt: -1, failAt: -1}
		meta := newCrashFile(d, mapSize(below.Size()))
		copy(meta.now[layerHeader:], raw)
		l, err := newLayer(below, newCrashFile(d, below.Size()), meta)
		if err != nil {
			if !errors.Is(err, ErrLayerDamaged) {
				t.Fatal(err)
			}
			return
		}
		requireLayer(t, l, make([]byte, below.Size()))
	})
}

// A header may hold anything.
func FuzzLayerHeader(f *testing.F) {
	of := testOf
	of.Size = 1 << 30
	want, err := of.header()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(want)
	f.Fuzz(func(t *testing.T, raw []byte) {
		got := make([]byte, layerHeader)
		copy(got, raw)
		if err := checkLayerHeader(got, want); err == nil && !bytes.Equal(got[:layerUsed], want[:layerUsed]) {
			t.Fatal("the header of another disk was taken")
		}
	})
}
