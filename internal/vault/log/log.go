// Package log keeps the one order in which everything happens to a vault.
//
// An entry is an object whose name is the next number; it is made by put-if-absent, so of all who
// try a number one wins, and the others read what the winner said before they try the next. A
// [Writer] does that for any number of goroutines, several operations to an entry. Entries are
// chained: each carries the hash of the one before. A volume is a stretch of the log; it is closed
// by an entry ([Writer.Roll]) or by an object beside it ([Log.Close]), and the next one begins
// after the last entry that counts. So a log can be cut, and taken over, by whoever needs to, while
// anybody may be asleep between any two of his steps: he looks for the next volume after each put.
//
// Nothing here knows what operations mean: that is the [State]'s, which a log folds its entries
// into. What the log promises: an entry that was acknowledged is in the history for ever, at its
// place, once; one that was not may be there or not. Safety needs no clock and no list.
//
// docs/formats/log.md is the format, docs/design/log.md the argument.
package log

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// Errors that callers decide by.
var (
	// ErrInDoubt reports that the caller stopped waiting before it was known whether his entry is
	// in the history. It may be, now or later; who must know asks for its effect by reading on.
	ErrInDoubt = errors.New("it is not known whether the log has taken this")
	// ErrNewer reports an entry of a kind that this program does not know. The vault can be read as
	// of the entry before, and not be written.
	ErrNewer = errors.New("the vault was written by a newer version")
	// ErrDamaged reports a part of the log that is not as it was written.
	ErrDamaged = errors.New("the log is damaged")
	// ErrRolledBack reports a log that does not have an entry which was remembered.
	ErrRolledBack = errors.New("the vault has not heard of, or was rolled back from, an entry that was seen before")
	// ErrNoLog reports a store in which no log was begun.
	ErrNoLog = errors.New("no log was begun here")
	// ErrClosed reports a Writer that has been closed.
	ErrClosed = errors.New("the writer of the log was closed")
)

// Limits of the format.
const (
	MaxEntry     = 64 << 10 // bytes of an entry
	MaxBegin     = 5 << 20  // bytes of the first entry of a volume
	MaxEntries   = 1 << 24  // of a volume
	EveryEntries = 64       // entries from one checkpoint to the next
)

// State is what the entries of a log fold to, as far as the log must ask. It is used by one
// goroutine at a time.
type State interface {
	// Reset makes it the state before any entry.
	Reset()
	// Load makes it the state that a checkpoint holds. It returns an error that matches
	// blob.ErrNotExist if a part is gone, and ErrDamaged if one is not as it was written.
	Load(ctx context.Context, c Checkpoint) (Loaded, error)
	// Apply folds in the entry after the last one. It returns ErrNewer for a kind that it does not
	// know and changes nothing then.
	Apply(e *Entry) error
	// Try folds in an operation for the time being: what is asked of the state sees it, until Drop.
	Try(op Op) error
	// Drop takes back what was tried.
	Drop()
	// Checkpoint stores the state and returns where.
	Checkpoint(ctx context.Context) (Checkpoint, error)
	// Placed reports whether the entry of a nonce, which was put in the volume tried, is in the
	// history. It returns ErrInDoubt if that is longer ago than what is remembered.
	Placed(ctx context.Context, n Nonce, tried Volume) (bool, error)
	// Ended returns the last entry that counts of a volume that is closed.
	Ended(ctx context.Context, v Volume) (last uint32, hash Hash, ok bool, err error)
	// Forget returns the volume from which on nonces and condemned names must be remembered, for
	// one who begins v. It is never less than it was.
	Forget(v Volume) Volume
}

// Checkpoint names a stored state.
type Checkpoint struct {
	At   Position // the last entry that is folded in
	Salt Salt     // part of the object's name
	Hash Hash     // of its plain bytes
}

// Loaded is what a checkpoint says of itself.
type Loaded struct {
	Hash  Hash // of the checkpoint's plain bytes
	Head  Hash // of the entry at which it was made
	Ended bool // that entry ends its volume
}

// Options tunes a log. The zero value of each field is its default.
type Options struct {
	Remembered *Remembered      // an entry that the log must have, or have had
	Newest     *string          // name of the newest checkpoint, "" for none, where the caller has listed it; a hint
	Now        func() time.Time // what entries are dated by, for people to read; nil means time.Now
	Rand       func([]byte)     // fills nonces and salts; nil means crypto/rand
	Who        string           // writes, told in entries for people; cut to 64 bytes
	Term       uint64           // of the owner whom this log writes for; told in entries
	Owner      bool             // it writes all the time, and leaves numbers to those who want one
	// NoReadAhead reads entries one after the other when opening, for stores where that costs
	// nothing.
	NoReadAhead bool
	Without     Rules // rules that are left out: tests of tests only
}

