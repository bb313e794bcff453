package pack

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// The joined sum of two parts is the sum of the whole, wherever it is cut.
func TestSumsJoin(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 100 {
		p := noise(rng.Uint64(), rng.IntN(70000))
		cut := rng.IntN(len(p) + 1)
		a, b := crc32.Checksum(p[:cut], castagnoli), crc32.Checksum(p[cut:], castagnoli)
		if got, want := joinSums(a, b, len(p)-cut), crc32.Checksum(p, castagnoli); got != want {
			t.Fatalf("%d bytes cut at %d have the sum %08x, want %08x", len(p), cut, got, want)
		}
	}
}
