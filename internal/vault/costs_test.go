package vault_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// far is a store a round trip away: each call takes one, in virtual time. Settling costs nothing,
// as in an object store.
type far struct {
	*mem.Store
	mu    sync.Mutex
	puts  map[string]int // by the first part of the name
	calls []string
}

const trip = 50 * time.Millisecond

func farFrom(s *mem.Store) *far { return &far{Store: s, puts: map[string]int{}} }

func (f *far) went(what, name string) {
	time.Sleep(trip)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, what+" "+name)
}

func (f *far) take() (puts int, calls string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for kind, n := range f.puts {
		if kind != "checkpoint" && kind != "state" { // counted apart: one each 64 entries
			puts += n
		}
	}
	calls = strings.Join(f.calls, "\n")
	f.puts, f.calls = map[string]int{}, nil
	return puts, calls
}

func (f *far) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := f.Store.Create(ctx, name)
	return &farWriter{Writer: w, far: f, name: name}, err
}

type farWriter struct {
	blob.Writer
	far  *far
	name string
}

func (w *farWriter) Commit(ctx context.Context) error {
	w.far.went("put", w.name)
	w.far.mu.Lock()
	kind, _, _ := strings.Cut(w.name, "/")
	w.far.puts[kind]++
	w.far.mu.Unlock()
	return w.Writer.Commit(ctx)
}

func (f *far) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	f.went("read", name)
	return f.Store.ReadAt(ctx, name, p, off)
}

func (f *far) Stat(ctx context.Context, name string) (blob.Info, error) {
	f.went("stat", name)
	return f.Store.Stat(ctx, name)
}

func (f *far) Absent(ctx context.Context, name string) (bool, error) {
	f.went("absent", name)
	return f.Store.Absent(ctx, name)
}

func (f *far) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	f.went("list", prefix)
	return f.Store.List(ctx, prefix, after)
}

// mostFirst is how many round trips opening a vault and storing the first small point take
// together. They are 14 or 15 in a vault of thousands: a filter of the index that answers wrongly
// costs one more.
const mostFirst = 16

// trips returns how many round trips, one after the other, something takes.
func trips(do func()) int {
	began := time.Now()
	do()
	return int(time.Since(began) / trip)
}

// What is done with one point costs as many round trips in a vault of thousands as in one of one,
// and as many objects: opening at most 5, and a small point at most 3 from a process that has the
// vault open, of 2 objects; a point without changes one. The first point of a process takes more:
// it reads what the state and the index say of the point before, and a node of that.
func TestRoundTrips(t *testing.T) {
	if underRace {
		t.Skip("it counts, or compares, and is run without the race detector")
	}
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		near := mem.New()
		key := newVault(t, near)
		d := &disk{data: make([]byte, 64*testChunk)}
		n := uint32(0)
		change := func(v *vault.Vault) func() {
			n++
			binary.LittleEndian.PutUint32(d.data[testChunk:], n)
			data := extent.Of(extent.Extent{Off: testChunk, Len: testChunk})
			return func() {
				s := begin(t, v)
				if err := put(ctx, s, d, data, nil); err != nil {
					t.Fatal(err)
				}
				if err := s.Commit(ctx, newPoint("vm", d)); err != nil {
					t.Fatal(err)
				}
			}
		}
		fill := openVault(t, near, key)
		total := 0
		for _, points := range []int{1, 100, 1500} {
			for ; total < points; total++ {
				change(fill)()
			}
			if err := fill.Close(); err != nil {
				t.Fatal(err)
			}
			fill = openVault(t, near, key)
			s := farFrom(near)
			var v *vault.Vault
			opening := trips(func() { v = openVault(t, s, key) })
			_, openCalls := s.take()
			first := trips(change(v))
			puts, calls := s.take()
			if opening > 5 || opening+first > mostFirst || puts > 2 {
				t.Errorf("at %d points opening takes %d round trips, the first point %d and %d objects:\n%s\n--\n%s",
					points,
					opening, first, puts, openCalls, calls)
			}
			again := trips(change(v))
			if puts, calls := s.take(); again > 3 || puts > 2 {
				t.Errorf("at %d points the next point takes %d round trips and %d objects:\n%s", points, again, puts,
					calls)
			}
			same := trips(func() {
				s := begin(t, v)
				if err := s.Keep(ctx, d.of); err != nil {
					t.Fatal(err)
				}
				if err := s.Commit(ctx, newPoint("vm", d)); err != nil {
					t.Fatal(err)
				}
			})
			if puts, calls := s.take(); same > 3 || puts > 1 { // one to see that the other is not purged
				t.Errorf("at %d points one without changes takes %d round trips and %d objects:\n%s", points, same,
					puts, calls)
			}
			t.Logf("at %d points: %d to open, %d for the first point, %d for the next, %d for one without changes",
				points,
				opening, first, again, same)
			total += 4
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Purging and collecting some of many points asks the store for what is freed, however many others
// there are.
func TestCollectingCostsWhatIsFreed(t *testing.T) {
	if underRace {
		t.Skip("it counts, or compares, and is run without the race detector")
	}
	calls := func(points int) int {
		inner := mem.New()
		key := newVault(t, inner)
		store := &counted{Store: inner}
		v := openVault(t, store, key)
		for i := range points {
			backUpWhole(t, v, randomDisk(uint64(1000+i), 1))
		}
		a := randomDisk(1, 30)
		p := backUpWhole(t, v, a)
		collect(t, v)
		before := store.calls()
		deletePoint(t, v, p.ID)
		collect(t, v)
		return store.calls() - before
	}
	few, many := calls(10), calls(400)
	if many > few+few/2+20 {
		t.Errorf("purging and collecting one point takes %d calls beside 10 others, and %d beside 400", few, many)
	}
	t.Log(fmt.Sprint(few, " calls beside 10 points, ", many, " beside 400"))
}