// Remembered is an entry that somebody saw acknowledged.
type Remembered struct {
	At   Position
	Hash Hash
}

// Log reads a log and folds its entries. It is not safe for concurrent use; a [Writer] that was
// made of it takes it over.
type Log struct {
	store blob.Store
	keys  *Keys
	state State
	opts  Options

	head    Remembered // the last entry that counts
	voids   []Hash     // objects after it that are no entries
	sure    int        // of those, how many were settled
	ended   bool       // the head is an end
	closed  bool       // next/VOLUME was seen
	suspect error      // what looks like damage, in a volume that is closed
	newest  Checkpoint // the newest that is known
	folded  bool       // there is one
	read    bool       // it was read, and not settled since
	since   int        // entries after it
	recent  [][]byte   // those, as stored, if it is of this volume
	foreign bool       // the head was read, and not settled since

	restarts int
	ahead    map[string]fetched
}

// Restarts returns how often the log was read anew because an entry that was read had vanished. Who
// keeps what he made of entries by their count cannot trust it after that.
func (l *Log) Restarts() int { return l.restarts }

// Head returns the last entry that was read.
func (l *Log) Head() Remembered { return l.head }

// errVanished reports that the head is not in the store any more as it was read: somebody was still
// committing it, and power failed.
var errVanished = errors.New("an entry that was read has vanished")

// Settle makes what was read durable, so that somebody may act on it or build on it: rule R9.
// Whoever put the head had settled what is before it, so that is enough. If the head has vanished
// meanwhile the log is read anew.
func (l *Log) Settle(ctx context.Context) error {
	if l.opts.Without.Has(SettleRead) {
		return nil
	}
	for l.foreign || l.sure < len(l.voids) {
		err := l.settleHead(ctx)
		if err == nil {
			err = l.settleVoids(ctx)
		}
		if errors.Is(err, errVanished) {
			if err = l.restart(ctx); err == nil {
				err = l.readVolume(ctx)
			}
		} else if err == nil {
			l.foreign = false
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// settleHead settles the head and looks whether it is still what was read. One that was cut is
// settled: how the next volume begins decides about it.
func (l *Log) settleHead(ctx context.Context) error {
	name := EntryName(l.head.At)
	if err := l.store.Settle(ctx, name); err != nil && !errors.Is(err, blob.ErrNotExist) {
		return fmt.Errorf("settle %s: %w", name, err)
	}
	return l.headStands(ctx)
}

// settleVoids does the same for the objects after the head that are no entries: the next entry says
// that they are there.
func (l *Log) settleVoids(ctx context.Context) error {
	for ; l.sure < len(l.voids); l.sure++ {
		at := l.head.At
		at.Number += 1 + uint32(l.sure)
		name := EntryName(at)
		if err := l.store.Settle(ctx, name); err != nil && !errors.Is(err, blob.ErrNotExist) {
			return fmt.Errorf("settle %s: %w", name, err)
		}
		raw, err := l.readPresent(ctx, name, limitOf(at))
		if err != nil && !errors.Is(err, blob.ErrNotExist) {
			return err
		}
		if err != nil || HashOf(raw) != l.voids[l.sure] {
			return errVanished
		}
	}
	return nil
}

// headStands returns errVanished if the head is not in the store any more as it was read.
func (l *Log) headStands(ctx context.Context) error {
	raw, err := l.readPresent(ctx, EntryName(l.head.At), limitOf(l.head.At))
	if err != nil && !errors.Is(err, blob.ErrNotExist) || err == nil && HashOf(raw) == l.head.Hash {
		return err
	}
	closed, err := l.lookNext(ctx, l.head.At.Volume)
	if err == nil && !closed {
		err = errVanished
	}
	l.closed = l.closed || closed
	return err
}

// readPresent reads an object, and again while a cache says that it is absent and it is not.
func (l *Log) readPresent(ctx context.Context, name string, limit int) ([]byte, error) {
	for wait := waitFirst; ; wait = min(2*wait, waitMost) {
		raw, err := l.readObject(ctx, name, limit)
		if !errors.Is(err, blob.ErrNotExist) {
			return raw, err
		}
		absent, askErr := l.store.Absent(ctx, name)
		switch {
		case askErr != nil:
			return nil, askErr
		case absent:
			return nil, err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		pause(ctx, wait)
	}
}

// errNotNow reports an answer from a cache, which another call may correct.
var errNotNow = errors.New("the store contradicts itself; it may not in a while")
