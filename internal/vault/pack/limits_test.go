package pack

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"sync/atomic"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// begun returns a writer that keeps nothing.
func begun(n int) *Writer { return testSecret.Begin(nowhere{}, testVault, testID(n)) }

// What may not be in a pack is refused, and the writer is as good as before.
func TestRowsThatMayNotBe(t *testing.T) {
	w := begun(1)
	defer w.Abort()
	for _, tt := range []struct {
		name          string
		kind          Kind
		plain, stored int
	}{
		{"nothing", Data, 0, 0},
		{"no kind", 0, 1, 1},
		{"unknown kind", 4, 1, 1},
		{"negative", Data, -1, 1},
		{"too long", Node, chunk.MaxSize + 1, 1},
		{"stored too long", Node, 1, chunk.MaxSize + 1},
		{"manifest too long", Manifest, MaxManifest + 1, 1},
	} {
		if _, err := w.Append(t.Context(), tt.kind, chunk.ID{1}, tt.plain, make([]byte, tt.stored),
			chunk.Zstd); err == nil {
			t.Errorf("%s: it was taken", tt.name)
		}
	}
	if _, err := w.Append(t.Context(), Manifest, chunk.ID{1}, MaxManifest, []byte{1}, chunk.Zstd); err != nil {
		t.Error(err)
	}
	if _, entries, err := w.Commit(t.Context()); err != nil || len(entries) != 1 {
		t.Errorf("%d rows: %v", len(entries), err)
	}
}

// Bytes that are not those of the row are not moved, and the writer is as good as before.
func TestDamagedRowsAreNotMoved(t *testing.T) {
	s, p := small(t)
	b := s.begin()
	e := &p.entries[0]
	sealed := s.sealed(t, p.object, e)
	sealed[3] ^= 1
	if _, err := b.Move(t.Context(), p.object.ID, e, sealed); !errors.Is(err, ErrCorrupt) {
		t.Errorf("damaged: %v", err)
	}
	if _, err := b.Move(t.Context(), p.object.ID, e, sealed[1:]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("too short: %v", err)
	}
	s.move(t, b, p, 0)
	s.commit(t, b)
}

