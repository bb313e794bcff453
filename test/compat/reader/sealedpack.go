package main

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

var crc = crc32.MakeTable(crc32.Castagnoli)

// sealedPack is a pack as docs/formats/pack.md says. It is read whole.
type sealedPack struct {
	raw     []byte
	sum     [32]byte // what the log says of it
	packKey []byte
	rows    []sealedRow
}

type sealedRow struct {
	id                  string // 32 bytes
	salt                string // 16 bytes
	kind, encoding      byte
	offset, stored      uint32
	plain, crc32, nonce uint32
}

// openPack reads the pack that stands under a name. What may be stored in it is not opened yet.
func openPack(name string, raw, packKey, vaultID []byte) (*sealedPack, error) {
	id, err := objectID(name)
	if err != nil {
		return nil, err
	}
	if len(raw) < 112 || len(raw) > 1<<30 {
		return nil, fmt.Errorf("%d bytes", len(raw))
	}
	head, foot := raw[:64], raw[len(raw)-32:]
	if string(head[:8]) != "HFPACK01" || !bytes.Equal(head[8:24], vaultID) || !bytes.Equal(head[24:48], id) {
		return nil, errors.New("its header is another")
	}
	u32 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(foot[at:])) }
	rows, origins, table := u32(0), u32(4), u32(8)
	if string(foot[24:]) != "HFPKEND1" || u32(16) != 0 || rows > 65536 || origins > 65535 || table < 64 ||
		table+56*rows+16*origins+48 != uint64(len(raw)) {
		return nil, errors.New("its footer makes no sense")
	}
	trailer := raw[table:]
	sealed := trailer[:len(trailer)-32]
	if crc32.Checksum(raw[:table], crc) != uint32(u32(12)) ||
		crc32.Checksum(bytes.Join([][]byte{head, sealed, foot[:20]}, nil), crc) != uint32(u32(20)) {
		return nil, errors.New("a checksum differs")
	}
	p := &sealedPack{raw: raw, packKey: packKey, sum: blake3.Sum256(bytes.Join([][]byte{head, trailer}, nil))}
	aead, err := p.aead(string(head[48:]))
	if err != nil {
		return nil, err
	}
	nonce := bytes.Repeat([]byte{0xff}, 12)
	plain, err := aead.Open(nil, nonce, sealed, bytes.Join([][]byte{head, foot[:20]}, nil))
	if err != nil {
		return nil, fmt.Errorf("its table: %w", err)
	}
	return p, p.readRows(plain, int(rows), int(origins), table)
}

// objectID returns the ID in a pack's name pack/T/V/SS/ID, or with .K after it.
func objectID(name string) ([]byte, error) {
	name, _, _ = strings.Cut(name, ".")
	parts := strings.Split(name, "/")
	if len(parts) != 5 || parts[0] != "pack" || len(parts[4]) != 28 || parts[3] != parts[4][:2] {
		return nil, fmt.Errorf("%q is no name of a pack", name)
	}
	id, err := hex.DecodeString(strings.ReplaceAll(parts[1], "-", "") + parts[2] + parts[4])
	if err == nil && len(id) != 24 {
		err = fmt.Errorf("%q is no name of a pack", name)
	}
	return id, err
}

func (p *sealedPack) aead(salt string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, p.packKey, []byte(salt), "holdfast pack v1", 32)
	if err != nil {
		return nil, err
	}
	return gcm(key)
}

func (p *sealedPack) readRows(plain []byte, rows, origins int, table uint64) error {
	salts := []string{string(p.raw[48:64])}
	for i := range origins {
		salts = append(salts, string(plain[56*rows+16*i:][:16]))
	}
	next, seen := uint64(64), 0
	for i := range rows {
		b := plain[56*i : 56*i+56]
		u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
		r := sealedRow{id: string(b[:32]), offset: u32(32), stored: u32(36), plain: u32(40), crc32: u32(44),
			nonce: u32(48), kind: b[52], encoding: b[53]}
		limit := map[byte]uint32{1: 1048576, 2: 1048576, 3: 67108864}[r.kind]
		origin := int(binary.LittleEndian.Uint16(b[54:]))
		if uint64(r.offset) != next || r.plain == 0 || r.plain > limit || r.stored < 16 || r.stored > limit+16 ||
			r.nonce > 65535 || origin > seen+1 || origin > origins || origin == 0 && r.nonce != uint32(i) {
			return fmt.Errorf("row %d makes no sense", i)
		}
		r.salt = salts[origin]
		next, seen = next+uint64(r.stored), max(seen, origin)
		p.rows = append(p.rows, r)
	}
	if next != table || seen != origins {
		return errors.New("its table does not fit it")
	}
	return nil
}

// open returns the plain bytes of a row.
func (p *sealedPack) open(r sealedRow) ([]byte, error) {
	return p.unseal(r, p.raw[r.offset:r.offset+r.stored])
}

// unseal returns the plain bytes of a row that is stored as sealed.
func (p *sealedPack) unseal(r sealedRow, sealed []byte) ([]byte, error) {
	if crc32.Checksum(sealed, crc) != r.crc32 {
		return nil, errors.New("its sum differs")
	}
	aead, err := p.aead(r.salt)
	if err != nil {
		return nil, err
	}
	ad := binary.LittleEndian.AppendUint32([]byte{r.kind, r.encoding}, r.plain)
	nonce := append(binary.LittleEndian.AppendUint32(nil, r.nonce), make([]byte, 8)...)
	encoded, err := aead.Open(nil, nonce, sealed, append(ad, r.id...))
	if err != nil {
		return nil, err
	}
	return decodeRow(encoded, r)
}

// rowDecoder makes nothing longer than a manifest may be.
var rowDecoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))

func decodeRow(encoded []byte, r sealedRow) (plain []byte, err error) {
	switch plain = encoded; r.encoding {
	case 0:
	case 1:
		if plain, err = rowDecoder.DecodeAll(encoded, nil); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("encoding %d is unknown", r.encoding)
	}
	if len(plain) != int(r.plain) {
		return nil, fmt.Errorf("%d bytes for %d", len(plain), r.plain)
	}
	return plain, nil
}
