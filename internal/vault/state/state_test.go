package state_test

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

func keysOf(t testing.TB) *state.Keys {
	t.Helper()
	k, err := state.NewKeys([32]byte{1}, [16]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// history is random work, as entries that follow each other.
type history struct {
	rng     *rand.Rand
	entries []*log.Entry
	points  []state.ID
	purged  []state.ID
	packs   []log.ObjectID
	at      log.Position
}

func newHistory(seed uint64) *history {
	h := &history{rng: rand.New(rand.NewPCG(seed, 5))}
	h.entries = append(h.entries, &log.Entry{Ops: []log.Op{{Kind: log.Begin}}})
	return h
}

func (h *history) id() (id state.ID) {
	binary.BigEndian.PutUint64(id[:], h.rng.Uint64())
	return id
}

func (h *history) pack() log.Object {
	var s log.Session
	binary.BigEndian.PutUint64(s[:], h.rng.Uint64())
	o := log.Object{ID: log.NewObjectID(h.at.Volume, s, 1), Kind: log.Pack, Size: uint64(h.rng.IntN(1000))}
	h.packs = append(h.packs, o.ID)
	return o
}

// grow adds an entry.
func (h *history) grow() {
	h.at.Number++
	e := &log.Entry{At: h.at, Hash: log.Hash{byte(len(h.entries)), byte(len(h.entries) >> 8)},
		Nonce: log.Nonce{Writer: [12]byte{byte(h.rng.IntN(5))}, Seq: uint32(len(h.entries))}}
	for range 1 + h.rng.IntN(2) {
		e.Ops = append(e.Ops, h.op())
	}
	h.entries = append(h.entries, e)
}

func (h *history) op() log.Op {
	pick := h.rng.IntN(10)
	switch {
	case pick < 5 || len(h.points) < 3 || len(h.packs) < 3:
		p := state.Point{ID: h.id(), Time: int64(h.rng.IntN(1000)), Finds: []string{"all"}[:h.rng.IntN(2)],
			Manifest: make([]byte, h.rng.IntN(300))}
		c := state.Commit{Added: []log.Object{h.pack()}}
		if len(h.points) > 0 {
			p.Bases = []state.ID{h.points[h.rng.IntN(len(h.points))]}
			c.Counts = []state.Count{{Pack: h.packs[h.rng.IntN(len(h.packs))], Shared: []byte{byte(h.rng.Uint32())}}}
		}
		c.Points = []state.Point{p}
		h.points = append(h.points, p.ID)
		return c.Op()
	case pick == 5:
		i := h.rng.IntN(len(h.points))
		p := state.Purge{Points: []state.Purged{{ID: h.points[i], Finds: []string{"all"}}}}
		h.purged = append(h.purged, h.points[i])
		h.points = append(h.points[:i:i], h.points[i+1:]...)
		return p.Op()
	case pick == 6:
		i := h.rng.IntN(len(h.packs))
		c := state.Condemn{Packs: []log.ObjectID{h.packs[i]}}
		h.packs = append(h.packs[:i:i], h.packs[i+1:]...)
		return c.Op()
	case pick == 7:
		f := state.Freed{Slots: []state.Count{{Pack: h.packs[h.rng.IntN(len(h.packs))],
			Shared: []byte{byte(h.rng.Uint32())}}}}
		if n := len(h.purged); n > 0 {
			f.Walk = []state.Walk{{Point: h.purged[0], At: uint64(h.at.Number), Done: n > 2, To: []byte("on")}}
			if n > 2 {
				f.Relink = []state.Relink{{Node: h.purged[0], Bases: h.points[:1], Child: h.points[1]}}
				h.purged = h.purged[1:]
			}
		}
		return f.Op()
	case pick == 8:
		return state.Pin(state.ID{byte(h.rng.IntN(3))})
	}
	d := state.Delete{Points: []state.ID{h.points[h.rng.IntN(len(h.points))]}, Until: 5}
	return d.Op()
}

func apply(t testing.TB, s *state.State, entries []*log.Entry) {
	t.Helper()
	for _, e := range entries {
		if err := s.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
}

// Whoever folds the same entries, in one go or from any checkpoint on, makes the same checkpoint.
func TestTwoFoldsAreAlike(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(2) {
		h := newHistory(seed)
		for range 700 {
			h.grow()
		}
		store := mem.New()
		one := state.New(store, keysOf(t), state.Options{})
		type made struct {
			n int
			c log.Checkpoint
		}
		var all []made
		for n := 0; n < len(h.entries); {
			step := 1 + h.rng.IntN(150)
			end := min(n+step, len(h.entries))
			apply(t, one, h.entries[n:end])
			n = end
			c, err := one.Checkpoint(ctx)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, made{n, c})
		}
		last := all[len(all)-1]
		for i := -1; i < len(all)-1; i++ {
			two := state.New(store, keysOf(t), state.Options{})
			from := 0
			if i >= 0 {
				from = all[i].n
				if _, err := two.Load(ctx, all[i].c); err != nil {
					t.Fatal(err)
				}
			}
			apply(t, two, h.entries[from:last.n])
			if c, err := two.Digest(ctx); err != nil || c != last.c {
				t.Fatalf("seed %d: folded from %d: %+v, want %+v: %v", seed, from, c, last.c, err)
			}
			if _, err := state.Verify(ctx, store, keysOf(t), last.c); err != nil {
				t.Fatal(err)
			}
		}
	}
}