// A pack takes the most rows, and no more, and reads back.
func TestMostRows(t *testing.T) {
	store := mem.New()
	w := testSecret.Begin(store, testVault, testID(1))
	for i := 0; !w.Full(MaxSize); i++ {
		id := chunk.ID{byte(i), byte(i >> 8), 1}
		if _, err := w.Append(t.Context(), Data, id, 1, []byte{1}, chunk.Plain); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Append(t.Context(), Data, chunk.ID{1}, 1, []byte{1}, chunk.Plain); err == nil {
		t.Error("a full pack took a row")
	}
	other := begun(2)
	defer other.Abort()
	_, err := other.Append(t.Context(), Data, chunk.ID{1}, 1, []byte{1}, chunk.Plain)
	if _, ok, joinErr := w.Join(t.Context(), other); ok || err != nil || joinErr != nil || other.Len() != 1 {
		t.Errorf("a full pack was joined: %v, %v, %v", ok, err, joinErr)
	}
	o, entries, err := w.Commit(t.Context())
	if err != nil || len(entries) != MaxEntries {
		t.Fatalf("%d rows: %v", len(entries), err)
	}
	requireWhole(t, store, o, MaxEntries)
}

// A pack takes the most origins, and is full then.
func TestMostOrigins(t *testing.T) {
	store := mem.New()
	w := testSecret.Begin(store, testVault, testID(1))
	sealed := noise(1, 17)
	e := Entry{ID: chunk.ID{1}, Kind: Data, Stored: 17, Plain: 1}
	e.Sum = crc32.Checksum(sealed, castagnoli)
	for i := 0; !w.Full(MaxSize); i++ {
		e.Salt = log.Salt{byte(i), byte(i >> 8), 1}
		if _, err := w.Move(t.Context(), testID(i+2), &e, sealed); err != nil {
			t.Fatal(err)
		}
	}
	o, entries, err := w.Commit(t.Context())
	if err != nil || len(entries) != MaxOrigins-1 {
		t.Fatalf("%d rows of other origins: %v", len(entries), err)
	}
	requireWhole(t, store, o, len(entries))
	if r, _, ok := w.Recipe(); !ok || len(r.Pieces) != len(entries)+2 {
		t.Errorf("a recipe of %d pieces: %v", len(r.Pieces), ok)
	}
}

// No pack is larger than one may be, however large its rows are.
func TestMostBytes(t *testing.T) {
	w := begun(1)
	w.spool.passed = MaxSize - 8*chunk.MaxSize // as if as much had been written
	row := make([]byte, chunk.MaxSize)
	for !w.Full(MaxSize) {
		if _, err := w.Append(t.Context(), Data, chunk.ID{1}, len(row), row, chunk.Plain); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Append(t.Context(), Data, chunk.ID{1}, len(row), row, chunk.Plain); err == nil {
		t.Error("a full pack took a row")
	}
	if o, _, err := w.Commit(t.Context()); err != nil || o.Size > MaxSize || o.Size < MaxSize-2*chunk.MaxSize {
		t.Errorf("%d bytes: %v", o.Size, err)
	}
}

// A pack that does not lie in memory any more is not joined to another, but others to it.
func TestJoinOfLargePacks(t *testing.T) {
	s := newShelf()
	large, little := s.begin(), s.begin()
	little.add(t, 1, 10)
	for i := range 10 {
		large.add(t, uint64(i), chunk.MaxSize/2)
	}
	if _, ok, err := little.Join(t.Context(), large.Writer); ok || err != nil {
		t.Fatalf("a large pack was joined: %v, %v", ok, err)
	}
	medium := s.begin()
	for i := range 7 {
		medium.add(t, uint64(i), chunk.MaxSize/2+i)
	}
	s.join(t, large, medium)
	s.join(t, large, little)
	large.add(t, 99, 99)
	s.commit(t, large)
}

// After Commit, Abort or an error of the store a writer takes nothing, and says why.
func TestWritersEnd(t *testing.T) {
	for name, end := range map[string]func(*Writer){
		"abort":  func(w *Writer) { w.Abort() },
		"commit": func(w *Writer) { _, _, _ = w.Commit(t.Context()) },
	} {
		w, other := begun(1), begun(2)
		end(w)
		_, appendErr := w.Append(t.Context(), Data, chunk.ID{1}, 1, []byte{1}, chunk.Plain)
		_, moveErr := w.Move(t.Context(), log.ObjectID{}, &Entry{}, nil)
		_, _, joinErr := w.Join(t.Context(), other)
		_, _, commitErr := w.Commit(t.Context())
		if appendErr == nil || moveErr == nil || joinErr == nil || commitErr == nil {
			t.Errorf("after %s: %v, %v, %v, %v", name, appendErr, moveErr, joinErr, commitErr)
		}
		w.Abort()
		other.Abort()
	}
}

// trips counts reads, and those that were made while no other was under way.
type trips struct {
	*mem.Store
	reads atomic.Int32
}

func (s *trips) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	s.reads.Add(1)
	return s.Store.ReadAt(ctx, name, p, off)
}

// A table takes one read where the pack is small, two at once where it is large, and one more after
// those where its rows are tiny.
func TestTableTakesFewReads(t *testing.T) {
	for _, tt := range []struct{ rows, size, reads int }{{0, 1, 1}, {3, 10000, 1}, {8, 100000, 2}, {20000, 40, 3}} {
		store := &trips{Store: mem.New()}
		w := testSecret.Begin(store, testVault, testID(1))
		for i := range tt.rows {
			p := noise(uint64(i), tt.size)
			if _, err := w.Append(t.Context(), Data, chunk.ID{byte(i), 1}, len(p), p, chunk.Plain); err != nil {
				t.Fatal(err)
			}
		}
		o, _, err := w.Commit(t.Context())
		if err == nil {
			_, err = testSecret.Table(t.Context(), store, testVault, o)
		}
		if got := int(store.reads.Load()); err != nil || got != tt.reads {
			t.Errorf("%d rows of %d bytes take %d reads, want %d: %v", tt.rows, tt.size, got, tt.reads, err)
		}
	}
}

// A pack of which too much was not moved has no recipe; what has one is made anew only from bytes
// that can be read and written.
func TestRecipesEnd(t *testing.T) {
	s, p := small(t)
	b := s.begin()
	s.move(t, b, p, 0)
	for i := range 3 {
		b.add(t, uint64(i), maxLiteral/2)
	}
	s.commit(t, b)
	if _, _, ok := b.Recipe(); ok {
		t.Error("there is a recipe with more than a MiB of literal bytes")
	}
	b = s.begin()
	s.move(t, b, p, 0)
	if _, _, ok := b.Recipe(); ok {
		t.Error("there is a recipe before Commit")
	}
	s.commit(t, b)
	r, _, _ := b.Recipe()
	read := func(context.Context, log.ObjectID, log.ObjectKind, []byte, int64) error { return blob.ErrNotExist }
	if err := Make(t.Context(), r, testID(9), read, io.Discard); !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("what cannot be read: %v", err)
	}
	read = func(context.Context, log.ObjectID, log.ObjectKind, []byte, int64) error { return nil }
	full := writerFunc(func([]byte) (int, error) { return 0, errDisk })
	if err := Make(t.Context(), r, testID(9), read, full); !errors.Is(err, errDisk) {
		t.Errorf("what cannot be written: %v", err)
	}
}
