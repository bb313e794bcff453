package pack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// small returns a shelf whose last pack has own, moved and joined rows, and what is in that.
func small(t tester) (*shelf, *stored) {
	s := newShelf()
	first := s.begin()
	first.add(t, 1, 20)
	first.add(t, 2, 10)
	from := *s.commit(t, first)
	b, other := s.begin(), s.begin()
	b.add(t, 3, 30)
	s.move(t, b, &from, 1)
	other.add(t, 4, 7)
	s.join(t, b, other)
	return s, s.commit(t, b)
}

// put stores other bytes in a pack's place.
func (s *shelf) put(t tester, p *stored, b []byte) {
	t.Helper()
	if err := s.store.Corrupt(p.object.Name(), func([]byte) []byte { return b }); err != nil {
		t.Fatal(err)
	}
}

func (s *shelf) bytes(t tester, p *stored) []byte {
	t.Helper()
	b, err := blob.Get(context.Background(), s.store, p.object.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Any flipped bit is found: in the table, or in exactly the row that it hit; and without a key it
// is found that there is one.
func TestAnyFlippedBitIsFound(t *testing.T) {
	s, p := small(t)
	whole := s.bytes(t, p)
	if err := Check(t.Context(), s.store, p.object); err != nil {
		t.Fatal(err)
	}
	for at := range whole {
		for bit := range 8 {
			bad := bytes.Clone(whole)
			bad[at] ^= 1 << bit
			s.put(t, p, bad)
			requireFound(t, s, p, at)
		}
	}
}

func requireFound(t *testing.T, s *shelf, p *stored, at int) {
	t.Helper()
	last := p.entries[len(p.entries)-1]
	hitsRow := at >= HeaderSize && at < int(last.Offset+last.Stored)
	if err := Check(t.Context(), s.store, p.object); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("byte %d changed: a check says %v", at, err)
	}
	_, err := testSecret.Table(t.Context(), s.store, testVault, p.object)
	_, _, lookErr := testSecret.Look(t.Context(), s.store, testVault, p.object.ID)
	if errors.Is(err, ErrCorrupt) == hitsRow || errors.Is(lookErr, ErrCorrupt) == hitsRow {
		t.Fatalf("byte %d changed: the table says %v, a look %v", at, err, lookErr)
	}
	for i := range p.entries {
		e := &p.entries[i]
		hit := at >= int(e.Offset) && at < int(e.Offset+e.Stored)
		if e.SumOK(s.sealed(t, p.object, e)) == hit {
			t.Fatalf("byte %d changed: the sum of row %d is right: %v", at, i, hit)
		}
		if err := s.opens(p.object, e, p.rows[i]); errors.Is(err, ErrCorrupt) != hit || !hit && err != nil {
			t.Fatalf("byte %d changed: row %d says %v", at, i, err)
		}
	}
}

// A pack that is shorter or longer than it was is found, large ones as well as small ones.
func TestAnyOtherSizeIsFound(t *testing.T) {
	s, p := small(t)
	large := s.begin()
	large.add(t, 9, readWhole)
	for _, p := range []*stored{p, s.commit(t, large)} {
		whole := s.bytes(t, p)
		step := max(1, len(whole)/100)
		for n := 0; n < len(whole)+100; n += step {
			if n == len(whole) {
				continue
			}
			s.put(t, p, append(bytes.Clone(whole[:min(n, len(whole))]), make([]byte, max(0, n-len(whole)))...))
			_, err := testSecret.Table(t.Context(), s.store, testVault, p.object)
			_, _, lookErr := testSecret.Look(t.Context(), s.store, testVault, p.object.ID)
			if !errors.Is(err, ErrCorrupt) || !errors.Is(lookErr, ErrCorrupt) {
				t.Fatalf("%d bytes of %d: the table says %v, a look %v", n, len(whole), err, lookErr)
			}
			if err := Check(t.Context(), s.store, p.object); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%d bytes of %d: a check says %v", n, len(whole), err)
			}
		}
		if err := s.store.Delete(t.Context(), p.object.Name()); err != nil {
			t.Fatal(err)
		}
		requireGone(t, s, p)
	}
}

func requireGone(t *testing.T, s *shelf, p *stored) {
	t.Helper()
	_, err := testSecret.Table(t.Context(), s.store, testVault, p.object)
	_, _, lookErr := testSecret.Look(t.Context(), s.store, testVault, p.object.ID)
	readErr := NewReader(testSecret, s.store).ReadSealed(t.Context(), p.object, make([]byte, 1), HeaderSize)
	for what, err := range map[string]error{"table": err, "look": lookErr, "read": readErr,
		"check": Check(t.Context(), s.store, p.object)} {
		if !errors.Is(err, blob.ErrNotExist) || errors.Is(err, ErrCorrupt) {
			t.Errorf("the pack is gone: %s says %v", what, err)
		}
	}
}

