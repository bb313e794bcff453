package log_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// opened is a log with its state and writer.
type opened struct {
	*log.Writer
	state *state.State
	log   *log.Log
}

func keysOf(t testing.TB) *state.Keys {
	t.Helper()
	k, err := state.NewKeys([32]byte{1}, [16]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func begin(t testing.TB, s blob.Store) {
	t.Helper()
	if err := log.Init(context.Background(), s, keysOf(t).Log()); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, s blob.Store, o log.Options) *opened {
	t.Helper()
	st := state.New(s, keysOf(t), state.Options{})
	l, err := log.Open(context.Background(), s, keysOf(t).Log(), st, o)
	if err != nil {
		t.Fatal(err)
	}
	w := log.NewWriter(l)
	t.Cleanup(w.Close)
	return &opened{Writer: w, state: st, log: l}
}

func pointID(n int) (id state.ID) {
	binary.BigEndian.PutUint64(id[:], uint64(n))
	return id
}

// commit appends a commit of one point, on the point before it if that lives.
func (o *opened) commit(n int) error {
	_, err := o.Append(context.Background(), func(ctx context.Context) ([]log.Op, error) {
		c := state.Commit{Points: []state.Point{{ID: pointID(n), Time: int64(n),
			Manifest: fmt.Appendf(nil, "manifest %d", n)}}}
		return []log.Op{c.Op()}, c.Check(ctx, o.state)
	})
	return err
}

func (o *opened) mustCommit(t testing.TB, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if err := o.commit(n); err != nil {
			t.Fatalf("commit %d: %v", n, err)
		}
	}
}

func (o *opened) wantPoints(t testing.TB, n int) {
	t.Helper()
	got := 0
	err := o.Do(context.Background(), func(l *log.Log) error {
		if err := l.Read(context.Background()); err != nil {
			return err
		}
		return o.state.Points(context.Background(), func(p state.Point) bool {
			if string(p.Manifest) != fmt.Sprintf("manifest %d", p.Time) {
				t.Errorf("point %x has the manifest %q", p.ID, p.Manifest)
			}
			got++
			return true
		})
	})
	if err != nil || got != n {
		t.Fatalf("%d points, want %d: %v", got, n, err)
	}
	if c := o.state.Counters(); c.Points != uint64(n) {
		t.Errorf("the counter says %d points, want %d", c.Points, n)
	}
}

func TestWhatWasAppendedIsThere(t *testing.T) {
	s := mem.New()
	if _, err := log.Open(t.Context(), s, keysOf(t).Log(), state.New(s, keysOf(t), state.Options{}),
		log.Options{}); !errors.Is(err, log.ErrNoLog) {
		t.Errorf("open nothing: %v", err)
	}
	begin(t, s)
	a := open(t, s, log.Options{})
	a.mustCommit(t, 0, 300)
	if err := a.commit(7); !errors.Is(err, state.ErrExists) {
		t.Errorf("commit a point again: %v", err)
	}
	b := open(t, s, log.Options{})
	b.wantPoints(t, 300)
	b.mustCommit(t, 300, 310)
	a.mustCommit(t, 310, 320)
	a.wantPoints(t, 320)
	b.wantPoints(t, 320)
}

func TestRollAndTakeOver(t *testing.T) {
	s := mem.New()
	begin(t, s)
	a, b := open(t, s, log.Options{}), open(t, s, log.Options{})
	n := 0
	for round := range 6 {
		for range 3 + 50*(round%2) {
			a.mustCommit(t, n, n+1)
			b.mustCommit(t, n+1, n+2)
			n += 2
		}
		var err error
		if round%2 == 0 {
			err = a.Roll(t.Context())
		} else {
			err = b.Do(t.Context(), func(l *log.Log) error { return l.Close(t.Context()) })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if v := b.log.Head().At.Volume.Number; v < 5 {
		t.Errorf("volume %d after six were closed", v)
	}
	a.wantPoints(t, n)
	b.wantPoints(t, n)
	verify := func(ctx context.Context, c log.Checkpoint) error {
		_, err := state.Verify(ctx, s, keysOf(t), c)
		return err
	}
	for v := range uint32(5) {
		if err := b.Do(t.Context(), func(l *log.Log) error {
			return l.Cut(t.Context(), log.Volume{Number: v}, verify)
		}); err != nil {
			t.Fatal(err)
		}
	}
	open(t, s, log.Options{}).wantPoints(t, n)
	a.mustCommit(t, n, n+1)
	b.wantPoints(t, n+1)
}

// Many goroutines share entries.
func TestGroupCommit(t *testing.T) {
	s := mem.New()
	begin(t, s)
	a := open(t, s, log.Options{})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if err := a.commit(i); err != nil {
				t.Errorf("commit %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	a.wantPoints(t, 200)
	if n := a.state.Count(); n > 100 {
		t.Errorf("200 points took %d entries", n)
	}
	open(t, s, log.Options{}).wantPoints(t, 200)
}
