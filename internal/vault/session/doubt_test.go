package session_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// stuck is a store whose puts of entries take effect, and are not answered for an hour of errors.
type stuck struct {
	*mem.Store
	until time.Time
}

func (s *stuck) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := s.Store.Create(ctx, name)
	if strings.HasPrefix(name, "log/") {
		w = &stuckWriter{w, s}
	}
	return w, err
}

type stuckWriter struct {
	blob.Writer
	s *stuck
}

func (w *stuckWriter) Commit(ctx context.Context) error {
	if time.Now().Before(w.s.until) {
		_ = w.Writer.Commit(ctx) // whatever came of it is not told
		return errors.New("no answer")
	}
	return w.Writer.Commit(ctx)
}

// While nobody knows whether a point is there, others store what it holds anew; once it is known
// they count on it.
func TestNobodyCountsOnWhatIsInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stuck{Store: mem.New()}
		r := newRoom(t, s)
		defer r.Journal.Close()
		d := randomDisk(1, 9)
		first, second, third := r.begin(t, "a"), r.begin(t, "b"), d.again()
		if err := put(t.Context(), first, d, whole(d), nil); err != nil {
			t.Fatal(err)
		}
		s.until = time.Now().Add(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		p, err := commit(ctx, first, d)
		if !errors.Is(err, log.ErrInDoubt) {
			t.Fatalf("a commit that got no answer: %v", err)
		}
		twin := d.again()
		if added, err := putAdded(t, second, twin); err != nil || added < int64(len(d.data)) {
			t.Errorf("only %d bytes are stored again: %v", added, err)
		}
		q, err := commit(t.Context(), second, twin)
		if err != nil {
			t.Fatal(err)
		}
		r.require(t, p.ID, d.data)
		r.require(t, q.ID, d.data)
		x := r.begin(t, "c")
		if added, err := putAdded(t, x, third); err != nil || added > 0 {
			t.Errorf("%d bytes are stored again: %v", added, err)
		}
		if _, err := commit(t.Context(), x, third); err != nil {
			t.Fatal(err)
		}
	})
}
