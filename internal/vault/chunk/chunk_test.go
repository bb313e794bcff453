package chunk_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

var levels = []chunk.Level{chunk.Fast, chunk.Dense, chunk.None}

func random(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 0))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// What is encoded, at any level, is no larger than it was and decodes to itself, whatever was
// encoded before.
func TestCodecRoundTrip(t *testing.T) {
	codecs := map[chunk.Level]*chunk.Codec{}
	for _, l := range levels {
		codecs[l] = chunk.NewCodec(l)
	}
	rapid.Check(t, func(t *rapid.T) {
		codec := codecs[rapid.SampledFrom(levels).Draw(t, "level")]
		p := random(rapid.Uint64().Draw(t, "seed"), chunk.MinSize<<rapid.IntRange(0, 6).Draw(t, "size"))
		clear(p[:rapid.IntRange(0, len(p)).Draw(t, "zeros")])
		encoded, enc, err := codec.Encode(p)
		if err != nil || len(encoded) > len(p) {
			t.Fatalf("%d bytes become %d: %v", len(p), len(encoded), err)
		}
		encoded = bytes.Clone(encoded)
		got := make([]byte, len(p))
		if err := codec.Decode(got, encoded, enc); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("it decodes to other bytes: %v", err)
		}
		for _, n := range []int{len(p) - 1, len(p) + 1} {
			if err := codec.Decode(make([]byte, n), encoded, enc); !errors.Is(err, chunk.ErrCorrupt) {
				t.Fatalf("%d bytes decode to %d: %v", len(p), n, err)
			}
		}
	})
}

// Random bytes are stored as they are; text and machine-like data are compressed.
func TestWhatIsWorthCompressing(t *testing.T) {
	text := []byte(strings.Repeat("It was the best of times, it was the worst of times. ", 2000))
	skewed := random(2, chunk.DefaultSize)
	for i := range skewed {
		skewed[i] &= 0x3f
	}
	for _, tt := range []struct {
		name string
		p    []byte
		want chunk.Encoding
	}{
		{"random", random(1, chunk.DefaultSize), chunk.Plain},
		{"random, small", random(1, chunk.MinSize), chunk.Plain},
		{"random, large", random(1, chunk.MaxSize), chunk.Plain},
		{"text", text[:chunk.DefaultSize], chunk.Zstd},
		{"text, small", text[:chunk.MinSize], chunk.Zstd},
		{"six bits of eight", skewed, chunk.Zstd},
	} {
		got, enc, err := chunk.NewCodec(chunk.Fast).Encode(tt.p)
		if err != nil || enc != tt.want {
			t.Errorf("%s: encoding %d, want %d, %d bytes: %v", tt.name, enc, tt.want, len(got), err)
		}
		if _, enc, err := chunk.NewCodec(chunk.None).Encode(tt.p); err != nil || enc != chunk.Plain {
			t.Errorf("%s: level none compresses: %v", tt.name, err)
		}
	}
}

// Any bytes decode to exactly what was asked for, or to ErrCorrupt.
func FuzzDecode(f *testing.F) {
	whole, _, err := chunk.NewCodec(chunk.Fast).Encode(bytes.Repeat([]byte("abc"), chunk.MinSize/3))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, byte(1), uint16(chunk.MinSize/3*3))
	f.Add([]byte("plain"), byte(0), uint16(5))
	f.Add([]byte{}, byte(1), uint16(5))
	f.Add([]byte("x"), byte(1), uint16(0))
	f.Add([]byte("x"), byte(9), uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, enc byte, n uint16) {
		guard := bytes.Repeat([]byte{0xee}, int(n)+64)
		err := chunk.NewCodec(chunk.Fast).Decode(guard[:n:n], b, chunk.Encoding(enc))
		if err != nil && !errors.Is(err, chunk.ErrCorrupt) {
			t.Fatalf("refused with %v", err)
		}
		if !bytes.Equal(guard[n:], bytes.Repeat([]byte{0xee}, 64)) {
			t.Fatal("it writes past the end")
		}
	})
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 63, 64, 65, chunk.MaxSize} {
		p := make([]byte, n)
		if !chunk.IsZero(p) {
			t.Errorf("%d zeros are not zero", n)
		}
		for _, at := range []int{0, n / 2, n - 1} {
			if n == 0 {
				continue
			}
			p[at] = 1
			if chunk.IsZero(p) {
				t.Errorf("%d bytes, one of them set, are zero", n)
			}
			p[at] = 0
		}
	}
}

func TestIDs(t *testing.T) {
	p := random(1, 100)
	a, b := chunk.NewHasher([32]byte{1}), chunk.NewHasher([32]byte{2})
	id := a.ID(p)
	if a.ID(p) != id || b.ID(p) == id || a.ID(p[1:]) == id {
		t.Error("an ID is not that of its bytes under its key")
	}
	for _, id := range []chunk.ID{id, {}} {
		if got, err := chunk.ParseID(id.String()); err != nil || got != id {
			t.Errorf("%q reads as %s, %v", id.String(), got, err)
		}
	}
	for _, s := range []string{"a", "zz", id.String()[2:], id.String() + "00"} {
		if _, err := chunk.ParseID(s); err == nil {
			t.Errorf("%q is taken for an ID", s)
		}
	}
}
