package snapshots

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// The format of a diff stream, docs/formats/diff-stream.md.
const (
	streamMagic   = "HFDIFF01"
	streamEnd     = "HFDIFEND"
	headSize      = 192
	recordSize    = 96
	maxRange      = 1 << 20 // bytes of the disk that one record covers at most
	digestBlock   = 64 << 10
	kindData      = 1
	kindZero      = 2
	kindEnd       = 3
	flagDigests   = 1
	maxStreamDisk = int64(1) << 56 // bytes
)

var (
	// ErrNotStream reports bytes that are not a diff stream of a version that this program knows.
	ErrNotStream = errors.New("not a diff stream")
	// ErrDamagedStream reports a diff stream that is cut or altered.
	ErrDamagedStream = errors.New("the diff stream is damaged")
	// ErrOtherBase reports that a file does not hold what the stream's differences were counted
	// from.
	ErrOtherBase = errors.New("the file does not hold the base of this diff stream")
)

// Head says what a diff stream is the difference of.
type Head struct {
	From, To         point.ID // snapshots; From is "" where the base is a disk of zeros
	FromSize, ToSize int64    // bytes
	Changed          int64    // bytes that the ranges of the stream cover
	Ranges           int64
	Digests          bool // FromDigest and ToDigest are set: base and result can be checked as a whole
	FromDigest       [32]byte
	ToDigest         [32]byte
}

// record is the head of one range.
type record struct {
	kind     uint32
	off, len int64
	was, is  [32]byte // SHA-256 of the range before and after
}

func (h Head) encode() ([]byte, error) {
	b := make([]byte, headSize)
	copy(b, streamMagic)
	if h.Digests {
		binary.LittleEndian.PutUint32(b[8:], flagDigests)
	}
	for i, id := range []point.ID{h.From, h.To} {
		if id == "" {
			continue
		}
		raw, err := hex.DecodeString(string(id))
		if err != nil || len(raw) != 16 {
			return nil, fmt.Errorf("%q is no ID of a snapshot", id)
		}
		copy(b[16+16*i:], raw)
	}
	for i, v := range []int64{h.FromSize, h.ToSize, h.Changed, h.Ranges} {
		binary.LittleEndian.PutUint64(b[48+8*i:], uint64(v))
	}
	copy(b[80:], h.FromDigest[:])
	copy(b[112:], h.ToDigest[:])
	sum := sha256.Sum256(b[:headSize-32])
	copy(b[headSize-32:], sum[:])
	return b, nil
}

func decodeHead(b []byte) (Head, error) {
	if len(b) != headSize || string(b[:8]) != streamMagic {
		return Head{}, ErrNotStream
	}
	if sum := sha256.Sum256(b[:headSize-32]); !bytes.Equal(sum[:], b[headSize-32:]) {
		return Head{}, fmt.Errorf("%w: its head is altered", ErrDamagedStream)
	}
	flags := binary.LittleEndian.Uint32(b[8:])
	h := Head{To: point.ID(hex.EncodeToString(b[32:48])), Digests: flags == flagDigests}
	if from := b[16:32]; len(bytes.Trim(from, "\x00")) > 0 {
		h.From = point.ID(hex.EncodeToString(from))
	}
	numbers := []*int64{&h.FromSize, &h.ToSize, &h.Changed, &h.Ranges}
	for i, n := range numbers {
		*n = int64(binary.LittleEndian.Uint64(b[48+8*i:]))
		if *n < 0 || *n > maxStreamDisk {
			return Head{}, fmt.Errorf("%w: a size is out of bounds", ErrDamagedStream)
		}
	}
	copy(h.FromDigest[:], b[80:])
	copy(h.ToDigest[:], b[112:])
	if flags > flagDigests || len(bytes.Trim(b[12:16], "\x00")) > 0 || len(bytes.Trim(b[144:160], "\x00")) > 0 {
		return Head{}, fmt.Errorf("%w: reserved bytes are set", ErrDamagedStream)
	}
	return h, nil
}

func (r record) encode() []byte {
	b := make([]byte, recordSize)
	binary.LittleEndian.PutUint32(b, r.kind)
	binary.LittleEndian.PutUint64(b[8:], uint64(r.off))
	binary.LittleEndian.PutUint64(b[16:], uint64(r.len))
	copy(b[32:], r.was[:])
	copy(b[64:], r.is[:])
	return b
}

