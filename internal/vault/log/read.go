package log

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// Read reads on: to the first number that is absent, in the newest volume. It begins a volume whose
// predecessor was closed by somebody who then stopped. What is not known afterwards was not
// acknowledged when Read was called.
func (l *Log) Read(ctx context.Context) error {
	for {
		if err := l.readVolume(ctx); err != nil {
			return err
		}
		if closed, err := l.isClosed(ctx); err != nil || !closed {
			return err
		}
		if err := l.cross(ctx); err != nil {
			return err
		}
	}
}

// isClosed reports whether the present volume was closed: rule R2's look.
func (l *Log) isClosed(ctx context.Context) (bool, error) {
	if l.ended || l.closed {
		return true, nil
	}
	name := NextName(l.head.At.Volume)
	if f, ok := l.ahead[name]; ok {
		delete(l.ahead, name)
		l.closed = f.err == nil
		if !l.closed && !errors.Is(f.err, blob.ErrNotExist) {
			return false, f.err
		}
		return l.closed, nil
	}
	absent, err := l.absent(ctx, name)
	if err != nil {
		return false, err
	}
	if !absent {
		l.closed = true
	}
	return l.closed, nil
}

func (l *Log) absent(ctx context.Context, name string) (bool, error) {
	if l.opts.Without.Has(AskAbsent) {
		_, err := l.store.Stat(ctx, name)
		if errors.Is(err, blob.ErrNotExist) {
			return true, nil
		}
		return false, err
	}
	absent, err := l.store.Absent(ctx, name)
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", name, err)
	}
	return absent, nil
}

