package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
)

// segment is an index segment: docs/formats/index.md. Reading disks does without; it is read to
// check the text.
type segment struct {
	packs  []string // objects
	sizes  []uint64 // of packs, bytes
	rows   []place
	fence  []uint64
	filter []byte
}

func (v *vaultDir) readSegment(name string) (*segment, error) {
	b, err := v.read(name)
	if err != nil {
		return nil, err
	}
	header := append(append([]byte("HFINDX01"), v.id...), make([]byte, 8)...)
	if len(b) < 96 || !bytes.Equal(b[:32], header) || string(b[len(b)-8:]) != "HFIXEND1" {
		return nil, errors.New("it is no segment of this vault")
	}
	foot := b[len(b)-64:]
	entries, blocks := binary.LittleEndian.Uint64(foot), binary.LittleEndian.Uint64(foot[8:])
	packs, filter := binary.LittleEndian.Uint64(foot[16:]), binary.LittleEndian.Uint64(foot[24:])
	for _, n := range []uint64{entries, blocks, packs, filter} {
		if n > uint64(len(b)) || n > math.MaxInt32 {
			return nil, errors.New("its counts do not fit its size")
		}
	}
	if blocks != (entries+84)/85 || filter < 64 || filter%64 != 0 || 32+4096*blocks+32*packs+8*blocks+filter+
		64 != uint64(len(b)) {
		return nil, errors.New("its counts do not fit its size")
	}
	tail := b[32+4096*blocks : len(b)-64]
	if crc32.Update(crc32.Checksum(tail, crc), crc, foot[:52]) != binary.LittleEndian.Uint32(foot[52:]) {
		return nil, errors.New("its sum differs")
	}
	s := &segment{}
	if err := s.parseTail(tail, int(packs), int(blocks)); err != nil {
		return nil, err
	}
	return s, s.parseBlocks(b[32:32+4096*blocks], int(entries))
}

func (s *segment) parseTail(tail []byte, packs, blocks int) error {
	for range packs {
		folder, ok := map[byte]string{1: "data", 2: "meta"}[tail[16]]
		if !ok {
			return fmt.Errorf("a pack of kind %d", tail[16])
		}
		id := hex.EncodeToString(tail[:16])
		s.packs = append(s.packs, folder+"/"+id[:2]+"/"+id)
		s.sizes = append(s.sizes, binary.LittleEndian.Uint64(tail[24:]))
		tail = tail[32:]
	}
	for range blocks {
		s.fence = append(s.fence, binary.LittleEndian.Uint64(tail))
		tail = tail[8:]
	}
	s.filter = tail
	return nil
}

func (s *segment) parseBlocks(b []byte, entries int) error {
	for i := range entries {
		block := b[i/85*4096:][:4096]
		if i%85 == 0 && crc32.Checksum(block[:4092], crc) != binary.LittleEndian.Uint32(block[4092:]) {
			return fmt.Errorf("the sum of block %d differs", i/85)
		}
		r := block[i%85*48:]
		n := binary.LittleEndian.Uint32(r[32:])
		if uint64(n) >= uint64(len(s.packs)) {
			return fmt.Errorf("row %d names pack %d of %d", i, n, len(s.packs))
		}
		s.rows = append(s.rows, place{id: string(r[:32]), pack: s.packs[n], offset: binary.LittleEndian.Uint32(r[36:]),
			stored: binary.LittleEndian.Uint32(r[40:]), plainWord: binary.LittleEndian.Uint32(r[44:])})
		if i > 0 && s.rows[i].id < s.rows[i-1].id {
			return fmt.Errorf("row %d does not ascend", i)
		}
		if i%85 == 0 && s.fence[i/85] != binary.BigEndian.Uint64(r) {
			return fmt.Errorf("the fence of block %d is another", i/85)
		}
	}
	return nil
}

// mayHave asks the filter.
func (s *segment) mayHave(id string) bool {
	x, y := binary.LittleEndian.Uint64([]byte(id[8:16])), binary.LittleEndian.Uint64([]byte(id[16:24]))
	line := s.filter[x%uint64(len(s.filter)/64)*64:][:64]
	for k := range 7 {
		p := (y >> (9 * k)) % 512
		if line[p/8]>>(p%8)&1 == 0 {
			return false
		}
	}
	return true
}
