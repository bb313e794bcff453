package log_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

func tryOpen(t *testing.T, s blob.Store, o log.Options) (*state.State, *log.Log, error) {
	t.Helper()
	st := state.New(s, keysOf(t), state.Options{})
	l, err := log.Open(t.Context(), s, keysOf(t).Log(), st, o)
	return st, l, err
}

func next(l *log.Log, n uint32) string {
	at := l.Head().At
	at.Number += n
	return log.EntryName(at)
}

// Garbage at the next number stands in nobody's way, and is covered by the next entry.
func TestGarbageIsVoid(t *testing.T) {
	s := mem.New()
	begin(t, s)
	a, b := open(t, s, log.Options{}), open(t, s, log.Options{})
	a.mustCommit(t, 0, 3)
	for i, garbage := range [][]byte{{}, []byte("x"), make([]byte, 100<<10)} {
		for k := range i + 1 {
			if err := blob.Put(t.Context(), s, next(a.log, uint32(k+1)), garbage); err != nil {
				t.Fatal(err)
			}
		}
		a.mustCommit(t, 10*i+10, 10*i+12)
		b.mustCommit(t, 10*i+15, 10*i+16)
		a.wantPoints(t, 3+3*(i+1))
		b.wantPoints(t, 3+3*(i+1))
		open(t, s, log.Options{}).wantPoints(t, 3+3*(i+1))
	}
}