// readVolume reads on in the present volume until a number is absent, or the volume has an end.
func (l *Log) readVolume(ctx context.Context) error {
	for !l.ended && l.suspect == nil {
		at := l.next()
		if at.Number >= MaxEntries {
			return nil
		}
		raw, err := l.fetch(ctx, EntryName(at), limitOf(at))
		if errors.Is(err, blob.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read entry %s: %w", at, err)
		}
		err = l.take(ctx, at, raw)
		if errors.Is(err, errVanished) {
			err = l.restart(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// next returns the position after all that was read, void or not.
func (l *Log) next() Position {
	p := l.head.At
	p.Number += 1 + uint32(len(l.voids))
	return p
}

// take judges the object at the next number, and folds it in if it is an entry. One that does not
// authenticate is read until it reads the same twice, so that what went wrong on the way, or
// vanished since, is not taken for void.
func (l *Log) take(ctx context.Context, at Position, raw []byte) error {
	if len(raw) > limitOf(at) {
		raw = []byte{}
	}
	e, err := parse(raw, at, l.keys)
	for errors.Is(err, errVoid) {
		again, readErr := l.readPresent(ctx, EntryName(at), limitOf(at))
		if errors.Is(readErr, blob.ErrNotExist) {
			return nil
		}
		if readErr != nil {
			return fmt.Errorf("read entry %s again: %w", at, readErr)
		}
		if bytes.Equal(raw, again) {
			break
		}
		raw = again
		e, err = parse(raw, at, l.keys)
	}
	switch {
	case errors.Is(err, errVoid):
		l.voids = append(l.voids, HashOf(raw))
		return nil
	case err != nil:
		return err
	}
	if e.Before != l.head.Hash || !slices.Equal(e.Voids, l.voids) { // is what came before as it was read?
		if err := l.settleVoids(ctx); err != nil {
			return err
		}
		if l.foreign {
			if err := l.headStands(ctx); err != nil {
				return err
			}
		}
	}
	switch {
	case e.Before != l.head.Hash && len(l.voids) > 0, e.Before == l.head.Hash && !slices.Equal(e.Voids, l.voids):
		return l.suspectDamage(ctx, at, HashOf(raw))
	case e.Before != l.head.Hash:
		l.voids = append(l.voids, e.Hash)
		return nil
	}
	return l.fold(e, raw)
}

// suspectDamage is told of an entry that covers others which do not read as they were written. In a
// volume that was closed and cut they may be what somebody put who slept, and all of it is void:
// how the next volume begins decides.
func (l *Log) suspectDamage(ctx context.Context, at Position, hash Hash) error {
	damage := fmt.Errorf("%w: entry %s covers others before it that do not read as they were written", ErrDamaged, at)
	closed, err := l.lookNext(ctx, at.Volume)
	if err != nil {
		return err
	}
	if !closed {
		return damage
	}
	l.closed, l.suspect = true, damage
	l.voids = append(l.voids, hash)
	return nil
}

// fold folds in an entry that counts.
func (l *Log) fold(e *Entry, raw []byte) error {
	if err := l.state.Apply(e); err != nil {
		return fmt.Errorf("entry %s: %w", e.At, err)
	}
	l.head = Remembered{At: e.At, Hash: e.Hash}
	l.voids, l.sure = nil, 0
	l.ended = e.Ops[len(e.Ops)-1].Kind == End
	l.foreign = true
	l.since++
	if l.folded && l.newest.At.Volume == e.At.Volume && l.since <= EveryEntries {
		l.recent = append(l.recent, raw)
	}
	return nil
}

// fetched is what a read that was begun early brought.
type fetched struct {
	raw []byte
	err error
}

// fetch reads an object, or takes what was read early; that it was absent then is good enough.
func (l *Log) fetch(ctx context.Context, name string, limit int) ([]byte, error) {
	if f, ok := l.ahead[name]; ok {
		delete(l.ahead, name)
		return f.raw, f.err
	}
	return l.readObject(ctx, name, limit)
}

// readObject reads an object. Few are larger than an entry usually is.
func (l *Log) readObject(ctx context.Context, name string, limit int) ([]byte, error) {
	raw, err := blob.Read(ctx, l.store, name, min(limit, MaxEntry))
	if errors.Is(err, blob.ErrTooLarge) && limit > MaxEntry {
		raw, err = blob.Read(ctx, l.store, name, limit)
	}
	if errors.Is(err, blob.ErrTooLarge) { // no entry is: void, whatever it is
		return []byte{}, nil
	}
	return raw, err
}

// cross goes from the present volume, which is closed, to the next one, and begins that if nobody
// has.
func (l *Log) cross(ctx context.Context) error {
	at := Position{Volume: l.head.At.Volume.Next()}
	raw, err := l.fetch(ctx, EntryName(at), MaxBegin)
	if errors.Is(err, blob.ErrNotExist) {
		raw, err = l.readPresent(ctx, EntryName(at), MaxBegin)
	}
	if errors.Is(err, blob.ErrNotExist) {
		if err := l.readToEnd(ctx); err != nil {
			return err
		}
		if l.suspect != nil {
			return l.suspect // nothing was cut: it is damage
		}
		if raw, err = l.begin(ctx); errors.Is(err, errVanished) {
			return l.Read(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("go on to volume %s: %w", at.Volume, err)
	}
	e, err := parse(raw, at, l.keys)
	if errors.Is(err, errVoid) {
		err = fmt.Errorf("%w: the beginning of volume %s: %w", ErrDamaged, at.Volume, err)
	}
	if err != nil {
		return err
	}
	b, err := readBeginning(e.Ops[0].Body)
	if err != nil {
		return err
	}
	if b.after.Volume != l.head.At.Volume || b.hash != e.Before {
		return fmt.Errorf("%w: volume %s does not begin where the one before ends", ErrDamaged, at.Volume)
	}
	err = l.goTo(ctx, b)
	if errors.Is(err, blob.ErrNotExist) {
		absent, askErr := l.store.Absent(ctx, CheckpointName(b.from))
		if askErr == nil && absent { // so old that its checkpoint was swept
			if err := l.restart(ctx); err != nil {
				return err
			}
			return l.Read(ctx)
		}
	}
	if err != nil {
		return err
	}
	l.voids, l.sure, l.closed, l.suspect = nil, 0, false, nil
	if err := l.fold(e, raw); err != nil {
		return err
	}
	l.recent = nil
	return nil
}

// readToEnd reads a volume that is closed to its end. Nothing of it is cut before the next one has
// begun, and what is put after its end is void, whoever puts it; so that a number is absent must
// not come from a cache here.
func (l *Log) readToEnd(ctx context.Context) error {
	for {
		if err := l.readVolume(ctx); err != nil || l.ended || l.suspect != nil || l.next().Number >= MaxEntries {
			return err
		}
		if absent, err := l.absent(ctx, EntryName(l.next())); err != nil || absent {
			return err
		}
	}
}

// goTo makes the state the one after which a volume begins. Where what was read is beyond that, and
// so void, or lacks entries that are cut by now, the state is taken from the checkpoint.
func (l *Log) goTo(ctx context.Context, b *beginning) error {
	if l.head == (Remembered{At: b.after, Hash: b.hash}) {
		return nil
	}
	if !l.leadsTo(b) {
		if err := l.load(ctx, b.from); err != nil {
			return err
		}
	}
	l.voids, l.sure = nil, 0
	for i := range b.entries {
		if err := l.takeAgain(b.entries[i]); err != nil {
			return err
		}
	}
	if l.head != (Remembered{At: b.after, Hash: b.hash}) {
		return fmt.Errorf("%w: the entries before volume %s do not lead to it", ErrDamaged, b.after.Volume.Next())
	}
	return nil
}

// leadsTo reports whether the entries that a beginning carries go on from what was read.
func (l *Log) leadsTo(b *beginning) bool {
	for _, raw := range b.entries {
		if at := positionIn(raw); at.Compare(l.head.At) > 0 {
			return Hash(raw[32:64]) == l.head.Hash
		}
	}
	return false
}

// takeAgain folds in an entry that the beginning of a volume carries, unless it is known.
func (l *Log) takeAgain(raw []byte) error {
	at := positionIn(raw)
	if at.Volume == l.head.At.Volume && at.Number <= l.head.At.Number {
		return nil
	}
	e, err := parse(raw, at, l.keys)
	if errors.Is(err, errVoid) || err == nil && e.Before != l.head.Hash {
		err = fmt.Errorf("%w: entry %s, which the beginning of the next volume carries, does not chain", ErrDamaged, at)
	}
	if err != nil {
		return err
	}
	return l.fold(e, raw)
}

// load makes the state the one of a checkpoint.
func (l *Log) load(ctx context.Context, c Checkpoint) error {
	loaded, err := l.state.Load(ctx, c)
	if err != nil {
		return fmt.Errorf("load the checkpoint at %s: %w", c.At, err)
	}
	c.Hash = loaded.Hash
	l.head, l.ended, l.voids, l.sure = Remembered{At: c.At, Hash: loaded.Head}, loaded.Ended, nil, 0
	l.foreign = true
	l.noteCheckpoint(c)
	l.read = true
	return nil
}
