package main

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// indexDir is an index: docs/formats/index.md. Reading disks does without; it is read to check the
// text.
type indexDir struct {
	dir      string
	key      []byte
	vault    []byte
	segments []segment
}

// segment is what a root says of a segment, and its rows.
type segment struct {
	name          string
	from, to      uint64
	rows, origins int
	fences        []uint64
	read          []indexRow
}

// indexRow is where an index says that something is stored.
type indexRow struct {
	object []byte // of the pack, as in the log
	slot   uint16
	sealedRow
}

// readIndex reads the newest index of a vault and all its rows; nil where there is none.
func readIndex(dir string, key, vault []byte) (*indexDir, error) {
	x := &indexDir{dir: dir, key: key, vault: vault}
	roots, err := filepath.Glob(filepath.Join(dir, "index", "root", "*"))
	if err != nil || len(roots) == 0 {
		return nil, err
	}
	slices.Sort(roots)
	name := "index/root/" + filepath.Base(roots[0])
	raw, err := os.ReadFile(roots[0])
	if err != nil {
		return nil, err
	}
	if len(raw) < 8 || string(raw[:8]) != "HFINDX01" {
		return nil, fmt.Errorf("%s is no root", name)
	}
	aead, err := x.aead(name)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, indexNonce(4, 0), raw[8:], raw[:8])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := x.readRoot(plain); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for i := range x.segments {
		if err := x.readSegment(&x.segments[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", x.segments[i].name, err)
		}
	}
	return x, nil
}

func (x *indexDir) aead(name string) (cipher.AEAD, error) {
	return gcm(keyedHash(x.key, []byte("holdfast index v1 "), x.vault, []byte(name)))
}

func indexNonce(section uint32, block int) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, section), uint64(block))
}

func (x *indexDir) readRoot(plain []byte) error {
	t := &taker{b: plain}
	t.list(func() {
		s := segment{name: "index/seg/" + hex.EncodeToString(t.take(16)), from: t.u64(), to: t.u64()}
		rows, origins := t.u64(), t.u64()
		if rows == 0 || rows > 1<<40 || origins == 0 || origins > rows || s.from >= s.to {
			t.bad = true
			return
		}
		s.rows, s.origins = int(rows), int(origins)
		for range (s.rows + 65535) / 65536 {
			s.fences = append(s.fences, t.u64())
		}
		x.segments = append(x.segments, s)
	})
	t.list(func() { t.take(66 + 8) })
	t.list(func() { t.take(16) })
	if t.bad || len(t.b) > 0 {
		return errors.New("it reads wrong")
	}
	return nil
}

// readSegment reads all groups of a segment, and then the list of origins, which the rows name.
func (x *indexDir) readSegment(s *segment) error {
	raw, err := os.ReadFile(filepath.Join(x.dir, s.name))
	if err != nil {
		return err
	}
	aead, err := x.aead(s.name)
	if err != nil {
		return err
	}
	t := &taker{b: raw}
	open := func(section uint32, block, size int) []byte {
		plain, failed := aead.Open(nil, indexNonce(section, block), t.take(size+16), nil)
		if err == nil && failed != nil {
			err = fmt.Errorf("block %d of section %d: %w", block, section, failed)
		}
		return append(plain, make([]byte, size-len(plain))...)
	}
	var rows []byte
	for g := range s.fences {
		group := rowsOf(s.rows, g, 65536)
		var fences []byte
		from := len(rows)
		for b := range (group + 63) / 64 {
			block := open(1, g*1024+b, 60*rowsOf(group, b, 64))
			fences = append(fences, le64(binary.BigEndian.Uint64(block))...)
			rows = append(rows, block...)
		}
		page := open(2, g, len(fences)+64*(group*12/512+1))
		if err == nil && (!bytes.HasPrefix(page, fences) || s.fences[g] != binary.LittleEndian.Uint64(fences)) {
			return errors.New("its fences are others")
		}
		for r := rows[from:]; len(r) > 0 && err == nil; r = r[60:] {
			if !mayHave(page[len(fences):], r) {
				return fmt.Errorf("the filter denies %x", r[:32])
			}
		}
	}
	var origins []byte
	for b := range (s.origins + 47) / 48 {
		origins = append(origins, open(3, b, 82*rowsOf(s.origins, b, 48))...)
	}
	if err != nil || t.bad || len(t.b) > 0 {
		return errors.Join(err, fmt.Errorf("%d bytes are left, or some lack", len(t.b)))
	}
	return s.parse(rows, origins)
}

// rowsOf returns how many of all are in the n-th part of so many.
func rowsOf(all, n, part int) int { return min(all-n*part, part) }

// mayHave asks the filter of a group.
func mayHave(filter, id []byte) bool {
	x, y := binary.LittleEndian.Uint64(id[8:]), binary.LittleEndian.Uint64(id[16:])
	line := filter[64*(x%uint64(len(filter)/64)):]
	for k := range 7 {
		if p := y >> (9 * k) % 512; line[p/8]>>(p%8)&1 == 0 {
			return false
		}
	}
	return true
}

func (s *segment) parse(rows, origins []byte) error {
	for last := ""; len(rows) > 0; rows = rows[60:] {
		u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(rows[at:]) }
		n := int(u32(32))
		if n >= s.origins || string(rows[:32]) < last {
			return errors.New("its rows make no sense")
		}
		o := origins[82*n:]
		r := indexRow{object: o[:66], slot: binary.LittleEndian.Uint16(rows[52:])}
		last = string(rows[:32])
		r.sealedRow = sealedRow{id: last, salt: string(o[66:82]), kind: rows[56], encoding: rows[57], offset: u32(36),
			stored: u32(40), plain: u32(44), crc32: u32(48), nonce: uint32(binary.LittleEndian.Uint16(rows[54:]))}
		s.read = append(s.read, r)
	}
	return nil
}
