package log

import (
	"context"
	"fmt"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// Cut deletes the entries of a volume that was followed by another, but for its first. The next
// volume's first entry, and the checkpoint that it names, are read back before, by verify, which
// also compares the checkpoint with a second fold; then next/VOLUME says that the volume is closed;
// only then anything goes. Whether mirrors are past it, and days, is for the caller to see to.
func (l *Log) Cut(ctx context.Context, v Volume, verify func(context.Context, Checkpoint) error) error {
	if v.Compare(l.head.At.Volume) >= 0 {
		return fmt.Errorf("cut volume %s: it is not over", v)
	}
	_, _, b, err := l.readBegin(ctx, v.Next())
	if err != nil {
		return fmt.Errorf("cut volume %s: %w", v, err)
	}
	if err := verify(ctx, b.from); err != nil {
		return fmt.Errorf("cut volume %s: the checkpoint at %s: %w", v, b.from.At, err)
	}
	if !l.opts.Without.Has(MarkBeforeCut) {
		if err := l.store.Settle(ctx, EntryName(Position{Volume: v.Next()})); err != nil {
			return fmt.Errorf("cut volume %s: %w", v, err)
		}
		if err := l.putNext(ctx, v); err != nil {
			return err
		}
	}
	return l.deleteEntries(ctx, v)
}

// CutVolume is Cut for who has no log open: head is an entry that was confirmed. It holds up
// nobody.
func CutVolume(ctx context.Context, s blob.Store, k *Keys, head Position, v Volume,
	verify func(context.Context, Checkpoint) error,
) error {
	l := &Log{store: s, keys: k, head: Remembered{At: head}}
	return l.Cut(ctx, v, verify)
}

// IsCut reports whether a volume has no entry but its first, as a list tells.
func IsCut(ctx context.Context, s blob.Store, v Volume) (bool, error) {
	first := EntryName(Position{Volume: v})
	folder := strings.TrimSuffix(first, "000/000000")
	for _, err := range blob.Names(ctx, s, folder, first) {
		return false, err
	}
	return true, nil
}

// IsBegunToCut reports whether somebody has begun to cut a volume: it is closed by next/VOLUME, and
// its second entry is gone.
func IsBegunToCut(ctx context.Context, s blob.Store, v Volume) (bool, error) {
	open, err := s.Absent(ctx, NextName(v))
	if err != nil || open {
		return false, err
	}
	return s.Absent(ctx, EntryName(Position{Volume: v, Number: 1}))
}

// deleteEntries deletes what stands below a volume's name but its first entry.
func (l *Log) deleteEntries(ctx context.Context, v Volume) error {
	first := EntryName(Position{Volume: v})
	folder := strings.TrimSuffix(first, "000/000000")
	for name, err := range blob.Names(ctx, l.store, folder, first) {
		if err == nil {
			err = l.store.Delete(ctx, name)
		}
		if err != nil {
			return fmt.Errorf("cut volume %s: %w", v, err)
		}
	}
	return nil
}

// Confirm makes sure that what was read so far is in the history and stays: what was read is
// settled, and no next volume is in sight that it might not be part of. Whoever acts on an entry of
// another, as by deleting what it condemns, confirms it first.
func (l *Log) Confirm(ctx context.Context) error {
	for {
		if err := l.Read(ctx); err != nil {
			return err
		}
		if err := l.Settle(ctx); err != nil {
			return err
		}
		closed, err := l.lookNext(ctx, l.head.At.Volume)
		if err != nil || !closed {
			return err
		}
	}
}

// Begun returns the checkpoint that the present volume begins with, if it names one: what is older
// and not named by it nobody needs any more.
func (l *Log) Begun(ctx context.Context) (Checkpoint, bool, error) {
	if l.head.At.Volume.Number == 0 {
		return Checkpoint{}, false, nil
	}
	c, err := l.BegunWith(ctx, l.head.At.Volume)
	return c, err == nil, err
}

// BegunWith returns the checkpoint that a volume of this tenure which is not the first begins with.
func (l *Log) BegunWith(ctx context.Context, v Volume) (Checkpoint, error) {
	_, _, b, err := l.readBegin(ctx, v)
	if err != nil {
		return Checkpoint{}, err
	}
	return b.from, nil
}

// readBegin reads the first entry of a volume that is not the first.
func (l *Log) readBegin(ctx context.Context, v Volume) ([]byte, *Entry, *beginning, error) {
	at := Position{Volume: v}
	raw, err := l.readObject(ctx, EntryName(at), MaxBegin)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read how volume %s begins: %w", v, err)
	}
	e, err := parse(raw, at, l.keys)
	if err != nil {
		return nil, nil, nil, err
	}
	b, err := readBeginning(e.Ops[0].Body)
	return raw, e, b, err
}

// Stands reports whether an entry at a position counts: whether it is in the history as it was
// read.
func (l *Log) Stands(ctx context.Context, p Position) (bool, error) {
	return Stands(ctx, l.state, l.head.At, p)
}

// Stands reports whether the entry at p counts in the history that leads to head.
func Stands(ctx context.Context, s State, head, p Position) (bool, error) {
	if p.Compare(head) > 0 {
		return false, nil
	}
	if p.Volume == head.Volume {
		return true, nil
	}
	last, _, ok, err := s.Ended(ctx, p.Volume)
	return ok && p.Number <= last, err
}

// Refold folds the entries of a volume up to one of them into a state, from what the volume began
// with: a second fold, to compare a checkpoint with. It returns the entry that it came to: of a
// volume that was cut, and into which somebody who slept has put since, that is another one.
func Refold(ctx context.Context, s blob.Store, k *Keys, st State, to Position) (Remembered, error) {
	l := &Log{store: s, keys: k, state: st}
	if err := l.refoldFirst(ctx, to.Volume); err != nil {
		return l.head, fmt.Errorf("fold volume %s again: %w", to.Volume, err)
	}
	for l.head.At.Number < to.Number {
		at := l.next()
		raw, err := l.readObject(ctx, EntryName(at), limitOf(at))
		if err == nil {
			err = l.take(ctx, at, raw)
		}
		if err != nil {
			return l.head, fmt.Errorf("fold entry %s again: %w", at, err)
		}
	}
	return l.head, nil
}

func (l *Log) refoldFirst(ctx context.Context, v Volume) error {
	if v.Number == 0 {
		return l.startAtFirst(ctx)
	}
	first, e, b, err := l.readBegin(ctx, v)
	if err != nil {
		return err
	}
	if err := l.load(ctx, b.from); err != nil {
		return err
	}
	for _, raw := range b.entries {
		if err := l.takeAgain(raw); err != nil {
			return err
		}
	}
	return l.fold(e, first)
}
