package log

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// Past is an entry of the history.
type Past struct {
	*Entry
	Cut uint32 // so many numbers after it, up to the entry told before, were cut off its volume
}

// History calls do for the entries of the history that are still there, the newest first, until it
// reports false: from the one at from on, or the last before it that counts; a zero from is head.
// Of volumes that were cut it has the first entry, and those that the next volume's carries. head
// is an entry that was read, or remembered, as of the history. Bodies are hidden from who has no
// key.
func History(ctx context.Context, s blob.Store, k *Keys, head Remembered, from Position, do func(Past) bool) error {
	if from == (Position{}) || from.Compare(head.At) > 0 {
		from = head.At
	}
	h := &history{log: Log{store: s, keys: k}, head: head.At, at: head.At, hash: head.Hash}
	for {
		e, err := h.next(ctx, from)
		if err != nil {
			return fmt.Errorf("read the history at %s: %w", h.at, err)
		}
		if h.said.At.Compare(from) <= 0 && !do(e) || !h.more {
			return nil
		}
	}
}

// history walks back.
type history struct {
	log   Log
	head  Position
	at    Position          // of the entry to read
	hash  Hash              // of it, as the one after it says; zero after a gap
	known map[string][]byte // objects that were read, or are carried
	said  Past              // the last
	more  bool
}

// next reads the entry at h.at and finds the one before it. In volumes beyond from it reads the
// first entries alone.
func (h *history) next(ctx context.Context, from Position) (Past, error) {
	skipped := uint32(0)
	if h.at.Volume.Compare(from.Volume) > 0 && h.at.Number > 0 {
		h.at.Number, h.hash = 0, Hash{}
	}
	e, err := h.take(ctx)
	if h.wasCut(err) {
		skipped = h.at.Number
		h.at.Number, h.hash = 0, Hash{}
		e, err = h.take(ctx)
	}
	if err != nil {
		return Past{}, err
	}
	h.said = Past{Entry: e, Cut: skipped}
	return h.said, h.goBack(e)
}

// take reads the entry at h.at and demands that it is the one that the entry after it names.
func (h *history) take(ctx context.Context) (*Entry, error) {
	raw, err := h.read(ctx, h.at)
	if err != nil {
		return nil, err
	}
	e, err := parse(raw, h.at, h.log.keys)
	if errors.Is(err, errVoid) || err == nil && h.hash != (Hash{}) && e.Hash != h.hash {
		err = fmt.Errorf("%w: it is not the entry that the one after it names", ErrDamaged)
	}
	return e, err
}

// wasCut reports whether an entry is not there because its volume was cut. Somebody who slept may
// have put another at its number since.
func (h *history) wasCut(err error) bool {
	if h.at.Number == 0 || h.at.Volume == h.head.Volume {
		return false
	}
	return errors.Is(err, blob.ErrNotExist) || errors.Is(err, ErrDamaged)
}

// goBack finds the entry before one.
func (h *history) goBack(e *Entry) error {
	h.more, h.hash = e.Before != (Hash{}), e.Before
	if !h.more || e.At.Number > 0 {
		h.at.Number -= min(h.at.Number, 1+uint32(len(e.Voids)))
		return nil
	}
	b, err := readBeginning(e.Ops[0].Body)
	if err != nil {
		return err
	}
	h.at, h.known = b.after, map[string][]byte{}
	for _, raw := range b.entries {
		h.known[EntryName(positionIn(raw))] = raw
	}
	return nil
}

// read reads an entry, and some of those before it.
func (h *history) read(ctx context.Context, at Position) ([]byte, error) {
	if raw, ok := h.known[EntryName(at)]; ok {
		return raw, nil
	}
	raws := make([][]byte, min(historyAhead, at.Number)+1)
	errs := make([]error, len(raws))
	var wg sync.WaitGroup
	for i := range raws {
		wg.Go(func() {
			p := at
			p.Number -= uint32(i)
			raws[i], errs[i] = h.log.readObject(ctx, EntryName(p), limitOf(p))
		})
	}
	wg.Wait()
	h.known = map[string][]byte{}
	for i, raw := range raws {
		if p := at; errs[i] == nil {
			p.Number -= uint32(i)
			h.known[EntryName(p)] = raw
		}
	}
	return raws[0], errs[0]
}

// historyAhead is how many entries are read at once.
const historyAhead = 31
