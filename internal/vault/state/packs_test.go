package state

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// What is known of a pack does not depend on which of three rows are joined first.
func TestBitsJoinInAnyGrouping(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	some := func() []byte {
		b := make([]byte, rng.IntN(3))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	for range 2000 {
		var rows [3]bitsRow
		for i := range rows {
			rows[i] = bitsRow{Counted: rng.Uint64N(9), Shared: some(), Freed: some(), FreedBytes: rng.Uint64N(99),
				FreedSince: rng.Int64N(4), Moved: rng.IntN(4) == 0}
		}
		a, b := rows[0].join(rows[1]).join(rows[2]), rows[0].join(rows[1].join(rows[2]))
		if !bytes.Equal(trim(a), trim(b)) {
			t.Fatalf("%+v: %+v or %+v", rows, a, b)
		}
	}
}

func trim(r bitsRow) []byte {
	r.Shared, r.Freed = bytes.TrimRight(r.Shared, "\x00"), bytes.TrimRight(r.Freed, "\x00")
	return r.encode()
}

// EachPack tells of each pack what Pack does, whether its rows are in a tier or not, and of what a
// condemnation made.
func TestEachPackTellsOfAllGoodPacks(t *testing.T) {
	k, err := NewKeys([32]byte{1}, [16]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	s := New(mem.New(), k, Options{})
	id := func(n uint32) log.ObjectID { return log.NewObjectID(log.Volume{}, log.Session{byte(n)}, n) }
	for n := range uint32(3) {
		added := []log.Object{{ID: id(n), Kind: log.Pack, Size: 100}}
		c := Commit{Added: added, Counts: []Count{{Pack: id(n), Shared: []byte{1}}}}
		if n == 1 {
			c.Counts = nil
		}
		if err := s.Try(c.Op()); err != nil {
			t.Fatal(err)
		}
	}
	f := Freed{Slots: []Count{{Pack: id(0), Shared: []byte{6}, Bytes: 50}}}
	x := Condemn{Packs: []log.ObjectID{id(2)}, Added: []log.Object{{ID: id(3), Kind: log.Pack, Size: 70}},
		Moved: []Moved{{Pack: id(3), Shared: []byte{1}, Freed: []byte{2}, FreedBytes: 9}}}
	for _, op := range []log.Op{f.Op(), x.Op()} {
		if err := s.Try(op); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	if err := s.EachPack(t.Context(), func(p Pack) bool {
		one, good, err := s.Pack(t.Context(), p.Object.ID)
		if err != nil || !good || one.FreedBytes != p.FreedBytes || one.Moved != p.Moved ||
			!bytes.Equal(one.Shared, p.Shared) ||
			!bytes.Equal(one.Freed, p.Freed) {
			t.Errorf("%+v, alone %+v, %v", p, one, err)
		}
		if moved := p.Object.ID == id(3); moved != p.Moved || moved && p.FreedBytes != 9 {
			t.Errorf("%+v", p)
		}
		n++
		return true
	}); err != nil || n != 3 {
		t.Errorf("%d packs, %v", n, err)
	}
	if _, ok, _ := s.Pack(t.Context(), id(2)); ok {
		t.Error("a condemned pack is good")
	}
}
