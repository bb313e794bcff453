package main

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// note is what was attached to a point: docs/formats/note.md.
type note struct {
	ID   string
	of   string // the point
	Kind string
	Time time.Time
	Body []byte
}

var (
	noteName = regexp.MustCompile(`^(?:notes|ledger)/([0-9a-f]{32})-([0-9a-f]{32})$`)
	noteKind = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
)

// notes returns the notes of a point, oldest first.
func (v *vaultDir) notes(point string) ([]note, error) { return v.notesIn("notes", point) }

// ledger returns what is remembered of points, which may be gone: docs/formats/ledger.md.
func (v *vaultDir) ledger() ([]note, error) { return v.notesIn("ledger", "") }

// notesIn returns the notes in a folder, of one point unless that is "".
func (v *vaultDir) notesIn(folder, point string) ([]note, error) {
	names, err := v.objects(folder)
	if err != nil {
		return nil, err
	}
	var out []note
	for _, name := range names {
		m := noteName.FindStringSubmatch(name)
		if m == nil || point != "" && m[1] != point {
			continue
		}
		n, err := v.note(name, m[1]+m[2])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		n.of, n.ID = m[1], m[2]
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b note) int { return a.Time.Compare(b.Time) })
	return out, nil
}

func (v *vaultDir) note(name, ids string) (n note, err error) {
	b, err := v.read(name)
	if err != nil {
		return n, err
	}
	bin, err := hex.DecodeString(ids)
	if err != nil {
		return n, err
	}
	if len(b) < 120 || string(b[:8]) != "HFNOTE01" || !bytes.Equal(b[8:40], bin) {
		return n, errors.New("it is not a note of this name")
	}
	key, err := hkdf.Key(sha256.New, v.keys["point"], bin, "holdfast note v1", 32)
	if err != nil {
		return n, err
	}
	aead, err := gcm(key)
	if err != nil {
		return n, err
	}
	nonce := make([]byte, 12)
	head, err := aead.Open(nil, nonce, b[40:120], b[:40])
	if err != nil {
		return n, err
	}
	nonce[0] = 1
	packed, err := aead.Open(nil, nonce, b[120:], b[:40])
	if err != nil {
		return n, err
	}
	n.Time = time.Unix(0, int64(binary.LittleEndian.Uint64(head))).UTC()
	n.Kind = strings.TrimRight(string(head[16:48]), "\x00")
	if !noteKind.MatchString(n.Kind) {
		return n, fmt.Errorf("its kind is %q", n.Kind)
	}
	n.Body, err = noteBody(packed, int(binary.LittleEndian.Uint32(head[8:])))
	return n, err
}

func noteBody(packed []byte, size int) ([]byte, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(4194304))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	body, err := d.DecodeAll(packed, nil)
	if err == nil && len(body) != size {
		err = fmt.Errorf("it has %d bytes, its head says %d", len(body), size)
	}
	return body, err
}
