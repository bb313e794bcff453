package wgen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Disk is what a writer needs of a disk. When a call returns nil, what it did survives power loss.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	// Zero makes length bytes at off read as zero.
	Zero(off, length int64) error
}

// Writer carries on from the step that its disks have seen.
type Writer struct {
	layout Layout
	a, b   Disk
	slot   []byte
	done   uint64
}

// NewWriter begins on two empty disks with layout, or carries on where both were left, with the
// layout they have. It refuses disks that fail [Check]. slot is SlotSize bytes, aligned as the
// disks demand, and the writer's own from then on.
func NewWriter(a, b Disk, size int64, layout Layout, slot []byte) (*Writer, error) {
	w := &Writer{layout: layout, a: a, b: b, slot: slot}
	_, nB, err := Check(a, b, size, size)
	switch {
	case errors.Is(err, ErrUnwritten):
		return w, w.begin()
	case err != nil:
		return nil, fmt.Errorf("carry on where the disks were left: %w", err)
	}
	if w.layout, err = readHeader(a, size); err != nil {
		return nil, err
	}
	// A cut in the middle of the step is repaired by doing the step again.
	w.done = nB
	return w, w.begin()
}

func (w *Writer) begin() error {
	w.layout.putHeader(w.slot)
	for _, d := range []Disk{w.a, w.b} {
		if _, err := d.WriteAt(w.slot, 0); err != nil {
			return fmt.Errorf("write header: %w", err)
		}
	}
	return nil
}

// Done returns the last step that both disks have seen.
func (w *Writer) Done() uint64 { return w.done }

// Step writes the next record to A, then to B. After an error the writer is of no further use.
func (w *Writer) Step(now time.Time) error {
	n := w.done + 1
	if first, end := w.layout.zeroed(n); end > first {
		if err := w.a.Zero(int64(first)*SlotSize, int64(end-first)*SlotSize); err != nil {
			return fmt.Errorf("zero a region of disk A at step %d: %w", n, err)
		}
	}
	for disk, d := range []Disk{w.a, w.b} {
		w.layout.putRecord(w.slot, uint64(disk), n, now.UnixNano())
		if _, err := d.WriteAt(w.slot, int64(w.layout.slot(uint64(disk), n))*SlotSize); err != nil {
			return fmt.Errorf("write record %d to disk %c: %w", n, 'A'+rune(disk), err)
		}
	}
	w.done = n
	return nil
}

// Run takes steps, rate a second or as fast as the disks allow if rate is 0, until ctx ends. It
// calls acked about once a second with the last step that both disks have seen, and at the end.
func (w *Writer) Run(ctx context.Context, rate int, acked func(n uint64)) error {
	tick := make(<-chan time.Time)
	if rate > 0 {
		t := time.NewTicker(time.Second / time.Duration(rate))
		defer t.Stop()
		tick = t.C
	}
	said := time.Now()
	for ctx.Err() == nil {
		if err := w.Step(time.Now()); err != nil {
			return err
		}
		if time.Since(said) >= time.Second {
			acked(w.done)
			said = time.Now()
		}
		if rate == 0 {
			continue
		}
		select {
		case <-tick:
		case <-ctx.Done():
		}
	}
	acked(w.done)
	return nil
}
