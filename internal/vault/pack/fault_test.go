package pack

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/blob/fault"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/durable"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

var errDisk = errors.New("the disk is gone")

// writeSome writes a pack of some MiB, more than lies in memory, or of a few KiB.
func writeSome(store blob.Store, large bool) (log.Object, []Entry, error) {
	ctx := context.Background()
	rows, size := 3, 2000
	if large {
		rows, size = 9, chunk.MaxSize/2+100
	}
	w := testSecret.Begin(store, testVault, testID(1))
	defer w.Abort()
	for i := range rows {
		p := noise(uint64(i), size)
		if _, err := w.Append(ctx, Data, chunk.ID{byte(i), 1}, len(p), p, chunk.Plain); err != nil {
			return log.Object{}, nil, err
		}
	}
	return w.Commit(ctx)
}

// requireWhole checks that a pack of writeSome is there and whole.
func requireWhole(t *testing.T, store blob.Store, o log.Object, want int) {
	t.Helper()
	entries, err := testSecret.Table(t.Context(), store, testVault, o)
	if err == nil {
		err = Check(t.Context(), store, o)
	}
	if err != nil || len(entries) != want {
		t.Fatalf("the pack has %d rows of %d: %v", len(entries), want, err)
	}
}

// Whichever call of the store fails, behind the owner's back too, the error is told of, at the
// latest by Commit, there is no half pack, and no writer is left open.
func TestFaultAtEveryCall(t *testing.T) {
	for _, large := range []bool{false, true} {
		for n := 0; ; n++ {
			inner := mem.New()
			store := fault.New(inner)
			store.FailCall(n, errDisk)
			o, entries, err := writeSome(store, large)
			if err == nil {
				if store.Calls() != n {
					t.Fatalf("call %d failed, and nobody said so", n)
				}
				requireWhole(t, inner, o, len(entries))
				break
			}
			if !errors.Is(err, errDisk) {
				t.Fatalf("call %d failed, and the error is %v", n, err)
			}
			o = log.Object{ID: testID(1), Kind: log.Pack}
			if _, err := inner.Stat(t.Context(), o.Name()); !errors.Is(err, blob.ErrNotExist) {
				t.Fatalf("call %d failed, and the pack is there: %v", n, err)
			}
		}
	}
}

// What is small lies in memory until Commit, and goes to the store as one object, in few calls.
func TestSmallPacksTakeOnePut(t *testing.T) {
	store := fault.New(mem.New())
	w := testSecret.Begin(store, testVault, testID(1))
	p := noise(1, chunk.DefaultSize)
	for i := range 12 {
		if _, err := w.Append(t.Context(), Data, chunk.ID{byte(i)}, len(p), p, chunk.Plain); err != nil {
			t.Fatal(err)
		}
	}
	if n := store.Calls(); n != 0 {
		t.Errorf("%d calls before Commit", n)
	}
	if _, _, err := w.Commit(t.Context()); err != nil || store.Calls() != 3 {
		t.Errorf("%d calls, want create, write and commit: %v", store.Calls(), err)
	}
	testSecret.Begin(store, testVault, testID(2)).Abort()
	if n := store.Calls(); n != 3 {
		t.Errorf("%d calls for a pack that was given up", n-3)
	}
}

// A full store is told of as such.
func TestFullStore(t *testing.T) {
	for _, large := range []bool{false, true} {
		fsys := durable.NewCrashable(durable.Never)
		store := onCrashable(t, fsys)
		fsys.SetSpace(5 << 10)
		if large {
			fsys.SetSpace(4 << 20)
		}
		if _, _, err := writeSome(store, large); !errors.Is(err, blob.ErrNoSpace) {
			t.Errorf("large %v: %v", large, err)
		}
	}
}

