package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// place is where a chunk, a node or a manifest is stored.
type place struct {
	pack *sealedPack
	name string // object
	slot int
	sealedRow
}

// readTables reads the tables of all good packs: of those that have a row in the state. A damaged
// pack is passed over: what it holds may have other places.
func (v *vaultDir) readTables() {
	v.places = map[string][]place{}
	for key, value := range v.state.living() {
		if key[0] != 'k' || value[0] != 1 {
			continue
		}
		name := packName([]byte(key[1:]), value[1])
		p, err := v.readTable(name, value)
		if err != nil {
			fmt.Fprintf(os.Stderr, "reader: passing over %s: %v\n", name, err)
			continue
		}
		for i, r := range p.rows {
			v.places[r.id] = append(v.places[r.id], place{pack: p, name: name, slot: i, sealedRow: r})
		}
	}
}

// packName returns the object of a pack: docs/formats/log.md.
func packName(id []byte, k byte) string {
	name := fmt.Sprintf("pack/%x-%x/%x/%02x/%x", id[:4], id[4:6], id[6:10], id[10], id[10:])
	if k > 0 {
		name += fmt.Sprintf(".%d", k)
	}
	return name
}

// readTable reads a pack, and compares it with what the log says of it: kind, K, size, sum.
func (v *vaultDir) readTable(name string, said []byte) (*sealedPack, error) {
	raw, err := v.read(name)
	if err != nil {
		return nil, err
	}
	p, err := openPack(name, raw, v.keys["pack"], v.id)
	if err != nil {
		return nil, err
	}
	if uint64(len(raw)) != binary.LittleEndian.Uint64(said[2:]) || string(p.sum[:]) != string(said[10:42]) {
		return nil, errors.New("it is not what the log says")
	}
	p.raw = nil // rows are read when they are wanted
	return p, nil
}

// chunk returns the plain bytes of an ID of a kind from the first place that is whole.
func (v *vaultDir) chunk(id string, kind byte) ([]byte, error) {
	err := fmt.Errorf("%x is in no pack", id)
	for _, p := range v.places[id] {
		if p.kind != kind {
			continue
		}
		var plain []byte
		if plain, err = v.openPlace(p); err == nil {
			return plain, nil
		}
		err = fmt.Errorf("%x in %s: %w", id, p.name, err)
	}
	return nil, err
}

func (v *vaultDir) openPlace(p place) ([]byte, error) {
	f, err := os.Open(filepath.Join(v.dir, p.name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sealed := make([]byte, p.stored)
	if _, err := f.ReadAt(sealed, int64(p.offset)); err != nil {
		return nil, err
	}
	plain, err := p.pack.unseal(p.sealedRow, sealed)
	if err != nil {
		return nil, err
	}
	idKey := v.keys["chunk id"]
	if p.kind != 1 {
		idKey = v.keys["node id"]
	}
	if string(keyedHash(idKey, plain)) != p.id {
		return nil, errors.New("its ID is another")
	}
	return plain, nil
}
