// Package row is what the state keeps of a point: all that lists, collections and readers want of
// it without reading its manifest.
//
// docs/formats/point.md is the format. Values are not safe for concurrent use.
package row

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

const (
	// MaxSize is how many bytes a row has at most: several fit into an entry of the log.
	MaxSize = 24 << 10
	// MaxInline is how many bytes a manifest has at most that stands in the row itself.
	MaxInline = 8 << 10
	// maxPlain bounds what a row or manifest may decompress to: a domain definition has a few tens
	// of KiB.
	maxPlain = 64 << 20
)

// ErrCorrupt reports a row or a manifest that is not as it was written.
var ErrCorrupt = errors.New("the record of the point is damaged")

// Line names a disk through the points of its machine: a disk that was stored with a base has the
// base's. Where two points of a line have the same chunk at the same place, the later has inherited
// it.
type Line [16]byte

// Tree is the tree of a disk or of a file.
type Tree struct {
	Line   Line
	Root   chunk.ID // zero for a disk of holes
	Chunks int64    // of the disk
}

// Row is what the state keeps of a point.
type Row struct {
	// Point lacks its definition, but for the definition's kind; and where Short also its disks,
	// files and what else takes room.
	Point point.RecoveryPoint
	Short bool
	Trees []Tree // of disks, then of files, in their order; none where Short
	// Manifest is where the whole point lies: its place when it was stored. The ID finds it after
	// it was moved. Of one that stands in Inline it is zero.
	Manifest Place
	Inline   []byte // the encoded Manifest of a point that stored nothing else
}

// Place is where a row of a pack lies.
type Place struct {
	Pack log.ObjectID
	Slot uint32
	pack.Entry
}

// Manifest is all of a point: what is stored in a pack.
type Manifest struct {
	Point point.RecoveryPoint
	Trees []Tree
}

// wire is the JSON of a row, and of a manifest.
type wire struct {
	Point    *point.RecoveryPoint `json:"point"`
	Short    bool                 `json:"short,omitempty"`
	Trees    string               `json:"trees,omitempty"` // base64
	Manifest *wirePlace           `json:"manifest,omitempty"`
	Inline   []byte               `json:"inline,omitempty"`
}

type wirePlace struct {
	Pack     []byte `json:"pack"`
	Slot     uint32 `json:"slot"`
	ID       []byte `json:"id"`
	Encoding byte   `json:"encoding"`
	Offset   uint32 `json:"offset"`
	Stored   uint32 `json:"stored"`
	Plain    uint32 `json:"plain"`
	Sum      uint32 `json:"sum"`
	Nonce    uint32 `json:"nonce"`
	Salt     []byte `json:"salt"`
}

// Rows are small, and there are many: one encoder and one decoder serve all goroutines.
var (
	encoder, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	decoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxPlain))
)

// Encode returns the row as it is stored. One that would be larger than MaxSize is made short.
func (r *Row) Encode() ([]byte, error) {
	b, err := r.encode()
	if err != nil || len(b) <= MaxSize || r.Short {
		return b, err
	}
	short := *r
	short.Short, short.Trees = true, nil
	short.Point = Brief(&r.Point)
	return short.encode()
}

func (r *Row) encode() ([]byte, error) {
	w := wire{Point: &r.Point, Short: r.Short, Trees: encodeTrees(r.Trees), Inline: r.Inline}
	if r.Inline == nil {
		w.Manifest = placeOut(&r.Manifest)
	}
	return squeeze(&w)
}

// Decode is the inverse of Encode.
func Decode(b []byte) (*Row, error) {
	var w wire
	if err := expand(b, &w); err != nil {
		return nil, err
	}
	r := &Row{Short: w.Short, Inline: w.Inline}
	if w.Point == nil || (w.Manifest == nil) == (w.Inline == nil) {
		return nil, fmt.Errorf("%w: it names no point, or not one manifest", ErrCorrupt)
	}
	r.Point = *w.Point
	var err error
	if r.Trees, err = decodeTrees(w.Trees); err != nil {
		return nil, err
	}
	if w.Manifest != nil {
		r.Manifest, err = placeIn(w.Manifest)
	}
	return r, err
}