func decodeRecord(b []byte) (record, error) {
	r := record{kind: binary.LittleEndian.Uint32(b), off: int64(binary.LittleEndian.Uint64(b[8:])),
		len: int64(binary.LittleEndian.Uint64(b[16:]))}
	copy(r.was[:], b[32:])
	copy(r.is[:], b[64:])
	reserved := append(bytes.Clone(b[4:8]), b[24:32]...)
	switch {
	case len(bytes.Trim(reserved, "\x00")) > 0 || r.kind < kindData || r.kind > kindEnd:
		return r, fmt.Errorf("%w: a record of an unknown kind", ErrDamagedStream)
	case r.kind == kindEnd && (r.off != 0 || r.len != 0):
		return r, fmt.Errorf("%w: its end has a range", ErrDamagedStream)
	case r.kind != kindEnd && (r.len <= 0 || r.len > maxRange || r.off < 0 || r.off > maxStreamDisk):
		return r, fmt.Errorf("%w: a range is out of bounds", ErrDamagedStream)
	}
	return r, nil
}

// Side is one of the two disks that a stream is made of.
type Side struct {
	ID   point.ID
	Size int64       // bytes
	Data io.ReaderAt // nil is a disk of zeros
	// Extents returns which ranges may differ from zeros. It is only asked for digests.
	Extents func(ctx context.Context) (extent.Set, error)
}

// readFull reads a range; what is after the end of the disk reads as zeros.
func (s Side) readFull(p []byte, off int64) error {
	clear(p)
	if s.Data == nil || off >= s.Size {
		return nil
	}
	n := min(int64(len(p)), s.Size-off)
	if _, err := s.Data.ReadAt(p[:n], off); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// digest sums up a disk: SHA-256 over number and SHA-256 of each block of 64 KiB that is not all
// zeros, in order. The last block is filled up with zeros.
func (s Side) digest(ctx context.Context) ([32]byte, error) {
	h := sha256.New()
	if s.Data == nil {
		return [32]byte(h.Sum(nil)), nil
	}
	data, err := s.Extents(ctx)
	if err != nil {
		return [32]byte{}, err
	}
	buf := make([]byte, digestBlock)
	next := int64(0)
	for _, e := range data {
		for n := max(next, e.Off/digestBlock); n*digestBlock < min(e.End(), s.Size); n++ {
			if err := ctx.Err(); err != nil {
				return [32]byte{}, err
			}
			if err := s.readFull(buf, n*digestBlock); err != nil {
				return [32]byte{}, err
			}
			addBlock(h, n, buf)
			next = n + 1
		}
	}
	return [32]byte(h.Sum(nil)), nil
}

func addBlock(h hash.Hash, n int64, block []byte) {
	if allZero(block) {
		return
	}
	sum := sha256.Sum256(block)
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(n)))
	h.Write(sum[:])
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// WriteOptions tunes WriteStream.
type WriteOptions struct {
	Digests  bool                    // read both disks whole, so that base and result can be checked as a whole
	Progress func(done, total int64) // bytes of changed ranges; nil discards
}

// WriteStream writes the difference between two disks, the ranges of changed, to w: what turns a
// copy of from into a copy of to.
func WriteStream(ctx context.Context, w io.Writer, from, to Side, changed extent.Set, o WriteOptions) (Head, error) {
	pieces := split(changed.Clip(extent.Extent{Len: to.Size}))
	h := Head{From: from.ID, To: to.ID, FromSize: from.Size, ToSize: to.Size, Ranges: int64(len(pieces)),
		Digests: o.Digests}
	for _, e := range pieces {
		h.Changed += e.Len
	}
	if o.Digests {
		var err error
		if h.FromDigest, err = from.digest(ctx); err != nil {
			return h, err
		}
		if h.ToDigest, err = to.digest(ctx); err != nil {
			return h, err
		}
	}
	s := &streamWriter{w: w, sum: sha256.New(), from: from, to: to, was: make([]byte, maxRange),
		is: make([]byte, maxRange)}
	head, err := h.encode()
	if err != nil {
		return h, err
	}
	if err := s.write(head); err != nil {
		return h, err
	}
	var done int64
	for _, e := range pieces {
		if err := ctx.Err(); err != nil {
			return h, err
		}
		if err := s.piece(e); err != nil {
			return h, err
		}
		if done += e.Len; o.Progress != nil {
			o.Progress(done, h.Changed)
		}
	}
	return h, s.end()
}

// split cuts a set into ranges that fit into a record.
func split(set extent.Set) []extent.Extent {
	var out []extent.Extent
	for _, e := range set {
		for off := e.Off; off < e.End(); off += maxRange {
			out = append(out, extent.Extent{Off: off, Len: min(maxRange, e.End()-off)})
		}
	}
	return out
}

