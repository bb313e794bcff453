// Package wgen writes records across two disks in a known order, and checks copies of the disks.
//
// Step n, from 1 on, writes record n to disk A, waits until it is durable, then writes record n to
// disk B and waits again. Before that, every 64th step zeroes a region of A. Where a record lies
// follows from n and a seed, so a checker knows what every slot of both disks must hold after each
// step. Copies of A and B that show one instant, and no other, pass [Check]: nothing is missing,
// nothing is from later, and B is never ahead of A.
//
// Offsets are bytes; slots are 4096 bytes; integers on disk are little-endian.
package wgen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	// SlotSize is the size of a record in bytes.
	SlotSize = 4096

	zeroEvery = 64 // steps between two zeroed regions
	zeroSlots = 16 // slots in a zeroed region, which is aligned to its size

	recordMagic = "HFWREC01"
	headerMagic = "HFWHDR01"
)

// Disks of a pair, as records name them.
const (
	diskA = 0
	diskB = 1
)

// ErrUnwritten reports a pair that no writer has begun.
var ErrUnwritten = errors.New("no writer has begun on these disks")

// ErrInconsistent reports a pair that does not show one instant of its writer.
var ErrInconsistent = errors.New("disks do not show one instant")

// Layout says where each record lies. Slot 0 of either disk is the header, which holds the layout.
type Layout struct {
	Seed  uint64
	Slots uint64 // slots in use on each disk with the header; a multiple of 16, at least 32
}

// NewLayout returns the layout for span bytes of each disk, rounded down to 64 KiB.
func NewLayout(seed uint64, span int64) (Layout, error) {
	l := Layout{Seed: seed, Slots: uint64(max(span, 0)) / SlotSize / zeroSlots * zeroSlots}
	if l.Slots < 2*zeroSlots {
		return Layout{}, fmt.Errorf("lay out records in %d bytes: at least %d are needed", span, 2*zeroSlots*SlotSize)
	}
	return l, nil
}

// Span returns the bytes in use on each disk.
func (l Layout) Span() int64 { return int64(l.Slots) * SlotSize }

// slot returns where record n lies on disk.
func (l Layout) slot(disk, n uint64) uint64 {
	return 1 + mix(l.Seed^mix(n<<1|disk))%(l.Slots-1)
}

// zeroed returns the slots of A that step n zeroes, from first up to but not including end.
func (l Layout) zeroed(n uint64) (first, end uint64) {
	if n%zeroEvery != 0 {
		return 0, 0
	}
	regions := l.Slots/zeroSlots - 1 // the first holds the header
	first = zeroSlots * (1 + mix(l.Seed+n)%regions)
	return first, first + zeroSlots
}

// mix is the finaliser of splitmix64: a bijection that scatters its argument.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// putRecord fills slot with record n of disk, written at unixNano.
func (l Layout) putRecord(slot []byte, disk, n uint64, unixNano int64) {
	copy(slot, recordMagic)
	binary.LittleEndian.PutUint64(slot[8:], n)
	binary.LittleEndian.PutUint64(slot[16:], l.Seed)
	binary.LittleEndian.PutUint64(slot[24:], disk)
	binary.LittleEndian.PutUint64(slot[32:], uint64(unixNano))
	x := mix(l.Seed ^ n<<8 ^ disk)
	for off := 40; off < SlotSize-8; off += 8 {
		// Half of the body is random, so that a record neither vanishes in compression nor defies
		// it.
		if off < SlotSize/2 {
			x = mix(x)
		}
		binary.LittleEndian.PutUint64(slot[off:], x)
	}
	seal(slot)
}

// parseRecord returns the number of the record in slot, or 0 if the slot is all zero.
func (l Layout) parseRecord(slot []byte, disk, at uint64) (uint64, error) {
	if allZero(slot) {
		return 0, nil
	}
	if string(slot[:8]) != recordMagic || !sealed(slot) {
		return 0, fmt.Errorf("slot %d of disk %c is torn: %w", at, 'A'+rune(disk), ErrInconsistent)
	}
	n := binary.LittleEndian.Uint64(slot[8:])
	seed, on := binary.LittleEndian.Uint64(slot[16:]), binary.LittleEndian.Uint64(slot[24:])
	if n == 0 || seed != l.Seed || on != disk || l.slot(disk, n) != at {
		return 0, fmt.Errorf("slot %d of disk %c holds record %d of seed %d and disk %c: %w",
			at, 'A'+rune(disk), n, seed, 'A'+rune(on), ErrInconsistent)
	}
	return n, nil
}

func (l Layout) putHeader(slot []byte) {
	clear(slot)
	copy(slot, headerMagic)
	binary.LittleEndian.PutUint64(slot[8:], l.Seed)
	binary.LittleEndian.PutUint64(slot[16:], l.Slots)
	seal(slot)
}

// parseHeader returns [ErrUnwritten] for a slot of zeros.
func parseHeader(slot []byte) (Layout, error) {
	if allZero(slot) {
		return Layout{}, ErrUnwritten
	}
	l := Layout{Seed: binary.LittleEndian.Uint64(slot[8:]), Slots: binary.LittleEndian.Uint64(slot[16:])}
	if string(slot[:8]) != headerMagic || !sealed(slot) || l.Slots < 2*zeroSlots || l.Slots%zeroSlots != 0 ||
		l.Slots > 1<<40 {
		return Layout{}, fmt.Errorf("header is damaged: %w", ErrInconsistent)
	}
	return l, nil
}

func seal(slot []byte) {
	body := slot[:SlotSize-4]
	binary.LittleEndian.PutUint32(slot[SlotSize-8:], 0)
	binary.LittleEndian.PutUint32(slot[SlotSize-4:], crc32.Checksum(body, castagnoli))
}

func sealed(slot []byte) bool {
	return binary.LittleEndian.Uint32(slot[SlotSize-4:]) == crc32.Checksum(slot[:SlotSize-4], castagnoli)
}

func allZero(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
	}
	return true
}
