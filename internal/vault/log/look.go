package log

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// look is a look for next/VOLUME that is under way.
type look struct {
	volume Volume
	covers int // of the entries that were placed, those before the look began
	done   chan struct{}
	closed bool
	err    error
}

func (w *Writer) beginLook() {
	if len(w.placed) == 0 || w.looking != nil {
		return
	}
	k := &look{volume: w.log.head.At.Volume, covers: len(w.placed), done: make(chan struct{}), err: ErrClosed}
	w.looking = k
	go func() {
		defer close(k.done)
		k.closed, k.err = w.log.lookNext(w.ctx, k.volume)
	}()
}

// lookNext reports whether next/VOLUME is there.
func (l *Log) lookNext(ctx context.Context, v Volume) (bool, error) {
	absent, err := l.absent(ctx, NextName(v))
	return !absent && err == nil, err
}

// lookAfter waits for the look that is under way. Where the volume is open, what it covers is
// acknowledged. Where it is closed, or whole is set, all that was placed is decided, and the log
// goes on to the next volume if it must.
func (w *Writer) lookAfter(whole bool) error {
	if k := w.looking; k != nil {
		<-k.done
		w.looking = nil
		switch {
		case k.err != nil:
			whole = true
		case !k.closed:
			w.acknowledge(k.covers)
		default:
			whole = true
			w.log.closed = w.log.closed || k.volume == w.log.head.At.Volume
		}
	}
	if !whole && !w.log.closed && !w.log.ended {
		return nil
	}
	return w.decide()
}

// decide acknowledges or makes again all that was placed: rule R2.
func (w *Writer) decide() error {
	l := w.log
	if err := w.catchUp(); err != nil {
		return err
	}
	if len(w.placed) > 0 && w.placed[0].at.Volume == l.head.At.Volume && !l.closed {
		err := w.persist(func() (err error) {
			l.closed, err = l.lookNext(w.ctx, l.head.At.Volume)
			return err
		})
		if err != nil {
			return err
		}
		if !l.closed {
			w.acknowledge(len(w.placed))
		}
	}
	if l.ended || l.closed {
		if err := w.persist(func() error { return l.cross(w.ctx) }); err != nil {
			return err
		}
		if err := w.catchUp(); err != nil {
			return err
		}
	}
	return w.knowOwn()
}

// catchUp reads on to the volume of what was placed, if the log was read anew from an older
// checkpoint: nonces are judged by no state from before.
func (w *Writer) catchUp() error {
	return w.persist(func() error {
		for _, f := range w.undecided() {
			if f.at.Volume.Compare(w.log.head.At.Volume) <= 0 {
				continue
			}
			if err := w.log.Read(w.ctx); err != nil {
				return err
			}
			if f.at.Volume.Compare(w.log.head.At.Volume) > 0 {
				return errNotNow
			}
		}
		return nil
	})
}

// undecided returns the entries of which it is not known yet whether they count.
func (w *Writer) undecided() []*flight {
	return append(w.doubted[:len(w.doubted):len(w.doubted)], w.placed...)
}

// wasCut goes on from an entry that was there and is not any more: its volume must be closed.
func (w *Writer) wasCut(at Position) error {
	l := w.log
	err := w.persist(func() (err error) {
		l.closed, err = l.lookNext(w.ctx, at.Volume)
		return err
	})
	if err == nil && !l.closed {
		err = fmt.Errorf("%w: entry %s has vanished", ErrDamaged, at)
	}
	return err
}

// isBehind reports whether entries are undecided of a volume that the log has left: somebody has
// read on, by Do. They are decided before anything else is put.
func (w *Writer) isBehind() bool {
	for _, f := range w.undecided() {
		if f.at.Volume != w.log.head.At.Volume {
			return true
		}
	}
	return false
}

