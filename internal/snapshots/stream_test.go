package snapshots

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
)

const unit = 64 << 10

// pair is a disk before and after some changes.
type pair struct {
	was, is []byte
	changed extent.Set
}

func randomPair(rng *rand.Rand) pair {
	p := pair{was: make([]byte, (1+rng.IntN(40))*unit+rng.IntN(3)*512)}
	for off := 0; off < len(p.was); off += unit {
		if rng.IntN(2) == 0 {
			fill(rng, p.was[off:min(off+unit, len(p.was))])
		}
	}
	p.is = slices.Clone(p.was)
	switch rng.IntN(4) {
	case 0:
		p.is = append(p.is, make([]byte, rng.IntN(5)*unit)...)
	case 1:
		p.is = p.is[:len(p.is)/2/512*512]
	}
	for off := 0; off < len(p.is); off += unit {
		part := p.is[off:min(off+unit, len(p.is))]
		switch rng.IntN(5) {
		case 0:
			fill(rng, part)
		case 1:
			clear(part)
		default:
			if off+len(part) <= len(p.was) {
				continue
			}
		}
		p.changed = p.changed.Append(extent.Extent{Off: int64(off), Len: int64(len(part))})
	}
	return p
}

func fill(rng *rand.Rand, b []byte) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rng.Uint64())
	rand.NewChaCha8(seed).Read(b)
}

func sideOf(id point.ID, data []byte) Side {
	return Side{ID: id, Size: int64(len(data)), Data: bytes.NewReader(data),
		Extents: func(context.Context) (extent.Set, error) {
			return extent.Of(extent.Extent{Len: int64(len(data))}), nil
		}}
}

func (p pair) stream(t testing.TB, digests bool) []byte {
	t.Helper()
	var out bytes.Buffer
	_, err := WriteStream(context.Background(), &out, sideOf(point.NewID(), p.was), sideOf(point.NewID(), p.is),
		p.changed, WriteOptions{Digests: digests})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func file(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func apply(stream []byte, path string) (Applied, error) {
	return Apply(context.Background(), bytes.NewReader(stream), path, nil)
}

// A stream turns the base into the target, from any state between both too, and never touches
// anything else.
func TestStream(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		p := randomPair(rng)
		stream := p.stream(t, seed%2 == 0)
		path := file(t, p.was)
		for range 2 { // again does nothing
			if _, err := apply(stream, path); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if got, _ := os.ReadFile(path); !bytes.Equal(got, p.is) {
				t.Fatalf("seed %d: the file is not the target", seed)
			}
		}
		between := slices.Clone(p.was)
		if len(p.is) != len(p.was) {
			between = append(between, make([]byte, max(0, len(p.is)-len(p.was)))...)[:len(p.is)]
		}
		for _, e := range p.changed {
			if rng.IntN(2) == 0 {
				copy(between[e.Off:e.End()], p.is[e.Off:e.End()])
			}
		}
		path = file(t, between)
		if _, err := apply(stream, path); err != nil {
			t.Fatalf("seed %d: interrupted, and applied again: %v", seed, err)
		}
		if got, _ := os.ReadFile(path); !bytes.Equal(got, p.is) {
			t.Fatalf("seed %d: completed, the file is not the target", seed)
		}
	}
}

// Another disk is refused before a byte of it is changed, and so is a stream of which a bit or the
// end is missing.
func TestStreamRefuses(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	p := randomPair(rng)
	for len(p.changed) < 3 || len(p.is) != len(p.was) {
		p = randomPair(rng)
	}
	stream := p.stream(t, true)
	requireRefused := func(what string, stream, disk []byte, want error) {
		t.Helper()
		path := file(t, disk)
		if _, err := apply(stream, path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		if got, _ := os.ReadFile(path); !bytes.Equal(got, disk) {
			t.Errorf("%s: the disk was changed", what)
		}
	}
	other := slices.Clone(p.was)
	other[p.changed[1].Off] ^= 1
	requireRefused("another disk, in a changed range", stream, other, ErrOtherBase)
	other = slices.Clone(p.was)
	untouched := extent.Of(extent.Extent{Len: int64(len(p.was))}).Subtract(p.changed)[0]
	other[untouched.Off] ^= 1
	requireRefused("another disk, elsewhere", stream, other, ErrOtherBase)
	requireRefused("a smaller disk", stream, p.was[:len(p.was)-512], ErrOtherBase)
	requireRefused("no stream", []byte("HFDIFF99 and more"), p.was, ErrNotStream)
	requireRefused("nothing", nil, p.was, ErrNotStream)
	for range 40 {
		bad := slices.Clone(stream)
		bad[8+rng.IntN(len(bad)-8)] ^= 1 << rng.IntN(8)
		requireRefused("a flipped bit", bad, p.was, ErrDamagedStream)
		requireRefused("cut", stream[:9+rng.IntN(len(stream)-10)], p.was, ErrDamagedStream)
	}
	requireRefused("more after its end", append(slices.Clone(stream), 0), p.was, ErrDamagedStream)
	qcow := append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 4096)...)
	if _, err := apply(stream, file(t, qcow)); err == nil {
		t.Error("a qcow2 image was taken for raw")
	}
}

func FuzzStream(f *testing.F) {
	p := randomPair(rand.New(rand.NewPCG(9, 9)))
	p.was, p.is, p.changed = p.was[:unit], p.is[:unit], extent.Of(extent.Extent{Len: 512})
	f.Add(p.stream(f, false))
	f.Add(p.stream(f, true))
	f.Fuzz(func(t *testing.T, data []byte) {
		var bytesSeen int64
		h, err := readStream(context.Background(), bytes.NewReader(data), func(r record, part []byte) error {
			bytesSeen += r.len
			if part != nil && (int64(len(part)) != r.len || sha256.Sum256(part) != r.is) {
				t.Fatal("a range is not what its record says")
			}
			return nil
		})
		if err == nil && bytesSeen != h.Changed {
			t.Fatalf("the head says %d bytes, there were %d", h.Changed, bytesSeen)
		}
	})
}
