package log_test

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// far is a store a round trip away: each call takes one, in virtual time. Settling costs nothing,
// as in an object store.
type far struct {
	*mem.Store
	puts atomic.Int64
}

const trip = 50 * time.Millisecond

func (f *far) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := f.Store.Create(ctx, name)
	return &farWriter{Writer: w, far: f}, err
}

type farWriter struct {
	blob.Writer
	far *far
}

func (w *farWriter) Commit(ctx context.Context) error {
	time.Sleep(trip)
	w.far.puts.Add(1)
	return w.Writer.Commit(ctx)
}

func (f *far) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	time.Sleep(trip)
	return f.Store.ReadAt(ctx, name, p, off)
}

func (f *far) Stat(ctx context.Context, name string) (blob.Info, error) {
	time.Sleep(trip)
	return f.Store.Stat(ctx, name)
}

func (f *far) Absent(ctx context.Context, name string) (bool, error) {
	time.Sleep(trip)
	return f.Store.Absent(ctx, name)
}

func (f *far) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	time.Sleep(trip)
	return f.Store.List(ctx, prefix, after)
}

// trips returns how many round trips, one after the other, something takes.
func trips(do func()) int {
	began := time.Now()
	do()
	return int(time.Since(began) / trip)
}

// What is done costs as many round trips with five thousand points as with one, and as many
// objects.
func TestRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near := mem.New()
		begin(t, near)
		n := 0
		for _, points := range []int{1, 70, 150, 5000} {
			fill := open(t, near, log.Options{})
			fill.mustCommit(t, n, points)
			n = points
			s := &far{Store: near}
			var o *opened
			opening := trips(func() { o = open(t, s, log.Options{}) })
			s.puts.Store(0)
			const pack = 1
			first := trips(func() { o.mustCommit(t, n, n+1) })
			if opening > 5 || opening+pack+first > 8 || s.puts.Load() != 1 {
				t.Errorf("at %d points opening takes %d round trips, the first commit %d and %d objects", points,
					opening, first,
					s.puts.Load())
			}
			t.Logf("at %d points: %d to open, %d to commit first", points, opening, first)
			if got := trips(func() { o.mustCommit(t, n+1, n+2) }); got > 2 {
				t.Errorf("at %d points a commit takes %d round trips", points, got)
			}
			n += 2
			// Two that follow each other take three: the look overlaps the next put.
			if got := trips(func() {
				done := make(chan struct{})
				go func() { o.mustCommit(t, n, n+1); close(done) }()
				time.Sleep(trip / 2)
				o.mustCommit(t, n+1, n+2)
				<-done
			}); got > 3 {
				t.Errorf("at %d points two commits take %d round trips", points, got)
			}
			n += 2
		}
	})
}

// slowCommit is a store whose put of an entry is answered by an error until it is told to stop.
type slowCommit struct {
	*mem.Store
	bad  atomic.Bool
	lost atomic.Bool // the put takes effect all the same
}

func (s *slowCommit) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := s.Store.Create(ctx, name)
	return &slowWriter{Writer: w, store: s}, err
}

type slowWriter struct {
	blob.Writer
	store *slowCommit
}

var errNet = errors.New("connection reset")

func (w *slowWriter) Commit(ctx context.Context) error {
	if !w.store.bad.Load() {
		return w.Writer.Commit(ctx)
	}
	if w.store.lost.Load() {
		_ = w.Writer.Commit(ctx)
	}
	return errNet
}

// Whoever stops waiting is told that nobody knows; the entry is placed once all the same.
func TestCancellingDoesNotEndThePut(t *testing.T) {
	for _, lost := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &slowCommit{Store: mem.New()}
			begin(t, s)
			o := open(t, s, log.Options{})
			s.bad.Store(true)
			s.lost.Store(lost)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c := state.Commit{Points: []state.Point{{ID: pointID(1), Time: 1, Manifest: []byte("manifest 1")}}}
			_, err := o.Append(ctx, func(context.Context) ([]log.Op, error) { return []log.Op{c.Op()}, nil })
			if !errors.Is(err, log.ErrInDoubt) {
				t.Fatalf("append: %v, want ErrInDoubt", err)
			}
			s.bad.Store(false)
			time.Sleep(time.Minute)
			open(t, s, log.Options{}).wantPoints(t, 1)
			o.mustCommit(t, 2, 3)
			o.wantPoints(t, 2)
		})
	}
}

// A full store says so at once, and nothing is left in doubt.
func TestFullStore(t *testing.T) {
	s := &full{Store: mem.New()}
	begin(t, s)
	o := open(t, s, log.Options{})
	s.on = true
	if err := o.commit(1); !errors.Is(err, blob.ErrNoSpace) || errors.Is(err, log.ErrInDoubt) {
		t.Errorf("commit on a full store: %v", err)
	}
	s.on = false
	o.mustCommit(t, 1, 3)
	o.wantPoints(t, 2)
}

type full struct {
	*mem.Store
	on bool
}

func (f *full) Create(ctx context.Context, name string) (blob.Writer, error) {
	if f.on {
		return nil, blob.ErrNoSpace
	}
	return f.Store.Create(ctx, name)
}

// An owner that never rests leaves room for one that has lost five times.
func TestFairness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &far{Store: mem.New()}
		begin(t, s.Store)
		busy, rare := open(t, s, log.Options{Owner: true}), open(t, s, log.Options{})
		stop := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for n := 1000; ; n++ {
				select {
				case <-stop:
					return
				default:
					busy.mustCommit(t, n, n+1)
				}
			}
		}()
		for n := range 5 {
			began := time.Now()
			rare.mustCommit(t, n, n+1)
			if d := time.Since(began); d > 10*time.Second {
				t.Errorf("commit %d beside a busy owner took %v", n, d)
			}
		}
		close(stop)
		<-done
	})
}