// EncodeManifest returns a manifest as it is stored in a pack or in a row.
func EncodeManifest(m *Manifest) ([]byte, error) {
	return squeeze(&wire{Point: &m.Point, Trees: encodeTrees(m.Trees)})
}

// DecodeManifest is the inverse of EncodeManifest.
func DecodeManifest(b []byte) (*Manifest, error) {
	var w wire
	if err := expand(b, &w); err != nil {
		return nil, err
	}
	if w.Point == nil {
		return nil, fmt.Errorf("%w: it names no point", ErrCorrupt)
	}
	trees, err := decodeTrees(w.Trees)
	return &Manifest{Point: *w.Point, Trees: trees}, err
}

// Summary returns a point without its definition, but for the definition's kind.
func Summary(p *point.RecoveryPoint) point.RecoveryPoint {
	s := *p
	s.Definition = point.Definition{Kind: p.Definition.Kind}
	return s
}

// Brief returns what a short row says of a point.
func Brief(p *point.RecoveryPoint) point.RecoveryPoint {
	return point.RecoveryPoint{ID: p.ID, Kind: p.Kind, Name: p.Name, VM: p.VM, MachineUUID: p.MachineUUID, Time: p.Time,
		Consistency: p.Consistency, Parent: p.Parent, Definition: point.Definition{Kind: p.Definition.Kind},
		CopiedFrom: nil, Holdfast: p.Holdfast, Took: p.Took}
}

func squeeze(w *wire) ([]byte, error) {
	plain, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode point %s: %w", w.Point.ID, err)
	}
	if len(plain) > maxPlain {
		return nil, fmt.Errorf("point %s: its record of %d bytes is too large", w.Point.ID, len(plain))
	}
	return encoder.EncodeAll(plain, nil), nil
}

func expand(b []byte, w *wire) error {
	plain, err := decoder.DecodeAll(b, nil)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	if err := json.Unmarshal(plain, w); err != nil {
		return fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	return nil
}

// treeSize is the size of an encoded tree: line, root, chunks.
const treeSize = 16 + chunk.IDSize + 8

func encodeTrees(ts []Tree) string {
	b := make([]byte, 0, len(ts)*treeSize)
	for i := range ts {
		b = append(b, ts[i].Line[:]...)
		b = append(b, ts[i].Root[:]...)
		for s := 0; s < 64; s += 8 {
			b = append(b, byte(ts[i].Chunks>>s))
		}
	}
	return base64.StdEncoding.EncodeToString(b)
}

func decodeTrees(s string) ([]Tree, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b)%treeSize != 0 {
		return nil, fmt.Errorf("%w: its trees read wrong", ErrCorrupt)
	}
	var ts []Tree
	for ; len(b) > 0; b = b[treeSize:] {
		t := Tree{Line: Line(b[:16]), Root: chunk.ID(b[16:48])}
		for i := range 8 {
			t.Chunks |= int64(b[48+i]) << (8 * i)
		}
		if t.Chunks < 0 {
			return nil, fmt.Errorf("%w: a tree of %d chunks", ErrCorrupt, t.Chunks)
		}
		ts = append(ts, t)
	}
	return ts, nil
}

func placeOut(p *Place) *wirePlace {
	return &wirePlace{Pack: p.Pack[:], Slot: p.Slot, ID: p.ID[:], Encoding: byte(p.Encoding), Offset: p.Offset,
		Stored: p.Stored, Plain: p.Plain, Sum: p.Sum, Nonce: p.Nonce, Salt: p.Salt[:]}
}

func placeIn(w *wirePlace) (p Place, err error) {
	if len(w.Pack) != len(p.Pack) || len(w.ID) != len(p.ID) || len(w.Salt) != len(p.Salt) {
		return p, fmt.Errorf("%w: the place of its manifest reads wrong", ErrCorrupt)
	}
	p = Place{Pack: log.ObjectID(w.Pack), Slot: w.Slot}
	p.Entry = pack.Entry{ID: chunk.ID(w.ID), Kind: pack.Manifest, Encoding: chunk.Encoding(w.Encoding),
		Offset: w.Offset,
		Stored: w.Stored, Plain: w.Plain, Sum: w.Sum, Nonce: w.Nonce, Salt: log.Salt(w.Salt)}
	return p, nil
}
