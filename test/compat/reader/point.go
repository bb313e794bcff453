package main

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// manifest is what reading disks takes of a point: docs/formats/point.md.
type manifest struct {
	ID    string
	VM    string
	Time  string
	Disks []diskOf
	Files []diskOf
}

type diskOf struct {
	Name string
	Role string
	Size int64
	Root string
}

// record is what the state keeps of a point, and, without the last three, its manifest.
type record struct {
	Point    *manifest
	Short    bool
	Trees    []byte
	Manifest *struct {
		Pack, ID, Salt               []byte
		Slot                         int
		Encoding                     byte
		Offset, Stored, Plain, Nonce uint32
		Sum                          uint32
	}
	Inline []byte
}

// pointIDs returns the IDs of the points that live, in order; deleted ones among them.
func (v *vaultDir) pointIDs() (ids []string) {
	living := v.state.living()
	for k := range living {
		if _, purged := living["G"+k[1:]]; k[0] == 'P' && !purged {
			ids = append(ids, hex.EncodeToString([]byte(k[1:])))
		}
	}
	slices.Sort(ids)
	return ids
}

// has reports whether the state has a row of a table for a point, or several.
func (v *vaultDir) has(table, id string) bool {
	bin, _ := hex.DecodeString(id)
	for k := range v.state.living() {
		if strings.HasPrefix(k, table+string(bin)) {
			return true
		}
	}
	return false
}

// point returns the only point whose ID begins with ref.
func (v *vaultDir) point(ref string) (*manifest, error) {
	ids := slices.DeleteFunc(v.pointIDs(), func(id string) bool { return !strings.HasPrefix(id, ref) })
	if len(ids) != 1 {
		return nil, fmt.Errorf("%d points begin with %q", len(ids), ref)
	}
	m, err := v.openPoint(ids[0])
	if err != nil {
		return nil, fmt.Errorf("point %s: %w", ids[0], err)
	}
	return m, nil
}

// record returns what the state has of a point.
func (v *vaultDir) record(id string) (*record, error) {
	bin, err := hex.DecodeString(id)
	if err != nil {
		return nil, err
	}
	t := &taker{b: v.state.living()["P"+string(bin)]}
	t.take(16)
	t.list(func() { t.take(16) })
	t.take(8 + 8)
	t.list(func() { t.take(int(t.take(1)[0])) })
	raw := t.bytes()
	t.bytes()
	if t.bad || len(t.b) > 0 || len(raw) > 24576 {
		return nil, errors.New("its row reads wrong")
	}
	return parseRecord(raw)
}

func (v *vaultDir) openPoint(id string) (*manifest, error) {
	r, err := v.record(id)
	if err != nil {
		return nil, err
	}
	raw := r.Inline
	if raw == nil {
		if err := v.requirePlace(r); err != nil {
			return nil, err
		}
		if raw, err = v.chunk(string(r.Manifest.ID), 3); err != nil {
			return nil, err
		}
	}
	whole, err := parseRecord(raw)
	if err != nil {
		return nil, fmt.Errorf("its manifest: %w", err)
	}
	if whole.Point.ID != id || r.Point.ID != id || !r.Short && string(r.Trees) != string(whole.Trees) {
		return nil, errors.New("its record and its manifest do not agree")
	}
	return whole.Point, whole.requireTrees()
}

// requirePlace checks that a manifest lies where the record says, if that pack is good.
func (v *vaultDir) requirePlace(r *record) error {
	m := r.Manifest
	if m == nil || len(m.Pack) != 24 || len(m.ID) != 32 {
		return errors.New("its record names no manifest")
	}
	for _, p := range v.places[string(m.ID)] {
		if p.name != packName(m.Pack, 0) || p.slot != m.Slot {
			continue
		}
		if p.offset != m.Offset || p.stored != m.Stored || p.plain != m.Plain || p.crc32 != m.Sum ||
			p.nonce != m.Nonce || p.salt != string(m.Salt) || p.encoding != m.Encoding {
			return errors.New("its manifest does not lie where the record says")
		}
	}
	return nil
}

// requireTrees checks that the trees are those of the disks and files.
func (r *record) requireTrees() error {
	of := slices.Concat(r.Point.Disks, r.Point.Files)
	if len(r.Trees) != 56*len(of) {
		return fmt.Errorf("%d bytes of trees for %d disks and files", len(r.Trees), len(of))
	}
	for i, d := range of {
		root := hex.EncodeToString(r.Trees[56*i+16 : 56*i+48])
		if d.Root != root && (d.Root != "" || root != hex.EncodeToString([]byte(holeID))) {
			return fmt.Errorf("the tree of %s%s has another root", d.Role, d.Name)
		}
		if binary.LittleEndian.Uint64(r.Trees[56*i+48:]) > uint64(d.Size) {
			return fmt.Errorf("the tree of %s%s has more chunks than the disk has bytes", d.Role, d.Name)
		}
	}
	return nil
}

func parseRecord(raw []byte) (*record, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(67108864))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	text, err := d.DecodeAll(raw, nil)
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, err
	}
	if r.Point == nil {
		return nil, errors.New("it names no point")
	}
	return r, nil
}