type streamWriter struct {
	w        io.Writer
	sum      hash.Hash
	from, to Side
	was, is  []byte
}

func (s *streamWriter) write(p []byte) error {
	s.sum.Write(p)
	_, err := s.w.Write(p)
	return err
}

func (s *streamWriter) piece(e extent.Extent) error {
	was, is := s.was[:e.Len], s.is[:e.Len]
	if err := s.from.readFull(was, e.Off); err != nil {
		return err
	}
	if err := s.to.readFull(is, e.Off); err != nil {
		return err
	}
	r := record{kind: kindData, off: e.Off, len: e.Len, was: sha256.Sum256(was), is: sha256.Sum256(is)}
	if allZero(is) {
		r.kind = kindZero
	}
	if err := s.write(r.encode()); err != nil || r.kind == kindZero {
		return err
	}
	return s.write(is)
}

// end writes the last record and the checksum of all before it.
func (s *streamWriter) end() error {
	if err := s.write(record{kind: kindEnd}.encode()); err != nil {
		return err
	}
	_, err := s.w.Write(append([]byte(streamEnd), s.sum.Sum(nil)...))
	return err
}

// readStream reads a stream to its end and hands each range to visit, with its bytes, which are
// valid until visit returns; nil for zeros.
func readStream(ctx context.Context, r io.Reader, visit func(record, []byte) error) (Head, error) {
	h, sum, err := readHead(r)
	if err != nil {
		return h, err
	}
	in := io.TeeReader(r, sum)
	var ranges, changed, last int64
	raw, data := make([]byte, recordSize), make([]byte, 0, digestBlock)
	for {
		if err := ctx.Err(); err != nil {
			return h, err
		}
		if _, err := io.ReadFull(in, raw); err != nil {
			return h, cut(err)
		}
		rec, err := decodeRecord(raw)
		if err != nil {
			return h, err
		}
		if rec.kind == kindEnd {
			break
		}
		ranges, changed = ranges+1, changed+rec.len
		if rec.off < last || rec.off+rec.len > h.ToSize || ranges > h.Ranges {
			return h, fmt.Errorf("%w: its ranges are not those of its head", ErrDamagedStream)
		}
		last = rec.off + rec.len
		if data, err = readData(in, rec, data); err != nil {
			return h, err
		}
		if err := visit(rec, data); err != nil {
			return h, err
		}
	}
	if ranges != h.Ranges || changed != h.Changed {
		return h, fmt.Errorf("%w: it has other ranges than its head says", ErrDamagedStream)
	}
	return h, readEnd(r, sum)
}

func readHead(r io.Reader) (Head, hash.Hash, error) {
	raw := make([]byte, headSize)
	if n, err := io.ReadFull(r, raw); err != nil {
		if n < 8 || string(raw[:8]) != streamMagic {
			return Head{}, nil, ErrNotStream
		}
		return Head{}, nil, cut(err)
	}
	h, err := decodeHead(raw)
	sum := sha256.New()
	sum.Write(raw)
	return h, sum, err
}

// readData returns the bytes of a range, which are what its record says, or nil for zeros.
func readData(in io.Reader, rec record, buf []byte) ([]byte, error) {
	if rec.kind == kindZero {
		return nil, nil
	}
	if int64(cap(buf)) < rec.len {
		buf = make([]byte, rec.len)
	}
	buf = buf[:rec.len]
	if _, err := io.ReadFull(in, buf); err != nil {
		return nil, cut(err)
	}
	if sha256.Sum256(buf) != rec.is {
		return nil, fmt.Errorf("%w: the range at %d is not what it was", ErrDamagedStream, rec.off)
	}
	return buf, nil
}

func readEnd(r io.Reader, sum hash.Hash) error {
	end := make([]byte, len(streamEnd)+sha256.Size+1)
	n, err := io.ReadFull(r, end)
	if !errors.Is(err, io.ErrUnexpectedEOF) || n != len(end)-1 {
		if err == nil {
			return fmt.Errorf("%w: something follows its end", ErrDamagedStream)
		}
		return cut(err)
	}
	if string(end[:8]) != streamEnd || !bytes.Equal(end[8:n], sum.Sum(nil)) {
		return fmt.Errorf("%w: its checksum differs", ErrDamagedStream)
	}
	return nil
}

// cut says that a stream ends too early.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is cut", ErrDamagedStream)
	}
	return err
}
