package log

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// Open reads a log from its newest checkpoint on and folds it into state. That takes three round
// trips, one after the other, when the checkpoint is as new as it should be, and one more for each
// volume that has begun since.
func Open(ctx context.Context, s blob.Store, k *Keys, state State, o Options) (*Log, error) {
	l := newLog(s, k, state, o)
	if err := l.start(ctx); err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	if err := l.Read(ctx); err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	if err := l.checkRemembered(ctx); err != nil {
		return nil, err
	}
	l.ahead = nil
	return l, nil
}

func newLog(s blob.Store, k *Keys, state State, o Options) *Log {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = func(b []byte) { rand.Read(b) }
	}
	for len(o.Who) > maxWho {
		_, size := utf8.DecodeLastRuneInString(o.Who)
		o.Who = o.Who[:len(o.Who)-size]
	}
	return &Log{store: s, keys: k, state: state, opts: o}
}

// start loads the newest checkpoint that can be loaded; without one it begins at the beginning.
func (l *Log) start(ctx context.Context) error {
	l.voids, l.sure, l.ended, l.closed, l.suspect = nil, 0, false, false, nil
	l.folded, l.recent, l.since = false, nil, 0
	after := ""
	for {
		name, c, err := l.hinted(ctx, after)
		if err != nil {
			return err
		}
		if name == "" {
			return l.startAtFirst(ctx)
		}
		var wg sync.WaitGroup
		wg.Go(func() { l.ahead = l.readAhead(ctx, c.At) })
		err = l.load(ctx, c)
		wg.Wait()
		if err == nil {
			return nil
		}
		if !errors.Is(err, blob.ErrNotExist) && !errors.Is(err, ErrDamaged) {
			return err
		}
		after = name // swept meanwhile, or damaged: an older one leads to the same state
	}
}

// restart reads the log anew, from its newest checkpoint on.
func (l *Log) restart(ctx context.Context) error {
	gone := l.head
	l.restarts++
	err := l.start(ctx)
	l.ahead = nil // what was absent then need not be any more
	if err == nil && l.head == gone {
		err = fmt.Errorf("%w: entry %s is gone, and a checkpoint was made of it", ErrDamaged, gone.At)
	}
	return err
}

// NewestCheckpoint returns the name of the newest checkpoint, as a list tells, "" if there is none:
// for Options.Newest.
func NewestCheckpoint(ctx context.Context, s blob.Store) (string, error) {
	l := &Log{store: s}
	name, _, err := l.listed(ctx, "")
	return name, err
}

// hinted is listed, but for what the caller has listed before.
func (l *Log) hinted(ctx context.Context, after string) (string, Checkpoint, error) {
	hint := l.opts.Newest
	l.opts.Newest = nil
	if hint == nil || after != "" {
		return l.listed(ctx, after)
	}
	if c, ok := ParseCheckpointName(*hint); ok || *hint == "" {
		return *hint, c, nil
	}
	return l.listed(ctx, after)
}

// listed returns the newest checkpoint after a name, as a list tells; it is a hint.
func (l *Log) listed(ctx context.Context, after string) (string, Checkpoint, error) {
	for name, err := range blob.Names(ctx, l.store, prefixCheckpoint, after) {
		if err != nil {
			return "", Checkpoint{}, fmt.Errorf("list checkpoints: %w", err)
		}
		if c, ok := ParseCheckpointName(name); ok {
			return name, c, nil
		}
	}
	return "", Checkpoint{}, nil
}

func (l *Log) startAtFirst(ctx context.Context) error {
	at := Position{}
	var wg sync.WaitGroup
	wg.Go(func() { l.ahead = l.readAhead(ctx, at) })
	raw, err := l.readObject(ctx, EntryName(at), MaxEntry)
	wg.Wait()
	if errors.Is(err, blob.ErrNotExist) {
		return ErrNoLog
	}
	if err != nil {
		return err
	}
	e, err := parse(raw, at, l.keys)
	if errors.Is(err, errVoid) || err == nil && e.Before != (Hash{}) {
		err = fmt.Errorf("%w: its first entry is not the one of this vault's keys", ErrDamaged)
	}
	if err != nil {
		return err
	}
	l.state.Reset()
	return l.fold(e, raw)
}

// readAhead reads at once, while a checkpoint is loaded, what will be asked for next: the entries
// after it, whether the volume was closed, and how the next one begins.
func (l *Log) readAhead(ctx context.Context, from Position) map[string]fetched {
	if l.opts.NoReadAhead {
		return nil
	}
	names := []string{NextName(from.Volume), EntryName(Position{Volume: from.Volume.Next()})}
	for n := uint32(1); n <= EveryEntries; n++ {
		names = append(names, EntryName(Position{Volume: from.Volume, Number: from.Number + n}))
	}
	if r := l.opts.Remembered; r != nil {
		names = append(names, EntryName(r.At))
	}
	var wg sync.WaitGroup
	results := make([]fetched, len(names))
	for i, name := range names {
		wg.Go(func() { results[i].raw, results[i].err = l.readObject(ctx, name, MaxBegin) })
	}
	wg.Wait()
	ahead := make(map[string]fetched)
	for i, name := range names {
		ahead[name] = results[i]
	}
	return ahead
}

// checkRemembered looks whether the entry that somebody remembers is in the history: rule R8.
func (l *Log) checkRemembered(ctx context.Context) error {
	r := l.opts.Remembered
	if r == nil || *r == l.head {
		return nil
	}
	if r.At.Compare(l.head.At) > 0 {
		return fmt.Errorf("%w: %s was seen, the log ends at %s", ErrRolledBack, r.At, l.head.At)
	}
	if r.At.Volume != l.head.At.Volume {
		last, hash, ok, err := l.state.Ended(ctx, r.At.Volume)
		if err != nil {
			return err
		}
		if !ok || r.At.Number > last || r.At.Number == last && r.Hash != hash {
			return fmt.Errorf("%w: entry %s", ErrRolledBack, r.At)
		}
	}
	raw, err := l.fetch(ctx, EntryName(r.At), limitOf(r.At))
	if errors.Is(err, blob.ErrNotExist) && r.At.Volume != l.head.At.Volume {
		return nil // cut
	}
	if err != nil {
		return fmt.Errorf("look for entry %s, which was seen before: %w", r.At, err)
	}
	if HashOf(raw) != r.Hash {
		return fmt.Errorf("%w: another entry stands at %s", ErrRolledBack, r.At)
	}
	return nil
}