// A table is that of one pack of one vault under one key, and the log says which.
func TestTableIsOfItsPack(t *testing.T) {
	s, p := small(t)
	ctx := t.Context()
	other := p.object
	other.ID = testID(1 << 20)
	if err := blob.Put(ctx, s.store, other.Name(), s.bytes(t, p)); err != nil {
		t.Fatal(err)
	}
	sum, size := p.object, p.object
	sum.Sum[0] ^= 1
	size.Size--
	for name, table := range map[string]func() ([]Entry, error){
		"other name": func() ([]Entry, error) { return testSecret.Table(ctx, s.store, testVault, other) },
		"other vault": func() ([]Entry, error) {
			return testSecret.Table(ctx, s.store, [16]byte{1}, p.object)
		},
		"other secret": func() ([]Entry, error) {
			return NewSecret([32]byte{1}).Table(ctx, s.store, testVault, p.object)
		},
		"other sum":  func() ([]Entry, error) { return testSecret.Table(ctx, s.store, testVault, sum) },
		"other size": func() ([]Entry, error) { return testSecret.Table(ctx, s.store, testVault, size) },
	} {
		if _, err := table(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A row does not open as another one, nor under another salt or slot, even with its checksum.
func TestRowsAreBoundToWhatTheyAre(t *testing.T) {
	s, p := small(t)
	for name, change := range map[string]func(*Entry){
		"ID":       func(e *Entry) { e.ID[0] ^= 1 },
		"kind":     func(e *Entry) { e.Kind ^= 3 },
		"encoding": func(e *Entry) { e.Encoding = chunk.Zstd },
		"plain":    func(e *Entry) { e.Plain++ },
		"nonce":    func(e *Entry) { e.Nonce++ },
		"salt":     func(e *Entry) { e.Salt[0] ^= 1 },
	} {
		for i := range p.entries {
			e := p.entries[i]
			sealed := s.sealed(t, p.object, &e)
			change(&e)
			if _, err := NewReader(testSecret, s.store).Unseal(&e, sealed); !errors.Is(err, ErrCorrupt) {
				t.Errorf("row %d with another %s: %v", i, name, err)
			}
		}
	}
}

// What stands in a table is not to be seen without the key.
func TestTheStoreSeesNoIDs(t *testing.T) {
	s, p := small(t)
	whole := s.bytes(t, p)
	for i := range p.entries {
		if id := p.entries[i].ID; bytes.Contains(whole, id[:8]) {
			t.Errorf("the ID of row %d stands in the clear", i)
		}
	}
}

// liar is a store that says of every object that it has a size.
type liar struct {
	*mem.Store
	size int64
}

func (l liar) Stat(ctx context.Context, name string) (blob.Info, error) {
	return blob.Info{Name: name, Size: l.size}, nil
}

// ReadAt fills all that it is asked for up to the size with what looks like the end of a pack that
// has the most rows.
func (l liar) ReadAt(_ context.Context, _ string, p []byte, off int64) (int, error) {
	if len(p) > maxTable+FooterSize+1 {
		return 0, fmt.Errorf("asked for %d bytes", len(p))
	}
	n := int(min(int64(len(p)), max(l.size-off, 0)))
	f := footer{rows: MaxEntries, origins: MaxOrigins - 1, table: l.size - int64(maxTable) - FooterSize}
	end := append(f.append(nil), "sum."+footMagic...)
	for i := range end {
		if at := int(l.size-off) - FooterSize + i; at >= 0 && at < n {
			p[at] = end[i]
		}
	}
	if n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

// Whatever a store says of sizes, it makes nobody allocate more than a trailer can have.
func TestLyingSizesAreBounded(t *testing.T) {
	for _, size := range []int64{-1 << 63, -1, 0, 111, 112, 1 << 20, int64(maxTable) + FooterSize + HeaderSize, MaxSize,
		MaxSize + 1, 1 << 40, 1<<63 - 1} {
		l := liar{mem.New(), size}
		o := log.Object{ID: testID(1), Kind: log.Pack, Size: uint64(size)}
		_, err := testSecret.Table(t.Context(), l, testVault, o)
		_, _, lookErr := testSecret.Look(t.Context(), l, testVault, o.ID)
		if !errors.Is(err, ErrCorrupt) || !errors.Is(lookErr, ErrCorrupt) {
			t.Errorf("size %d: the table says %v, a look %v", size, err, lookErr)
		}
	}
}
