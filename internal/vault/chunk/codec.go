package chunk

import (
	"errors"
	"fmt"
	"math"

	"github.com/DataDog/zstd"
)

// Encoding says how a chunk's bytes are stored. It is part of the pack format.
type Encoding uint8

// Encodings. The numbers are on disk and must not change.
const (
	Plain Encoding = 0
	Zstd  Encoding = 1
)

// Level is how hard a Codec tries.
type Level int

// Levels of libzstd. Level 2 is as fast as level 1 on disks and 1.2 % smaller; docs/adr/0002 has
// the figures.
const (
	Fast  Level = 2
	Dense Level = 9
	None  Level = -1
)

// ParseLevel reads "fast" (or ""), "dense" or "none".
func ParseLevel(s string) (Level, error) {
	switch s {
	case "", "fast", "default":
		return Fast, nil
	case "dense":
		return Dense, nil
	case "none":
		return None, nil
	}
	return 0, fmt.Errorf("compression %q is none of fast, dense, none", s)
}

// ErrCorrupt reports bytes that do not decode to what was encoded.
var ErrCorrupt = errors.New("chunk does not decode")

// Codec compresses and decompresses chunks. It is not safe for concurrent use.
type Codec struct {
	level Level
	ctx   zstd.Ctx
	buf   []byte
}

// NewCodec returns a Codec that compresses at level.
func NewCodec(level Level) *Codec { return &Codec{level: level, ctx: zstd.NewCtx()} }

// Encode returns p as it should be stored. The result is valid until the next call, or is p itself
// when that is no larger.
func (c *Codec) Encode(p []byte) ([]byte, Encoding, error) {
	if c.level == None || !worthTrying(p) {
		return p, Plain, nil
	}
	if need := zstd.CompressBound(len(p)); cap(c.buf) < need {
		c.buf = make([]byte, need)
	}
	out, err := c.ctx.CompressLevel(c.buf, p, int(c.level))
	if err != nil {
		return nil, 0, fmt.Errorf("compress chunk: %w", err)
	}
	if len(out) >= len(p)-len(p)/64 { // not worth the time of whoever reads it
		return p, Plain, nil
	}
	return out, Zstd, nil
}

// Decode writes the plain bytes of stored to dst, which must have exactly their length.
func (c *Codec) Decode(dst, stored []byte, enc Encoding) error {
	switch enc {
	case Plain:
		if len(stored) != len(dst) {
			return fmt.Errorf("%w: %d bytes stored plain for %d", ErrCorrupt, len(stored), len(dst))
		}
		copy(dst, stored)
		return nil
	case Zstd:
		if len(stored) == 0 || len(dst) == 0 { // libzstd's binding takes neither
			return fmt.Errorf("%w: %d bytes stored for %d", ErrCorrupt, len(stored), len(dst))
		}
		n, err := c.ctx.DecompressInto(dst, stored)
		if err != nil {
			return fmt.Errorf("%w: %v", ErrCorrupt, err)
		}
		if n != len(dst) {
			return fmt.Errorf("%w: %d bytes for %d", ErrCorrupt, n, len(dst))
		}
		return nil
	}
	return fmt.Errorf("%w: unknown encoding %d", ErrCorrupt, enc)
}

// worthTrying samples p and reports whether its bytes are uneven enough to compress. Already
// compressed or encrypted data has close to 8 bits of entropy a byte: a sample of 4096 such bytes
// measures 7.95 on average.
func worthTrying(p []byte) bool {
	const samples, limit = 4096, 7.93
	if len(p) < 2*samples {
		return true
	}
	var count [256]int
	step := len(p) / samples
	for i := range samples {
		count[p[i*step]]++
	}
	bits := 0.0
	for _, n := range count {
		bits += entropyTerm[min(n, len(entropyTerm)-1)]
	}
	return bits < limit
}

// entropyTerm[n] is -f·log2(f) for f = n/4096.
var entropyTerm = func() (t [4097]float64) {
	for n := 1; n < len(t); n++ {
		f := float64(n) / 4096
		t[n] = -f * math.Log2(f)
	}
	return t
}()
