package main

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

const goldenPacks = "../../../internal/vault/pack/testdata/golden"

type goldenPack struct {
	Name, Sum string
	Size      int
	Rows      []struct {
		ID, Salt, Plain string
		Kind, Encoding  byte
		Nonce, Sum      uint32
	}
}

// The golden packs read as they must, and no byte of them can be another.
func TestGoldenPacks(t *testing.T) {
	dataKey, vaultID := make([]byte, 32), make([]byte, 16)
	dataKey[0], vaultID[0] = 1, 2
	keys := map[string][]byte{}
	for _, what := range []string{"pack", "chunk id", "node id"} {
		k, err := hkdf.Key(sha256.New, dataKey, vaultID, "holdfast vault v1 "+what, 32)
		if err != nil {
			t.Fatal(err)
		}
		keys[what] = k
	}
	raw, err := os.ReadFile(filepath.Join(goldenPacks, "expected.json"))
	var packs []goldenPack
	if err == nil {
		err = json.Unmarshal(raw, &packs)
	}
	if err != nil || len(packs) != 2 {
		t.Fatalf("%d golden packs: %v", len(packs), err)
	}
	for _, want := range packs {
		file, err := os.ReadFile(filepath.Join(goldenPacks, filepath.FromSlash(want.Name)))
		if err != nil {
			t.Fatal(err)
		}
		p, err := openPack(want.Name, file, keys["pack"], vaultID)
		if err != nil {
			t.Fatalf("%s: %v", want.Name, err)
		}
		requirePack(t, p, want, keys)
		for i := range file {
			bad := bytes.Clone(file)
			bad[i] ^= 1
			if _, err := openPack(want.Name, bad, keys["pack"], vaultID); err == nil {
				t.Errorf("%s reads with byte %d changed", want.Name, i)
			}
		}
	}
}

func requirePack(t *testing.T, p *sealedPack, want goldenPack, keys map[string][]byte) {
	t.Helper()
	if len(p.raw) != want.Size || hex.EncodeToString(p.sum[:]) != want.Sum || len(p.rows) != len(want.Rows) {
		t.Fatalf("%s: %d bytes with the sum %x and %d rows, want %+v", want.Name, len(p.raw), p.sum, len(p.rows), want)
	}
	for i, r := range p.rows {
		w := want.Rows[i]
		plain, err := p.open(r)
		if err != nil || hex.EncodeToString(plain) != w.Plain || hex.EncodeToString([]byte(r.id)) != w.ID ||
			hex.EncodeToString([]byte(r.salt)) != w.Salt || r.kind != w.Kind || r.encoding != w.Encoding ||
			r.nonce != w.Nonce || r.crc32 != w.Sum {
			t.Errorf("%s: row %d is %+v and opens to %q, want %+v: %v", want.Name, i, r, plain, w, err)
		}
		key := map[byte]string{1: "chunk id", 2: "node id"}[r.kind]
		if key != "" && string(keyedHash(keys[key], plain)) != r.id {
			t.Errorf("%s: row %d has another ID", want.Name, i)
		}
	}
}