// An entry that a later one covers and that does not read as it was written is damage, and said so.
func TestDamageIsSaid(t *testing.T) {
	for bit := range 40 {
		s := mem.New()
		begin(t, s)
		a := open(t, s, log.Options{})
		a.mustCommit(t, 0, 5)
		name := log.EntryName(log.Position{Number: 3})
		if err := s.Corrupt(name, func(b []byte) []byte {
			b[bit*len(b)/40] ^= 1
			return b
		}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := tryOpen(t, s, log.Options{}); !errors.Is(err, log.ErrDamaged) {
			t.Errorf("with byte %d of 40 of entry 3 changed: %v, want ErrDamaged", bit, err)
		}
	}
}

func TestOtherKeysDoNotOpen(t *testing.T) {
	s := mem.New()
	begin(t, s)
	k, err := state.NewKeys([32]byte{9}, [16]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.Open(t.Context(), s, k.Log(), state.New(s, k, state.Options{}), log.Options{}); !errors.Is(err,
		log.ErrDamaged) {
		t.Errorf("open with another data key: %v", err)
	}
}

// A damaged checkpoint costs time and nothing else; so does a missing one.
func TestCheckpointsAreACache(t *testing.T) {
	s := mem.New()
	begin(t, s)
	open(t, s, log.Options{}).mustCommit(t, 0, 300)
	n := 0
	for info, err := range s.List(t.Context(), "checkpoint/", "") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n%2 == 0 {
			err = s.Delete(t.Context(), info.Name)
		} else {
			err = s.Corrupt(info.Name, func(b []byte) []byte { b[40] ^= 1; return b })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n < 3 {
		t.Fatalf("%d checkpoints of 300 entries", n)
	}
	open(t, s, log.Options{}).wantPoints(t, 300)
}

func copyOf(t *testing.T, s *mem.Store) *mem.Store {
	t.Helper()
	c := mem.New()
	for info, err := range s.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		raw, err := blob.Get(t.Context(), s, info.Name)
		if err == nil {
			err = blob.Put(t.Context(), c, info.Name, raw)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// Whoever remembers an entry notices a store that is older, or another.
func TestRolledBack(t *testing.T) {
	s := mem.New()
	begin(t, s)
	a := open(t, s, log.Options{})
	a.mustCommit(t, 0, 10)
	older := copyOf(t, s)
	a.mustCommit(t, 10, 20)
	saw := a.log.Head()
	if err := a.Roll(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.mustCommit(t, 20, 25)
	sawLater := a.log.Head()
	for _, r := range []log.Remembered{saw, sawLater} {
		if _, _, err := tryOpen(t, s, log.Options{Remembered: &r}); err != nil {
			t.Errorf("open what was seen at %s: %v", r.At, err)
		}
		if _, _, err := tryOpen(t, older, log.Options{Remembered: &r}); !errors.Is(err, log.ErrRolledBack) {
			t.Errorf("open the older store, having seen %s: %v", r.At, err)
		}
	}
	open(t, older, log.Options{}).mustCommit(t, 100, 120) // goes on from there, and is longer now
	if _, _, err := tryOpen(t, older, log.Options{Remembered: &saw}); !errors.Is(err, log.ErrRolledBack) {
		t.Errorf("open the other history: %v", err)
	}
	cutVolume(t, a, s, log.Volume{})
	if _, _, err := tryOpen(t, s, log.Options{Remembered: &saw}); err != nil {
		t.Errorf("open what was seen at %s, which is cut: %v", saw.At, err)
	}
}

func cutVolume(t *testing.T, o *opened, s blob.Store, v log.Volume) {
	t.Helper()
	err := o.Do(t.Context(), func(l *log.Log) error {
		return l.Cut(t.Context(), v, func(ctx context.Context, c log.Checkpoint) error {
			_, err := state.Verify(ctx, s, keysOf(t), c)
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// newer is a state that knows a kind of operation more.
type newer struct{ *state.State }

const newKind = 999

func (n newer) Apply(e *log.Entry) error {
	known := *e
	known.Ops = nil
	for _, op := range e.Ops {
		if op.Kind != newKind {
			known.Ops = append(known.Ops, op)
		}
	}
	return n.State.Apply(&known)
}

func (n newer) Try(op log.Op) error {
	if op.Kind == newKind {
		return nil
	}
	return n.State.Try(op)
}

// What a newer program wrote stops this one from writing, and it says why.
func TestNewerKindsStopTheWriter(t *testing.T) {
	s := mem.New()
	begin(t, s)
	a := open(t, s, log.Options{})
	a.mustCommit(t, 0, 3)
	st := newer{state.New(s, keysOf(t), state.Options{})}
	l, err := log.Open(t.Context(), s, keysOf(t).Log(), st, log.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := log.NewWriter(l)
	defer w.Close()
	if _, err := w.Append(t.Context(), func(context.Context) ([]log.Op, error) {
		return []log.Op{{Kind: newKind, Body: []byte("news")}}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := a.commit(7); !errors.Is(err, log.ErrNewer) {
		t.Errorf("commit after an entry of a newer program: %v, want ErrNewer", err)
	}
	if _, _, err := tryOpen(t, s, log.Options{}); !errors.Is(err, log.ErrNewer) {
		t.Errorf("open: %v, want ErrNewer", err)
	}
}

// Whatever is closed by whom and cut meanwhile, one who slept finds the way and commits once.
func TestSleeperFindsTheWay(t *testing.T) {
	s := mem.New()
	begin(t, s)
	sleeper, a := open(t, s, log.Options{}), open(t, s, log.Options{})
	n := 1
	for v := range uint32(5) {
		a.mustCommit(t, n, n+3)
		n += 3
		var err error
		if v%2 == 0 {
			err = a.Do(t.Context(), func(l *log.Log) error { return l.Close(t.Context()) })
		} else {
			err = a.Roll(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		cutVolume(t, a, s, log.Volume{Number: v})
	}
	sleeper.mustCommit(t, 0, 1)
	for _, o := range []*opened{sleeper, a, open(t, s, log.Options{})} {
		o.wantPoints(t, n)
	}
}

func TestPositionsReadWell(t *testing.T) {
	at := log.Position{Volume: log.Volume{Number: 3}, Number: 17}
	if got := at.String(); got != "3.17" {
		t.Errorf("%q", got)
	}
	at.Volume.Tenure = log.Tenure{Number: 1, Region: 2}
	if got := fmt.Sprint(at); got != "00000001-0002/3.17" {
		t.Errorf("%q", got)
	}
}
