package pack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

var (
	testSecret = NewSecret([32]byte{7})
	testVault  = [16]byte{8}
)

// testID returns the ID of the n-th pack of the tests.
func testID(n int) log.ObjectID {
	return log.NewObjectID(log.Volume{Number: 3}, log.Session{1, 2}, uint32(n))
}

// plainRow is what a row must open to.
type plainRow struct {
	id    chunk.ID
	kind  Kind
	bytes []byte
}

// tester is what testing.T and rapid.T have.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// noise returns n bytes made from a seed.
func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = rng.Read(p) // it never fails
	return p
}

// shelf is a store with packs, and what each must hold.
type shelf struct {
	store *mem.Store
	packs []stored
	ids   int // used
}

type stored struct {
	object  log.Object
	entries []Entry
	rows    []plainRow
}

func newShelf() *shelf { return &shelf{store: mem.New()} }

func (s *shelf) begin() *building {
	s.ids++
	return &building{Writer: testSecret.Begin(s.store, testVault, testID(s.ids))}
}

// building is a pack that is being written, and what it must hold.
type building struct {
	*Writer
	rows  []plainRow
	moved bool // a row was moved here
}

func (b *building) add(t tester, seed uint64, n int) {
	t.Helper()
	row := plainRow{chunk.ID{byte(seed), byte(seed >> 8), byte(seed >> 16), 1}, Kind(1 + seed%3), noise(seed, n)}
	e, err := b.Append(context.Background(), row.kind, row.id, n, row.bytes, chunk.Plain)
	if err != nil {
		t.Fatal(err)
	}
	if int(e.Nonce) != len(b.rows) || b.Len() != len(b.rows)+1 {
		t.Fatalf("row %d was sealed in slot %d, and there are %d", len(b.rows), e.Nonce, b.Len())
	}
	b.rows = append(b.rows, row)
}

// move moves row i of a pack.
func (s *shelf) move(t tester, b *building, from *stored, i int) {
	t.Helper()
	e := &from.entries[i]
	if _, err := b.Move(context.Background(), from.object.ID, e, s.sealed(t, from.object, e)); err != nil {
		t.Fatal(err)
	}
	b.rows, b.moved = append(b.rows, from.rows[i]), true
}

func (s *shelf) sealed(t tester, o log.Object, e *Entry) []byte {
	t.Helper()
	p := make([]byte, e.Stored)
	if err := NewReader(testSecret, s.store).ReadSealed(context.Background(), o, p, int64(e.Offset)); err != nil {
		t.Fatal(err)
	}
	return p
}

// commit commits the pack and checks that it holds what it must.
func (s *shelf) commit(t tester, b *building) *stored {
	t.Helper()
	o, entries, err := b.Commit(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	p := stored{o, entries, b.rows}
	s.check(t, &p)
	s.packs = append(s.packs, p)
	return &s.packs[len(s.packs)-1]
}

// check reads a pack back.
func (s *shelf) check(t tester, p *stored) {
	t.Helper()
	ctx := context.Background()
	if info, err := s.store.Stat(ctx, p.object.Name()); err != nil || uint64(info.Size) != p.object.Size {
		t.Fatalf("the pack of %d bytes has %d: %v", p.object.Size, info.Size, err)
	}
	read, err := testSecret.Table(ctx, s.store, testVault, p.object)
	if err != nil || len(read) != len(p.rows) || len(p.entries) != len(p.rows) {
		t.Fatalf("%d entries for %d rows: %v", len(read), len(p.rows), err)
	}
	o, looked, err := testSecret.Look(ctx, s.store, testVault, p.object.ID)
	if err != nil || o != p.object || len(looked) != len(read) {
		t.Fatalf("it looks like %+v, want %+v: %v", o, p.object, err)
	}
	at := uint32(HeaderSize)
	for i := range read {
		e := &read[i]
		if *e != p.entries[i] || *e != looked[i] || e.Offset != at {
			t.Fatalf("row %d reads as %+v, was written as %+v", i, *e, p.entries[i])
		}
		at += e.Stored
		if err := s.opens(p.object, e, p.rows[i]); err != nil {
			t.Fatalf("row %d: %v", i, err)
		}
	}
}

// opens reports why a row does not open to what it must.
func (s *shelf) opens(o log.Object, e *Entry, want plainRow) error {
	r := NewReader(testSecret, s.store)
	sealed := make([]byte, e.Stored)
	if err := r.ReadSealed(context.Background(), o, sealed, int64(e.Offset)); err != nil {
		return err
	}
	sumOK := e.SumOK(sealed)
	got, err := r.Unseal(e, sealed)
	if err != nil {
		return err
	}
	if !sumOK || e.ID != want.id || e.Kind != want.kind || int(e.Plain) != len(want.bytes) ||
		!bytes.Equal(got, want.bytes) {
		return fmt.Errorf("it is %+v (sum right: %v) and opens to %d bytes, want %d", *e, sumOK, len(got),
			len(want.bytes))
	}
	return nil
}

// Whatever is appended, moved and joined in whichever order, moved again too, is in the table, in
// order, without gaps, and opens to what it was; and the recipe of a pack makes the same bytes.
func TestPacksHoldWhatWasPutIntoThem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newShelf()
		for range rapid.IntRange(1, 4).Draw(t, "packs") {
			b := s.build(t)
			if rapid.Bool().Draw(t, "join") {
				s.join(t, b, s.build(t))
			}
			s.checkRecipe(t, b, s.commit(t, b))
		}
	})
}

