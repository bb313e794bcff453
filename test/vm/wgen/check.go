package wgen

import (
	"errors"
	"fmt"
	"io"
)

// Check reads copies of both disks and returns the last step that each has seen, with nB <= nA <=
// nB+1. It returns [ErrUnwritten] if no writer has begun, and [ErrInconsistent], saying where, if
// the pair does not show one instant: a torn or foreign record, a missing or a premature one.
func Check(a, b io.ReaderAt, sizeA, sizeB int64) (nA, nB uint64, err error) {
	layout, err := readHeader(a, sizeA)
	if err != nil {
		return 0, 0, fmt.Errorf("read header of disk A: %w", err)
	}
	other, err := readHeader(b, sizeB)
	begun := !errors.Is(err, ErrUnwritten) // B's header is durable before the first record is written
	switch {
	case begun && err != nil:
		return 0, 0, fmt.Errorf("read header of disk B: %w", err)
	case begun && other != layout:
		return 0, 0, fmt.Errorf("disk B belongs to another pair: %w", ErrInconsistent)
	}
	if layout.Span() > sizeA || layout.Span() > sizeB {
		return 0, 0, fmt.Errorf("disks of %d and %d bytes are smaller than the %d in use", sizeA, sizeB, layout.Span())
	}
	onA, err := layout.scan(a, diskA)
	if err != nil {
		return 0, 0, err
	}
	onB, err := layout.scan(b, diskB)
	if err != nil {
		return 0, 0, err
	}
	nA, nB, err = layout.judge(onA, onB)
	if err == nil && nA > 0 && !begun {
		return 0, 0, fmt.Errorf("disk A has seen step %d, disk B not even the header: %w", nA, ErrInconsistent)
	}
	return nA, nB, err
}

func readHeader(d io.ReaderAt, size int64) (Layout, error) {
	if size < SlotSize {
		return Layout{}, fmt.Errorf("disk of %d bytes has no header", size)
	}
	slot := make([]byte, SlotSize)
	if _, err := d.ReadAt(slot, 0); err != nil && err != io.EOF {
		return Layout{}, err
	}
	return parseHeader(slot)
}

// scan returns the number of the record in each slot, 0 where there is none.
func (l Layout) scan(d io.ReaderAt, disk uint64) ([]uint64, error) {
	found := make([]uint64, l.Slots)
	buf := make([]byte, 256*SlotSize)
	for at := uint64(0); at < l.Slots; at += 256 {
		part := buf[:min(256, l.Slots-at)*SlotSize]
		if n, err := d.ReadAt(part, int64(at)*SlotSize); n < len(part) {
			return nil, fmt.Errorf("read slot %d of disk %c: %w", at, 'A'+rune(disk), err)
		}
		for i := uint64(0); i*SlotSize < uint64(len(part)); i++ {
			if at+i == 0 {
				continue
			}
			n, err := l.parseRecord(part[i*SlotSize:(i+1)*SlotSize], disk, at+i)
			if err != nil {
				return nil, err
			}
			found[at+i] = n
		}
	}
	return found, nil
}

// judge compares what was found with what the writer's order allows.
func (l Layout) judge(onA, onB []uint64) (nA, nB uint64, err error) {
	for _, n := range onB {
		nB = max(nB, n)
	}
	nA = nB
	if onA[l.slot(diskA, nB+1)] == nB+1 {
		nA++
	}
	wantA, wantB := l.replay(nA, nB)
	// Step nB+1 may have zeroed some of its region without having written its record.
	first, end := uint64(0), uint64(0)
	if nA == nB {
		first, end = l.zeroed(nB + 1)
	}
	for at := range onA {
		inRegion := uint64(at) >= first && uint64(at) < end
		if onA[at] != wantA[at] && !(inRegion && onA[at] == 0) {
			return 0, 0, mismatch('A', at, onA[at], wantA[at], nB)
		}
		if onB[at] != wantB[at] {
			return 0, 0, mismatch('B', at, onB[at], wantB[at], nB)
		}
	}
	return nA, nB, nil
}

func mismatch(disk rune, at int, got, want, nB uint64) error {
	return fmt.Errorf("slot %d of disk %c holds record %d, want %d when B has seen step %d: %w",
		at, disk, got, want, nB, ErrInconsistent)
}

// replay returns what the slots hold once A has seen step nA and B step nB.
func (l Layout) replay(nA, nB uint64) (onA, onB []uint64) {
	onA, onB = make([]uint64, l.Slots), make([]uint64, l.Slots)
	for n := uint64(1); n <= nA; n++ {
		first, end := l.zeroed(n)
		clear(onA[first:end])
		onA[l.slot(diskA, n)] = n
	}
	for n := uint64(1); n <= nB; n++ {
		onB[l.slot(diskB, n)] = n
	}
	return onA, onB
}
