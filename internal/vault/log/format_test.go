package log

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"
)

func testKeys(t testing.TB) *Keys {
	t.Helper()
	k, err := NewKeys([32]byte{1}, [16]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sample(clear bool) *Entry {
	id := NewObjectID(Volume{Number: 3}, Session{1, 2}, 7)
	who := "root@host holdfast[123]"
	if clear {
		who = ""
	}
	e := &Entry{Who: who, At: Position{Volume: Volume{Number: 4}, Number: 9}, Before: Hash{5}, Voids: []Hash{{6}, {7}},
		Term: 8,
		Time: time.UnixMilli(1234).UTC(), Nonce: Nonce{Writer: [12]byte{3}, Seq: 2}, salt: Salt{9},
		Ops: []Op{
			{Kind: 16, Added: []Object{{ID: id, Kind: Pack, Copy: 2, Size: 77, Sum: Hash{1}}}, Body: []byte("first")},
			{Kind: 20, Condemned: []ObjectID{id, {1}}, Gone: []ObjectID{{2}},
				Recipes: []Recipe{{Makes: id, Pieces: []Piece{{Of: id, Kind: Part, Offset: 5, Length: 6}}},
					{Makes: ObjectID{4}}}},
			{Kind: 99, Body: []byte("third")},
		}}
	for i := range e.Ops {
		e.Ops[i].Clear = clear && len(e.Ops[i].Body) > 0
	}
	return e
}

// An entry reads as what was sealed; a mirror, which has the log key alone, reads all but the
// bodies.
func TestEntriesReadAsSealed(t *testing.T) {
	k := testKeys(t)
	for _, clear := range []bool{false, true} {
		e := sample(clear)
		raw, err := e.seal(k)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parse(raw, e.At, k)
		if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", e) {
			t.Errorf("it reads as\n%+v, want\n%+v: %v", got, e, err)
		}
		m, err := parse(raw, e.At, MirrorKeys(k.LogKey()))
		if err != nil || m.Hidden == clear || m.Hash != e.Hash || len(m.Ops) != 3 ||
			m.Ops[0].Added[0] != e.Ops[0].Added[0] ||
			len(m.Ops[1].Condemned) != 2 || m.Hidden && len(m.Ops[0].Body) > 0 {
			t.Errorf("a mirror reads %+v: %v", m, err)
		}
		if bytes.Contains(raw, []byte("first")) != clear {
			t.Errorf("the body stands in the clear: %v, want %v", !clear, clear)
		}
	}
}

// Whatever bit is changed and wherever an entry is cut, it is no entry any more.
func TestChangedEntriesAreVoid(t *testing.T) {
	k := testKeys(t)
	raw, err := sample(false).seal(k)
	if err != nil {
		t.Fatal(err)
	}
	at := sample(false).At
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 1 << (i % 8)
		if _, err := parse(bad, at, k); !errors.Is(err, errVoid) {
			t.Errorf("with a bit of byte %d changed: %v", i, err)
		}
		if _, err := parse(raw[:i], at, k); !errors.Is(err, errVoid) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
	other := at
	other.Number++
	if _, err := parse(raw, other, k); !errors.Is(err, errVoid) {
		t.Errorf("at another number: %v", err)
	}
}

func TestNamesReadBack(t *testing.T) {
	for _, n := range []uint32{0, 1, 4095, 4096, MaxEntries - 1} {
		for _, v := range []Volume{{}, {Number: 7},
			{Tenure: Tenure{Number: 1 << 31, Region: 65535}, Number: 1<<32 - 1}} {
			c := Checkpoint{At: Position{Volume: v, Number: n}, Salt: Salt{1, 2, 3}}
			if got, ok := ParseCheckpointName(CheckpointName(c)); !ok || got != c {
				t.Errorf("%s reads as %+v", CheckpointName(c), got)
			}
			o := Object{ID: NewObjectID(v, Session{9}, n), Kind: Pack}
			if got, ok := ParsePackName(o.Name()); !ok || got != o {
				t.Errorf("%s reads as %+v", o.Name(), got)
			}
			if o.ID.Begun() != v || o.ID.Session() != (Session{9}) {
				t.Errorf("%s was begun in %v by %v", o.ID, o.ID.Begun(), o.ID.Session())
			}
		}
	}
	a, b := Checkpoint{At: Position{Number: 64}}, Checkpoint{At: Position{Volume: Volume{Number: 1}, Number: 3}}
	if CheckpointName(a) < CheckpointName(b) {
		t.Error("an older checkpoint is listed first")
	}
	for _, bad := range []string{"checkpoint/", "checkpoint/.nfs00000001", "pack/x",
		"pack/00000000-0000/00000000/ab/xyz", ""} {
		if _, ok := ParseCheckpointName(bad); ok {
			t.Errorf("%q is taken for a checkpoint", bad)
		}
		if _, ok := ParsePackName(bad); ok {
			t.Errorf("%q is taken for a pack", bad)
		}
	}
}

// Whatever authenticates, an entry is refused or reads as what seals to the same bytes.
func FuzzEntry(f *testing.F) {
	k := testKeys(f)
	for _, clear := range []bool{false, true} {
		raw, err := sample(clear).seal(k)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw[:len(raw)-macSize])
	}
	raw, err := first(Tenure{}, k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw[:len(raw)-macSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		mac := k.MAC(b)
		raw := append(bytes.Clone(b), mac[:]...)
		at := positionIn(raw)
		e, err := parse(raw, at, k)
		if err != nil {
			return
		}
		if again, err := e.seal(k); err != nil || !bytes.Equal(again, raw) {
			t.Errorf("an entry of %d bytes seals to %d others: %v", len(raw), len(again), err)
		}
		if e.Ops[0].Kind == Begin && len(e.Ops[0].Body) > 0 {
			_, _ = readBeginning(e.Ops[0].Body)
		}
	})
}

// The beginning of a volume is refused or reads as what makes the same bytes.
func FuzzBeginning(f *testing.F) {
	b := beginning{after: Position{Number: 3}, hash: Hash{1}, from: Checkpoint{Salt: Salt{2}},
		entries: [][]byte{[]byte("x"), {}}}
	f.Add(b.append(nil))
	f.Fuzz(func(t *testing.T, body []byte) {
		b, err := readBeginning(body)
		if err == nil && !bytes.Equal(b.append(nil), body) {
			t.Errorf("%x reads as what makes %x", body, b.append(nil))
		}
	})
}
