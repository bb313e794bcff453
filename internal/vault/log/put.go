package log

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

const waitFirst, waitMost = 20 * time.Millisecond, 5 * time.Second // before a call is made again

// errCut reports an object that was there and is not any more: its volume is closed and was cut.
var errCut = errors.New("the entry was cut")

// place puts an object until it is known what stands under the name, and returns that: raw, or what
// another put. It returns blob.ErrNoSpace, or an error from before the object could be committed,
// if nothing was put; ErrInDoubt if ctx ended first; errCut. It reports whether there ever was
// doubt.
func (l *Log) place(ctx context.Context, name string, raw []byte) (found []byte, doubt bool, err error) {
	for wait := waitFirst; ; wait = min(2*wait, waitMost) {
		var committed bool
		committed, err = l.put(ctx, name, raw)
		doubt = doubt || committed
		switch {
		case err == nil:
			return raw, doubt, nil
		case errors.Is(err, blob.ErrExist):
			found, err := l.found(ctx, name)
			return found, doubt, err
		case !doubt && (wait > 8*waitFirst || errors.Is(err, blob.ErrNoSpace)):
			return nil, doubt, fmt.Errorf("put %s: %w", name, err)
		case ctx.Err() != nil:
			if !doubt {
				return nil, doubt, ctx.Err()
			}
			return nil, doubt, fmt.Errorf("put %s: %w: %w", name, ErrInDoubt, err)
		case doubt && l.opts.Without.Has(Definite):
			found, err := l.guess(ctx, name, raw)
			return found, doubt, err
		}
		pause(ctx, wait)
	}
}

// put puts an object once, and reports whether something may come of it although there is an error.
func (l *Log) put(ctx context.Context, name string, raw []byte) (committed bool, err error) {
	w, err := l.store.Create(ctx, name)
	if err != nil {
		return false, err
	}
	defer w.Abort()
	if _, err := w.Write(raw); err != nil {
		return false, err
	}
	err = w.Commit(ctx)
	return err != nil && !errors.Is(err, blob.ErrNoSpace) && !errors.Is(err, blob.ErrExist), err
}

// found reads what stands under a name that is taken.
func (l *Log) found(ctx context.Context, name string) ([]byte, error) {
	for wait := waitFirst; ; wait = min(2*wait, waitMost) {
		raw, err := l.readPresent(ctx, name, MaxBegin)
		switch {
		case err == nil:
			return raw, nil
		case err != nil && ctx.Err() != nil:
			return nil, fmt.Errorf("read %s: %w: %w", name, ErrInDoubt, err)
		case errors.Is(err, blob.ErrNotExist):
			return nil, fmt.Errorf("read %s: %w", name, errCut)
		}
		pause(ctx, wait)
	}
}

// guess is what one does who takes "absent" for an answer: tests of tests only.
func (l *Log) guess(ctx context.Context, name string, raw []byte) ([]byte, error) {
	found, err := l.found(ctx, name)
	if err == nil && !bytes.Equal(found, raw) {
		return found, nil
	}
	if err != nil {
		return nil, errors.New("the put failed and the entry is absent")
	}
	return raw, nil
}

// pause waits for a while, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Close closes the present volume without an entry, as one who takes the log over does, and goes on
// to the next. Whoever puts later into the old one finds out when he looks.
func (l *Log) Close(ctx context.Context) error {
	if err := l.Read(ctx); err != nil {
		return err
	}
	if err := l.putNext(ctx, l.head.At.Volume); err != nil {
		return err
	}
	l.closed = true
	if err := l.readVolume(ctx); err != nil {
		return err
	}
	return l.cross(ctx)
}

// putNext says that a volume is closed. All who do so put the same bytes.
func (l *Log) putNext(ctx context.Context, v Volume) error {
	raw := []byte("HFNEXT01" + v.String() + "\n")
	mac := l.keys.MAC(raw)
	if _, _, err := l.place(ctx, NextName(v), append(raw, mac[:]...)); err != nil {
		return fmt.Errorf("close volume %s: %w", v, err)
	}
	return nil
}
