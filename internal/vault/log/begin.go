package log

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// beginning is the body of the first entry of a volume. The first entry of a tenure has none: it
// follows from the tenure alone.
type beginning struct {
	after   Position   // the last entry that counts before this one
	hash    Hash       // of it
	from    Checkpoint // at most 64 entries before it, in its volume
	forget  Volume     // nonces and condemned names of volumes before this one are remembered no more
	entries [][]byte   // those after the checkpoint, as stored
}

const beginSize = PositionSize + 32 + PositionSize + 16 + 32 + volumeSize + 4

func (b *beginning) append(out []byte) []byte {
	out = append(b.after.Append(out), b.hash[:]...)
	out = append(append(b.from.At.Append(out), b.from.Salt[:]...), b.from.Hash[:]...)
	out = binary.LittleEndian.AppendUint32(b.forget.Append(out), uint32(len(b.entries)))
	for _, e := range b.entries {
		out = append(binary.LittleEndian.AppendUint32(out, uint32(len(e))), e...)
	}
	return out
}

func readBeginning(body []byte) (*beginning, error) {
	r := reader{b: body}
	b := &beginning{}
	h := r.take(beginSize)
	b.after, b.hash = ReadPosition(h), Hash(h[PositionSize:])
	h = h[PositionSize+32:]
	b.from = Checkpoint{At: ReadPosition(h), Salt: Salt(h[PositionSize:]), Hash: Hash(h[PositionSize+16:])}
	h = h[PositionSize+48:]
	b.forget = ReadVolume(h)
	for range min(binary.LittleEndian.Uint32(h[volumeSize:]), EveryEntries) {
		size := binary.LittleEndian.Uint32(r.take(4))
		b.entries = append(b.entries, r.take(int(min(size, MaxEntry+1))))
	}
	if r.err != nil || len(r.b) > 0 {
		return nil, fmt.Errorf("%w: the beginning of a volume reads wrong: %v", ErrDamaged, r.err)
	}
	return b, nil
}

// ForgetOf returns the volume that the first entry of a volume says is the oldest to remember.
func ForgetOf(e *Entry) (after Position, hash Hash, forget Volume, err error) {
	if len(e.Ops) != 1 || len(e.Ops[0].Body) == 0 {
		return after, hash, e.At.Volume, nil
	}
	b, err := readBeginning(e.Ops[0].Body)
	if err != nil {
		return after, hash, forget, err
	}
	return b.after, b.hash, b.forget, nil
}

// first returns the first entry of a tenure. Everybody who has the keys makes the same.
func first(t Tenure, k *Keys) ([]byte, error) {
	e := &Entry{At: Position{Volume: Volume{Tenure: t}}, Time: time.UnixMilli(0), Ops: []Op{{Kind: Begin}}}
	return e.seal(k)
}

// Init begins the log of a vault in a store that has none. It may be done again, and by several.
func Init(ctx context.Context, s blob.Store, k *Keys) error {
	raw, err := first(Tenure{}, k)
	if err != nil {
		return err
	}
	err = blob.Put(ctx, s, EntryName(Position{}), raw)
	if errors.Is(err, blob.ErrExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("begin the log: %w", err)
	}
	return nil
}

// begin puts the first entry of the volume after the present one, which is closed and was read to
// its end, and returns what stands there: it may be another's.
func (l *Log) begin(ctx context.Context) ([]byte, error) {
	was := l.head
	if err := l.Settle(ctx); err != nil {
		return nil, err
	}
	if l.head != was { // the log was read anew
		return nil, errVanished
	}
	if !l.ended { // who put it may still be about to
		if err := l.putNext(ctx, l.head.At.Volume); err != nil {
			return nil, err
		}
	}
	from, err := l.checkpointNear(ctx)
	if err != nil {
		return nil, err
	}
	v := l.head.At.Volume.Next()
	b := beginning{after: l.head.At, hash: l.head.Hash, from: from, forget: l.state.Forget(v), entries: l.recent}
	e := &Entry{At: Position{Volume: v}, Before: l.head.Hash, Term: l.opts.Term, Time: l.opts.Now(),
		Ops: []Op{{Kind: Begin, Body: b.append(nil), Clear: true}}}
	raw, err := e.seal(l.keys)
	if err != nil {
		return nil, err
	}
	found, _, err := l.place(ctx, EntryName(e.At), raw)
	return found, err
}

// checkpointNear returns a checkpoint in the present volume after which there are at most 64
// entries, which l.recent holds. It stores one if there is none.
func (l *Log) checkpointNear(ctx context.Context) (Checkpoint, error) {
	if !l.folded || l.newest.At.Volume != l.head.At.Volume || l.since > EveryEntries {
		return l.Checkpoint(ctx)
	}
	if l.read {
		err := l.store.Settle(ctx, CheckpointName(l.newest))
		if errors.Is(err, blob.ErrNotExist) {
			return l.Checkpoint(ctx)
		}
		if err != nil {
			return l.newest, fmt.Errorf("settle a checkpoint: %w", err)
		}
		l.read = false
	}
	return l.newest, nil
}

// Checkpoint stores the state as of the last entry that was read. Whoever wants to may do so at any
// time; it is due when Due says so.
func (l *Log) Checkpoint(ctx context.Context) (Checkpoint, error) {
	if err := l.Settle(ctx); err != nil {
		return Checkpoint{}, err
	}
	c, err := l.state.Checkpoint(ctx)
	if err != nil {
		return c, fmt.Errorf("store a checkpoint at %s: %w", l.head.At, err)
	}
	l.noteCheckpoint(c)
	return c, nil
}

func (l *Log) noteCheckpoint(c Checkpoint) {
	l.newest, l.folded, l.read, l.since, l.recent = c, true, false, 0, nil
}

// Due reports whether a checkpoint is due. Of several writers the one whose entry has a round
// number makes it; if he does not, whoever has waited long enough.
func (l *Log) Due() bool {
	return l.since >= EveryEntries && l.head.At.Number%EveryEntries == 0 || l.since >= 2*EveryEntries
}

// BeginTenure begins a tenure after was, and after all that others began, with a state before any
// entry: for a vault whose log does not open any more. Who remembers an entry of the old one
// notices.
func BeginTenure(ctx context.Context, s blob.Store, k *Keys, state State, was Tenure, o Options) (*Log, error) {
	l := newLog(s, k, state, o)
	for t := was; ; {
		t.Number++
		at := Position{Volume: Volume{Tenure: t}}
		raw, err := first(t, k)
		if err != nil {
			return nil, err
		}
		err = blob.Put(ctx, s, EntryName(at), raw)
		if errors.Is(err, blob.ErrExist) {
			continue // one that was cut off; what it says is not believed
		}
		if err != nil {
			return nil, fmt.Errorf("begin the log: %w", err)
		}
		e, err := parse(raw, at, k)
		if err != nil {
			return nil, err
		}
		state.Reset()
		return l, l.fold(e, raw)
	}
}