// A Commit whose object is there already, by an earlier attempt whose answer was lost, is a
// success; with another object there it is not.
func TestNameThatIsTaken(t *testing.T) {
	for _, large := range []bool{false, true} {
		store := twice{mem.New()}
		o, entries, err := writeSome(store, large)
		if err != nil {
			t.Fatalf("large %v: its own bytes are in the way: %v", large, err)
		}
		requireWhole(t, store, o, len(entries))
		if _, _, err := writeSome(store.Store, large); !errors.Is(err, blob.ErrExist) {
			t.Errorf("large %v: another pack is in the way, and the error is %v", large, err)
		}
		requireWhole(t, store, o, len(entries))
		if err := store.Corrupt(o.Name(), func(b []byte) []byte { return b[:len(b)/2] }); err != nil {
			t.Fatal(err)
		}
		if _, _, err := writeSome(store.Store, large); !errors.Is(err, blob.ErrExist) {
			t.Errorf("large %v: a shorter object is in the way, and the error is %v", large, err)
		}
	}
}

// twice is a store whose commits are repeated on the way, and answered by the second.
type twice struct{ *mem.Store }

type twiceWriter struct {
	store twice
	name  string
	bytes []byte
}

func (s twice) Create(_ context.Context, name string) (blob.Writer, error) {
	return &twiceWriter{store: s, name: name}, nil
}

func (w *twiceWriter) Write(p []byte) (int, error) {
	w.bytes = append(w.bytes, p...)
	return len(p), nil
}

func (w *twiceWriter) Commit(ctx context.Context) error {
	if err := blob.Put(ctx, w.store.Store, w.name, w.bytes); err != nil {
		return err
	}
	return blob.Put(ctx, w.store.Store, w.name, w.bytes)
}

func (w *twiceWriter) Abort() {}

const root = "/srv/store"

func onCrashable(t *testing.T, fsys *durable.Crashable) *dir.Store {
	t.Helper()
	if err := durable.MkdirAll(fsys, root); err != nil {
		t.Fatal(err)
	}
	return dir.On(fsys, root)
}

// Wherever power fails, a pack that was acknowledged is there, whole, and one that was not is whole
// or not there.
func TestCrashAtEveryWrite(t *testing.T) {
	for _, large := range []bool{false, true} {
		for n := 0; crashAt(t, large, n); n++ {
		}
	}
}

func crashAt(t *testing.T, large bool, n int) (crashed bool) {
	t.Helper()
	fsys := durable.NewCrashable(durable.Never)
	store := onCrashable(t, fsys)
	fsys.CrashAt(fsys.Calls() + n)
	o, entries, err := writeSome(store, large)
	if err != nil && !errors.Is(err, durable.ErrPowerLost) {
		t.Fatalf("crash at %d: %v", n, err)
	}
	seeds := uint64(4)
	if large {
		seeds = 1
	}
	for seed := range seeds {
		after := dir.On(fsys.AfterCrash(rand.New(rand.NewPCG(seed, uint64(n)))), root)
		if err == nil {
			requireWhole(t, after, o, len(entries))
			continue
		}
		found, _, lookErr := testSecret.Look(t.Context(), after, testVault, testID(1))
		if lookErr == nil {
			lookErr = Check(t.Context(), after, found)
		}
		if lookErr != nil && !errors.Is(lookErr, blob.ErrNotExist) {
			t.Fatalf("crash at %d, seed %d: there is half a pack: %v", n, seed, lookErr)
		}
	}
	return err != nil
}

// A read that fails is not taken for damage.
func TestFailedReadsAreNoDamage(t *testing.T) {
	for _, large := range []bool{false, true} {
		inner := mem.New()
		o, _, err := writeSome(inner, large)
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; ; n++ {
			store := fault.New(inner)
			store.FailCall(n, errDisk)
			_, err := testSecret.Table(t.Context(), store, testVault, o)
			if err == nil && store.Calls() == n {
				break
			}
			if !errors.Is(err, errDisk) || errors.Is(err, ErrCorrupt) {
				t.Fatalf("read %d failed: %v", n, err)
			}
		}
	}
}