// build begins a pack with rows that are appended and moved.
func (s *shelf) build(t *rapid.T) *building {
	b := s.begin()
	for range rapid.IntRange(0, 8).Draw(t, "rows") {
		if len(s.packs) > 0 && rapid.IntRange(0, 2).Draw(t, "what") > 0 {
			p := &s.packs[rapid.IntRange(0, len(s.packs)-1).Draw(t, "from")]
			if len(p.rows) > 0 {
				first := rapid.IntRange(0, len(p.rows)-1).Draw(t, "first")
				for i := first; i < min(len(p.rows), first+3); i++ {
					s.move(t, b, p, i)
				}
				continue
			}
		}
		b.add(t, rapid.Uint64Range(0, 1<<20).Draw(t, "seed"), rapid.IntRange(1, 300).Draw(t, "size"))
	}
	return b
}

func (s *shelf) join(t tester, b, other *building) {
	t.Helper()
	first, ok, err := b.Join(context.Background(), other.Writer)
	if err != nil || !ok || first != len(b.rows) || b.Len() != len(b.rows)+len(other.rows) {
		t.Fatalf("%d rows are joined to %d from %d on: %v, %v", len(other.rows), len(b.rows), first, ok, err)
	}
	b.rows, b.moved = append(b.rows, other.rows...), b.moved || other.moved
	if _, _, err := other.Commit(context.Background()); err == nil {
		t.Fatal("a pack that was joined to another was committed")
	}
}

// checkRecipe makes a pack by its recipe and compares.
func (s *shelf) checkRecipe(t tester, b *building, p *stored) {
	t.Helper()
	recipe, literal, ok := b.Recipe()
	if ok != b.moved {
		t.Fatalf("there is a recipe: %v, want %v", ok, b.moved)
	}
	if !ok {
		return
	}
	made := s.make(t, recipe, literal)
	if want, err := blob.Get(context.Background(), s.store, p.object.Name()); err != nil || !bytes.Equal(made, want) {
		t.Fatalf("the recipe makes %d bytes other than the %d of the pack: %v", len(made), len(want), err)
	}
}

// make makes a pack by its recipe, first unnamed and then named.
func (s *shelf) make(t tester, recipe log.Recipe, literal []byte) []byte {
	t.Helper()
	part := log.ObjectID{9}
	read := func(ctx context.Context, of log.ObjectID, kind log.ObjectKind, p []byte, off int64) error {
		if kind == log.Part {
			if of != part || int(off)+len(p) > len(literal) {
				return fmt.Errorf("%d literal bytes at %d of %s", len(p), off, of)
			}
			copy(p, literal[off:])
			return nil
		}
		o := log.Object{ID: of, Kind: kind}
		_, err := s.store.ReadAt(ctx, o.Name(), p, off)
		return err
	}
	var made, again bytes.Buffer
	err := Make(context.Background(), recipe, part, read, &made)
	NameLiteral(&recipe, part)
	if err := errors.Join(err, Make(context.Background(), recipe, log.ObjectID{}, read, &again)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(made.Bytes(), again.Bytes()) {
		t.Fatal("a recipe with a name makes other bytes than without")
	}
	return made.Bytes()
}
