// Package journal is a process's handle on a vault's log and on the state that it folds to.
//
// A [Journal] reads on when it is asked to, lets others look at the state between two entries, and
// appends what they judge to be valid. It is safe for concurrent use.
package journal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// ErrReadOnly reports an attempt to append to a journal that only reads.
var ErrReadOnly = errors.New("the vault is open for reading only")

// Options tunes a Journal. The zero value of each field is its default.
type Options struct {
	Log      log.Options
	State    state.Options
	ReadOnly bool          // never puts anything
	At       *log.Position // show the vault as of this entry; reads only
}

// Journal is an open log with its state.
type Journal struct {
	store  blob.Store
	keys   *state.Keys
	opts   Options
	state  *state.State
	writer *log.Writer
	frozen bool // shown as of an earlier entry: it never reads on

	mu     sync.Mutex // guards what follows
	volume log.Volume // the newest that was read
	read   *reading
}

// reading is a call of Read that several wait for.
type reading struct {
	begun bool
	done  chan struct{}
	err   error
}

// Open reads the log and folds it.
func Open(ctx context.Context, s blob.Store, k *state.Keys, o Options) (*Journal, error) {
	j := &Journal{store: s, keys: k, opts: o, state: state.New(s, k, o.State)}
	l, err := log.Open(ctx, s, k.Log(), j.state, o.Log)
	if err != nil {
		return nil, err
	}
	j.volume = l.Head().At.Volume
	if o.At != nil {
		if err := j.goBack(ctx, l, *o.At); err != nil {
			return nil, err
		}
	}
	j.writer = log.NewWriter(l)
	return j, nil
}

// goBack makes the state that of an earlier entry.
func (j *Journal) goBack(ctx context.Context, l *log.Log, at log.Position) error {
	j.frozen = true
	stands, err := l.Stands(ctx, at)
	if err != nil {
		return err
	}
	if !stands {
		return fmt.Errorf("show the vault as of entry %s: it is not in the vault's history", at)
	}
	got, err := log.Refold(ctx, j.store, j.keys.Log(), j.state, at)
	if err != nil {
		return fmt.Errorf("show the vault as of entry %s: %w", at, err)
	}
	if got.At != at {
		return fmt.Errorf("show the vault as of entry %s: it was cut off the log", at)
	}
	return nil
}

// Close ends the use of the journal. Who waits for an Append gets an error.
func (j *Journal) Close() { j.writer.Close() }

// Read reads on. What is not known afterwards was not acknowledged when Read was called. Callers at
// the same time share one reading.
func (j *Journal) Read(ctx context.Context) error {
	if j.frozen {
		return nil
	}
	j.mu.Lock()
	r := j.read
	if r == nil || r.begun {
		r = &reading{done: make(chan struct{})}
		j.read = r
		go j.readOn(context.WithoutCancel(ctx), r)
	}
	j.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (j *Journal) readOn(ctx context.Context, r *reading) {
	defer close(r.done)
	r.err = j.writer.Do(ctx, func(l *log.Log) error {
		j.mu.Lock()
		r.begun = true
		j.mu.Unlock()
		err := l.Read(ctx)
		j.see(l)
		return err
	})
}

func (j *Journal) see(l *log.Log) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.volume = l.Head().At.Volume
}

// View calls f with the state as it was last read. f must not keep it, nor call the journal.
func (j *Journal) View(ctx context.Context, f func(*state.State) error) error {
	return j.writer.Do(ctx, func(l *log.Log) error {
		return f(j.state)
	})
}

// Log calls f with the log while nothing is appended.
func (j *Journal) Log(ctx context.Context, f func(*log.Log, *state.State) error) error {
	return j.writer.Do(ctx, func(l *log.Log) error { return f(l, j.state) })
}

// Append appends what judge says, given the state as it is where the entry would stand, and returns
// once that is acknowledged. Judge may be called again, when another's entry came before or was not
// known yet, and must not call the journal; its error is what Append returns, and no operations
// mean that there is nothing to do: both after all that was acknowledged when Append was called. If
// ctx ends first the error may match [log.ErrInDoubt].
func (j *Journal) Append(ctx context.Context, judge func(context.Context, *state.State) ([]log.Op, error)) (
	log.Position, error,
) {
	if j.opts.ReadOnly || j.frozen {
		return log.Position{}, ErrReadOnly
	}
	for judged := uint64(0); ; {
		var refused bool
		var as uint64
		at, err := j.writer.Append(ctx, func(ctx context.Context) ([]log.Op, error) {
			ops, err := judge(ctx, j.state)
			refused, as = err != nil || len(ops) == 0, j.state.Count()
			return ops, err
		})
		// What refuses it may have been undone, and what there is to do have been done, by entries
		// that were not read yet.
		if !refused || as == judged {
			return at, err
		}
		judged = as
		if readErr := j.Read(ctx); readErr != nil {
			return at, errors.Join(err, readErr)
		}
		if now, viewErr := j.count(ctx); viewErr != nil || now == as {
			return at, errors.Join(err, viewErr)
		}
	}
}

func (j *Journal) count(ctx context.Context) (n uint64, err error) {
	err = j.View(ctx, func(st *state.State) error { n = st.Count(); return nil })
	return n, err
}

// Confirm makes sure that what was read is in the history and stays: whoever acts on an entry, as
// by deleting what it condemns, confirms it first.
func (j *Journal) Confirm(ctx context.Context) error {
	if j.frozen { // it was, when it was opened, and the log is not read on
		return nil
	}
	return j.writer.Do(ctx, func(l *log.Log) error { return l.Confirm(ctx) })
}

// Remember returns the newest entry that was read, which is in the history and stays: what a host
// remembers of a vault.
func (j *Journal) Remember(ctx context.Context) (head log.Remembered, err error) {
	if j.frozen {
		return head, ErrReadOnly
	}
	err = j.writer.Do(ctx, func(l *log.Log) error {
		err := l.Confirm(ctx)
		head = l.Head()
		return err
	})
	return head, err
}

// Frozen reports whether the vault is shown as of an earlier entry.
func (j *Journal) Frozen() bool { return j.frozen }

// Roll closes the present volume of the log, and begins the next.
func (j *Journal) Roll(ctx context.Context) error {
	if j.opts.ReadOnly || j.frozen {
		return ErrReadOnly
	}
	return j.writer.Roll(ctx)
}

// Settle makes what was read durable, which appending does first: for who has something else to do
// meanwhile.
func (j *Journal) Settle(ctx context.Context) error {
	if j.frozen {
		return nil
	}
	return j.writer.Do(ctx, func(l *log.Log) error { return l.Settle(ctx) })
}

// IDs makes the IDs of a session's objects. It is safe for concurrent use.
type IDs struct {
	Session log.Session
	begun   log.Volume
	n       atomic.Uint32
}

// NewIDs returns the IDs of a fresh session, begun in the present volume.
func (j *Journal) NewIDs() *IDs {
	j.mu.Lock()
	ids := &IDs{begun: j.volume}
	j.mu.Unlock()
	rand.Read(ids.Session[:])
	return ids
}

// Next returns an ID that was not returned before.
func (i *IDs) Next() log.ObjectID { return log.NewObjectID(i.begun, i.Session, i.n.Add(1)-1) }
