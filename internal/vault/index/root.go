package index

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Names, sizes in bytes, and numbers of the format: docs/formats/index.md.
const (
	rootPrefix  = "index/root/"
	rootMagic   = "HFINDX01"
	maxRoot     = 16 << 20
	usualRoot   = 256 << 10
	maxSegments = 1024
	maxRows     = 1 << 40
	maxHoles    = 4096
	maxSuspects = 1024
	maxLooks    = 16 // roots that are tried
)

// root says which segments there are.
type root struct {
	name     string
	segments []segmentInfo // in the order of their spans
	holes    []hole
	suspects []string // segments that stood in the store without being in a root
}

// segmentInfo is what a root tells of a segment.
type segmentInfo struct {
	name    string
	span    span
	rows    int64
	origins int
	fences  []uint64 // of the first row of each page
}

// hole is a pack that a segment should have: its table could not be read.
type hole struct {
	object log.Object
	added  uint64
}

// count is the last entry that a root covers.
func (r *root) count() uint64 {
	if len(r.segments) == 0 {
		return 0
	}
	return r.segments[len(r.segments)-1].span.to
}

// newerThan reports whether r, if there is one, covers more than other, if there is one, or is to
// be preferred to it.
func (r *root) newerThan(other *root) bool {
	return r != nil && (other == nil || r.name < other.name)
}

func newRootName(count uint64) string {
	var b [8]byte
	rand.Read(b[:])
	return fmt.Sprintf("%s%016x-%s", rootPrefix, ^count, hex.EncodeToString(b[:]))
}

func (r *root) encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(r.segments)))
	for _, s := range r.segments {
		b = appendName(b, s.name)
		for _, v := range [...]uint64{s.span.from, s.span.to, uint64(s.rows), uint64(s.origins)} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		for _, f := range s.fences {
			b = binary.LittleEndian.AppendUint64(b, f)
		}
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.holes)))
	for _, h := range r.holes {
		b = binary.LittleEndian.AppendUint64(appendObject(b, &h.object), h.added)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.suspects)))
	for _, s := range r.suspects {
		b = appendName(b, s)
	}
	return b
}

// appendName appends the 16 bytes of a segment's name.
func appendName(b []byte, name string) []byte {
	raw, _ := hex.AppendDecode(b, []byte(strings.TrimPrefix(name, segmentPrefix)))
	return raw
}

// isSegmentName reports whether a name is one that a segment has.
func isSegmentName(name string) bool {
	digits, ok := strings.CutPrefix(name, segmentPrefix)
	raw, err := hex.DecodeString(digits)
	return ok && err == nil && len(raw) == 16 && strings.ToLower(digits) == digits
}

// reader takes numbers from bytes, and notes when there are too few.
type reader struct {
	b   []byte
	bad bool
}

func (d *reader) take(n int) []byte {
	if d.bad || len(d.b) < n {
		d.bad = true
		return make([]byte, n)
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *reader) u64() uint64  { return binary.LittleEndian.Uint64(d.take(8)) }
func (d *reader) name() string { return segmentPrefix + hex.EncodeToString(d.take(16)) }

// count reads a number of items of at least size bytes each, of which there may be most.
func (d *reader) count(size, most int) int {
	n := binary.LittleEndian.Uint32(d.take(4))
	if uint64(n)*uint64(size) > uint64(len(d.b)) || uint64(n) > uint64(most) {
		d.bad = true
		return 0
	}
	return int(n)
}

func decodeRoot(b []byte) (*root, error) {
	r, d := &root{}, &reader{b: b}
	last := uint64(0)
	for range d.count(48, maxSegments) {
		s, ok := d.segment()
		if !ok || s.span.from < last {
			return nil, errDamaged
		}
		last = s.span.to
		r.segments = append(r.segments, s)
	}
	for range d.count(objectSize+8, maxHoles) {
		r.holes = append(r.holes, hole{parseObject(d.take(objectSize)), d.u64()})
	}
	for range d.count(16, maxSuspects) {
		r.suspects = append(r.suspects, d.name())
	}
	if d.bad || len(d.b) > 0 {
		return nil, errDamaged
	}
	return r, nil
}

func (d *reader) segment() (s segmentInfo, ok bool) {
	s.name, s.span = d.name(), span{d.u64(), d.u64()}
	rows, origins := d.u64(), d.u64()
	if d.bad || s.span.from >= s.span.to || rows == 0 || rows > maxRows || origins == 0 || origins > rows {
		return s, false
	}
	s.rows, s.origins = int64(rows), int(origins)
	n := sizesOf(s.rows).pageCount
	if len(d.b)/8 < n {
		return s, false
	}
	s.fences = make([]uint64, n)
	for i := range s.fences {
		s.fences[i] = d.u64()
	}
	return s, slices.IsSorted(s.fences)
}

// writeRoot makes r durable under a new name, which it sets.
func (s *Source) writeRoot(ctx context.Context, r *root) error {
	r.name = newRootName(r.count())
	aead, err := s.sealer(r.name)
	if err != nil {
		return err
	}
	raw := aead.Seal([]byte(rootMagic), rootBody.nonce(0), r.encode(), []byte(rootMagic))
	if err := blob.Put(ctx, s.Store, r.name, raw); err != nil {
		return fmt.Errorf("write index root %s: %w", r.name, err)
	}
	return nil
}

// readRoot returns the root of that name. A damaged one is errDamaged.
func (s *Source) readRoot(ctx context.Context, name string) (*root, error) {
	raw, err := blob.Read(ctx, s.Store, name, usualRoot)
	if errors.Is(err, blob.ErrTooLarge) {
		raw, err = blob.Read(ctx, s.Store, name, maxRoot)
	}
	if err != nil {
		return nil, err
	}
	body, ok := strings.CutPrefix(string(raw), rootMagic)
	if !ok {
		return nil, errDamaged
	}
	aead, err := s.sealer(name)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, rootBody.nonce(0), []byte(body), []byte(rootMagic))
	if err != nil {
		return nil, errDamaged
	}
	r, err := decodeRoot(plain)
	if err == nil {
		r.name = name
	}
	return r, err
}

// newestRoot returns the newest root that can be read, which is mine if that is still it. With none
// it is nil. Only the end of the context is an error.
func (s *Source) newestRoot(ctx context.Context, mine *root) (*root, error) {
	looks := 0
	for name, err := range blob.Names(ctx, s.Store, rootPrefix, "") {
		if err != nil || looks == maxLooks {
			break
		}
		if mine != nil && name == mine.name {
			return mine, nil
		}
		looks++
		if r, err := s.readRoot(ctx, name); err == nil {
			return r, nil
		}
	}
	return nil, ctx.Err()
}
