package state

import (
	"context"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// No body of an operation, and no checkpoint, makes a fold do anything but refuse it or go on.
func FuzzBodies(f *testing.F) {
	commit := Commit{Points: []Point{{ID: ID{1}, Bases: []ID{{2}}}}, Counts: []Count{{Shared: []byte{1}}},
		Adopted: []Adopted{{Progress: 1}}}
	f.Add(uint16(KindCommit), commit.Op().Body)
	progress := Progress{Machine: "vm", Bases: []ID{{1}}}
	f.Add(uint16(KindProgress), progress.Op().Body)
	f.Add(uint16(KindFreed),
		(&Freed{Walk: []Walk{{Point: ID{3}, Done: true}}, Relink: []Relink{{Node: ID{3}, Bases: []ID{{4}}}}}).Op().Body)
	mark := Freed{FromMark: true, Slots: []Count{{Shared: []byte{1}, Bytes: 9}}, Keep: []Count{{Shared: []byte{2}}}}
	f.Add(uint16(KindFreed), mark.Op().Body)
	condemn := Condemn{Packs: []log.ObjectID{{1}}, AddedAt: []uint64{1}, Parts: []bool{true},
		Moved: []Moved{{Shared: []byte{1}, Freed: []byte{2}, FreedBytes: 9}}}
	f.Add(uint16(KindCondemn), condemn.Op().Body)
	f.Add(uint16(KindPin), Pin(ID{1}).Body)
	k, err := NewKeys([32]byte{1}, [16]byte{2})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, kind uint16, body []byte) {
		s := New(mem.New(), k, Options{})
		if kind == uint16(KindCommit) || kind == uint16(KindProgress) {
			if len(body) > 14 { // a number of progress entries that somebody may have made
				body[12], body[13] = 0, 0
			}
		}
		e := &log.Entry{Nonce: log.Nonce{Seq: 1}, Ops: []log.Op{{Kind: log.Kind(kind), Body: body}}}
		if s.Apply(e) != nil && s.Count() != 0 {
			t.Error("an entry that was refused has been counted")
		}
		_, _ = s.Sessions(context.Background())
		_ = s.Points(context.Background(), func(Point) bool { return true })
	})
}

func FuzzCheckpoint(f *testing.F) {
	k, err := NewKeys([32]byte{1}, [16]byte{2})
	if err != nil {
		f.Fatal(err)
	}
	s := New(mem.New(), k, Options{})
	if err := s.Apply(&log.Entry{Ops: []log.Op{{Kind: log.Begin}}}); err != nil {
		f.Fatal(err)
	}
	first, second := s.encode()
	f.Add([]byte(first), []byte(second))
	f.Fuzz(func(t *testing.T, clear, secret []byte) {
		s := New(mem.New(), k, Options{})
		_ = s.decode(clear, secret)
	})
}
