package main

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// manifest is what reading disks takes of a point: docs/formats/point.md.
type manifest struct {
	ID    string
	VM    string
	Disks []diskOf
	Files []diskOf
}

type diskOf struct {
	Name string
	Role string
	Size int64
	Root string
}

// point opens the only point whose ID begins with ref.
func (v *vaultDir) point(ref string) (*manifest, error) {
	files, err := os.ReadDir(filepath.Join(v.dir, "points"))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ref) && hex32.MatchString(f.Name()) {
			ids = append(ids, f.Name())
		}
	}
	if len(ids) != 1 {
		return nil, fmt.Errorf("%d points begin with %q", len(ids), ref)
	}
	raw, err := v.read("points/" + ids[0])
	if err != nil {
		return nil, err
	}
	m, err := v.openPoint(ids[0], raw)
	if err != nil {
		return nil, fmt.Errorf("point %s: %w", ids[0], err)
	}
	return m, nil
}

func (v *vaultDir) openPoint(id string, b []byte) (*manifest, error) {
	bin, err := hex.DecodeString(id)
	if err != nil {
		return nil, err
	}
	if len(b) < 36+16 || string(b[:8]) != "HFPOINT1" || string(b[8:24]) != string(bin) {
		return nil, errors.New("it is not a point of this name")
	}
	key, err := hkdf.Key(sha256.New, v.keys["point"], bin, "holdfast point v1", 32)
	if err != nil {
		return nil, err
	}
	aead, err := gcm(key)
	if err != nil {
		return nil, err
	}
	packed, err := aead.Open(nil, b[24:36], b[36:], b[:36])
	if err != nil {
		return nil, err
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(67108864))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	text, err := d.DecodeAll(packed, nil)
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, err
	}
	return &m, nil
}