// knowOwn decides by their nonces what became of entries of volumes that are closed. All that are
// undecided are of one volume.
func (w *Writer) knowOwn() error {
	if !w.isBehind() {
		return nil
	}
	flights := w.undecided()
	placed := make([]bool, len(flights))
	for i, f := range flights {
		err := w.persist(func() (err error) {
			placed[i], err = w.log.state.Placed(w.ctx, f.nonce, f.at.Volume)
			return err
		})
		if err != nil {
			return fmt.Errorf("look for one's own entry: %w", err)
		}
		placed[i] = placed[i] && !w.log.opts.Without.Has(KnowNonce)
	}
	for i, f := range flights {
		if placed[i] {
			w.answerAll(f.requests, f.at, nil)
		}
	}
	for i, f := range flights {
		if !placed[i] && i >= len(w.doubted) { // who was doubted has been in the queue since
			w.requeue(f.requests)
		}
	}
	w.doubted, w.placed = nil, nil
	return nil
}

// acknowledge answers the requests of the first n entries that were placed.
func (w *Writer) acknowledge(n int) {
	for _, f := range w.placed[:n] {
		w.answerAll(f.requests, f.at, nil)
	}
	w.placed = w.placed[n:]
	w.doubted = nil // nothing of the volume was cut while it was open
}

// failAll answers everybody with an error that will not pass.
func (w *Writer) failAll(err error) {
	if k := w.looking; k != nil {
		<-k.done
		w.looking = nil
	}
	for _, f := range w.undecided() {
		w.answerAll(f.requests, Position{}, fmt.Errorf("%w: %w", ErrInDoubt, err))
	}
	w.doubted, w.placed = nil, nil
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answerAll(w.queue, Position{}, err)
	w.queue = nil
}

// persist does what must be done until it is, or will not be.
func (w *Writer) persist(do func() error) error {
	for wait := waitFirst; ; wait = min(2*wait, waitMost) {
		err := do()
		if err == nil || lasting(err) {
			return err
		}
		if w.ctx.Err() != nil {
			return ErrClosed
		}
		pause(w.ctx, wait)
	}
}

// lasting reports whether an error stays however often one tries.
func lasting(err error) bool {
	for _, e := range []error{ErrDamaged, ErrNewer, ErrInDoubt, ErrClosed, ErrRolledBack, blob.ErrNoSpace} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Roll closes the present volume by an entry, and begins the next one. Nobody waits for it.
func (w *Writer) Roll(ctx context.Context) error {
	_, err := w.Append(ctx, func(context.Context) ([]Op, error) { return []Op{{Kind: End}}, nil })
	if err != nil {
		return fmt.Errorf("roll the log: %w", err)
	}
	return w.Do(ctx, func(l *Log) error {
		if !l.ended {
			return nil
		}
		return l.cross(ctx)
	})
}

// fairness is rule R10: who lost five times in a row asks for room, and a busy owner leaves some.
type fairness struct {
	lost   int // numbers in a row that others won
	asked  bool
	looked time.Time
}

// losses are how many numbers in a row a writer loses before it asks for room.
const losses = 5

func (w *Writer) wantName() string { return fmt.Sprintf("%s%x", prefixWant, w.nonce.Writer) }

// askForRoom says that this writer wants a number, or that it does not any more. It is a courtesy:
// where it fails, one goes on as before.
func (w *Writer) askForRoom() {
	switch {
	case w.fair.lost >= losses && !w.fair.asked:
		w.fair.asked = blob.Put(w.ctx, w.log.store, w.wantName(), nil) == nil
	case w.fair.lost == 0 && w.fair.asked:
		w.fair.asked = w.log.store.Delete(w.ctx, w.wantName()) != nil
	}
}

// leaveRoom is done by an owner before each entry: if somebody wants a number it lets two go by, or
// the time in which two could be put. Who asked and then died is forgotten after that.
func (w *Writer) leaveRoom() {
	now := time.Now()
	if !w.log.opts.Owner || now.Sub(w.fair.looked) < time.Second {
		return
	}
	w.fair.looked = now
	for name, err := range blob.Names(w.ctx, w.log.store, prefixWant, "") {
		if err != nil {
			return
		}
		if name != w.wantName() {
			w.letGo(2)
			_ = w.log.store.Delete(w.ctx, name) // who is not served asks again
			return
		}
	}
}

func (w *Writer) letGo(numbers uint32) {
	until := w.log.next()
	until.Number += numbers
	for range 10 {
		if err := w.log.readVolume(w.ctx); err != nil || w.log.ended || w.log.next().Compare(until) >= 0 {
			return
		}
		pause(w.ctx, waitFirst)
	}
}
