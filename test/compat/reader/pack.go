package main

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

var crc = crc32.MakeTable(crc32.Castagnoli)

// place is where a chunk or node is stored: docs/formats/pack.md.
type place struct {
	id             string // 32 bytes
	pack           string // object
	packID         string // 16 bytes
	kind           byte
	offset, stored uint32
	plainWord      uint32
	sum            uint32
}

// readTables reads the tables of all packs. A damaged pack is passed over: its chunks may have
// other places.
func (v *vaultDir) readTables() error {
	v.places = map[string][]place{}
	for kind, folder := range map[byte]string{1: "data", 2: "meta"} {
		names, err := v.objects(folder)
		if err != nil {
			return err
		}
		for _, name := range names {
			rows, err := v.readTable(name, kind)
			if err != nil {
				fmt.Fprintf(os.Stderr, "reader: passing over pack %s: %v\n", name, err)
				continue
			}
			for _, p := range rows {
				v.places[p.id] = append(v.places[p.id], p)
			}
		}
	}
	return nil
}

// packName returns the ID in the name of a pack.
func packName(name string) ([]byte, error) {
	if len(name) != 5+3+32 || name[7] != '/' || !hex32.MatchString(name[8:]) || name[5:7] != name[8:10] {
		return nil, errors.New("it is not named as a pack")
	}
	return hex.DecodeString(name[8:])
}

func (v *vaultDir) packKeys(id []byte) (seal, table []byte, err error) {
	k, err := hkdf.Key(sha256.New, v.keys["pack"], id, "holdfast pack v1", 64)
	if err != nil {
		return nil, nil, err
	}
	return k[:32], k[32:], nil
}

func (v *vaultDir) readTable(name string, kind byte) ([]place, error) {
	id, err := packName(name)
	if err != nil {
		return nil, err
	}
	b, err := v.read(name)
	if err != nil {
		return nil, err
	}
	if len(b) < 128 || len(b) > 1<<30 {
		return nil, fmt.Errorf("%d bytes", len(b))
	}
	header := append([]byte("HFPACK01"), kind, 0, 0, 0, 0, 0, 0, 0)
	header = append(append(append(header, id...), v.id...), make([]byte, 16)...)
	if !bytes.Equal(b[:64], header) {
		return nil, errors.New("its header is another")
	}
	foot := b[len(b)-64:]
	count, tableOff := uint64(binary.LittleEndian.Uint32(foot)), binary.LittleEndian.Uint64(foot[8:])
	if string(foot[56:]) != "HFPKEND1" || !bytes.Equal(foot[48:56], make([]byte, 8)) {
		return nil, errors.New("it has no footer")
	}
	if count > 65536 || tableOff < 64 || tableOff > uint64(len(b)) || tableOff+48*count+64 != uint64(len(b)) {
		return nil, errors.New("its footer does not fit its size")
	}
	table := b[tableOff : len(b)-64]
	_, tableKey, err := v.packKeys(id)
	if err != nil {
		return nil, err
	}
	if crc32.Checksum(table, crc) != binary.LittleEndian.Uint32(foot[4:]) ||
		!bytes.Equal(keyedHash(tableKey, header, table), foot[16:48]) {
		return nil, errors.New("its table is not as it was written")
	}
	return parseRows(table, tableOff, place{pack: name, packID: string(id), kind: kind})
}

func parseRows(table []byte, tableOff uint64, like place) ([]place, error) {
	var rows []place
	next := uint64(64)
	for ; len(table) > 0; table = table[48:] {
		p := like
		p.id = string(table[:32])
		p.offset, p.stored = binary.LittleEndian.Uint32(table[32:]), binary.LittleEndian.Uint32(table[36:])
		p.plainWord, p.sum = binary.LittleEndian.Uint32(table[40:]), binary.LittleEndian.Uint32(table[44:])
		plain := p.plainWord & 0xffffff
		if uint64(p.offset) != next || plain == 0 || plain > 1048576 || p.stored < 16 || p.stored > 1048592 {
			return nil, fmt.Errorf("row %d makes no sense", len(rows))
		}
		next += uint64(p.stored)
		rows = append(rows, p)
	}
	if next != tableOff {
		return nil, errors.New("its chunks do not end where its table begins")
	}
	return rows, nil
}

// chunk returns the plain bytes of an ID of a kind from the first place that is whole.
func (v *vaultDir) chunk(id string, kind byte) ([]byte, error) {
	err := fmt.Errorf("%x is in no pack", id)
	for _, p := range v.places[id] {
		if p.kind != kind {
			continue
		}
		var plain []byte
		if plain, err = v.openChunk(p); err == nil {
			return plain, nil
		}
		err = fmt.Errorf("chunk %x of pack %s: %w", id, p.pack, err)
	}
	return nil, err
}

func (v *vaultDir) openChunk(p place) ([]byte, error) {
	f, err := os.Open(filepath.Join(v.dir, p.pack))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sealed := make([]byte, p.stored)
	if _, err := f.ReadAt(sealed, int64(p.offset)); err != nil {
		return nil, err
	}
	if crc32.Checksum(sealed, crc) != p.sum {
		return nil, errors.New("its sum differs")
	}
	sealKey, _, err := v.packKeys([]byte(p.packID))
	if err != nil {
		return nil, err
	}
	aead, err := gcm(sealKey)
	if err != nil {
		return nil, err
	}
	nonce := append(binary.LittleEndian.AppendUint32(nil, p.offset), make([]byte, 8)...)
	encoded, err := aead.Open(nil, nonce, sealed, binary.LittleEndian.AppendUint32([]byte(p.id), p.plainWord))
	if err != nil {
		return nil, err
	}
	plain, err := decode(encoded, p.plainWord)
	if err != nil {
		return nil, err
	}
	idKey := v.keys["chunk id"]
	if p.kind == 2 {
		idKey = v.keys["node id"]
	}
	if string(keyedHash(idKey, plain)) != p.id {
		return nil, errors.New("its ID is another")
	}
	return plain, nil
}

// chunkDecoder makes no chunk longer than any may be.
var chunkDecoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<20))

func decode(encoded []byte, plainWord uint32) ([]byte, error) {
	plain := encoded
	switch plainWord >> 24 {
	case 0:
	case 1:
		var err error
		if plain, err = chunkDecoder.DecodeAll(encoded, nil); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("encoding %d is unknown", plainWord>>24)
	}
	if len(plain) != int(plainWord&0xffffff) {
		return nil, fmt.Errorf("%d bytes for %d", len(plain), plainWord&0xffffff)
	}
	return plain, nil
}
