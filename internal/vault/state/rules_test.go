package state_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// vault is a state with the entries that made it.
type vault struct {
	*state.State
	t  *testing.T
	at log.Position
}

func newVault(t *testing.T) *vault {
	t.Helper()
	v := &vault{State: state.New(mem.New(), keysOf(t), state.Options{RememberVolumes: 2, RememberDays: -1}), t: t}
	v.add(log.Op{Kind: log.Begin})
	return v
}

func (v *vault) add(ops ...log.Op) {
	v.t.Helper()
	if err := v.Apply(&log.Entry{At: v.at, Ops: ops}); err != nil {
		v.t.Fatal(err)
	}
	v.at.Number++
}

func object(n byte) log.Object {
	return log.Object{ID: log.NewObjectID(log.Volume{}, log.Session{n}, 1), Kind: log.Pack, Size: uint64(n)}
}

func (v *vault) commit(id byte, base byte, packs ...log.Object) {
	v.t.Helper()
	c := state.Commit{Session: log.Session{id}, Added: packs, Points: []state.Point{{ID: state.ID{id}}}}
	if base > 0 {
		c.Points[0].Bases = []state.ID{{base}}
	}
	v.add(c.Op())
}

func (v *vault) want(what string, err, want error) {
	v.t.Helper()
	if !errors.Is(err, want) {
		v.t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestHoldsAndLocksRefuseAPurge(t *testing.T) {
	ctx := context.Background()
	v := newVault(t)
	v.commit(1, 0, object(1))
	purge := func(now int64) error {
		return (&state.Purge{Points: []state.Purged{{ID: state.ID{1}}}}).Check(ctx, v.State, now)
	}
	v.want("purge", purge(0), nil)
	h := state.Hold{Point: state.ID{1}, ID: state.ID{9}, Holder: []byte("export")}
	v.add(h.Op())
	v.want("purge what is held", purge(0), state.ErrHeld)
	v.add((&state.Delete{Points: []state.ID{{1}}, Until: 50}).Op())
	if until, ok, err := v.Deleted(ctx, state.ID{1}); until != 50 || !ok || err != nil {
		t.Errorf("deleted until %d, %v, %v", until, ok, err)
	}
	v.add(h.Release())
	v.add((&state.Lock{Point: state.ID{1}, Until: 100}).Op())
	v.want("purge what is locked", purge(99), state.ErrLocked)
	v.want("make a lock shorter", (&state.Lock{Point: state.ID{1}, Until: 90}).Check(ctx, v.State), state.ErrNoChange)
	v.want("purge after the lock", purge(100), nil)
	v.add((&state.Progress{Session: log.Session{4}, Bases: []state.ID{{1}}}).Op())
	v.want("purge the base of an open session", purge(100), state.ErrInUse)
	v.add((&state.GiveUp{Sessions: []state.Adopted{{Session: log.Session{4}, Progress: 1}}}).Op())
	v.want("purge after it was given up", purge(100), nil)
	v.add((&state.Purge{Points: []state.Purged{{ID: state.ID{1}}}}).Op())
	v.want("purge again", purge(100), state.ErrNoPoint)
	v.want("hold what was purged", h.Check(ctx, v.State), state.ErrNoPoint)
	c := state.Commit{Points: []state.Point{{ID: state.ID{1}}}}
	v.want("commit what was purged", c.Check(ctx, v.State), state.ErrExists)
}

func TestCommitTellsWhatIsLost(t *testing.T) {
	ctx := context.Background()
	v := newVault(t)
	v.commit(1, 0, object(1), object(2))
	c := state.Commit{Added: []log.Object{object(3)}, Counts: []state.Count{{Pack: object(1).ID}, {Pack: object(2).ID}},
		Points: []state.Point{{ID: state.ID{2}, Bases: []state.ID{{1}}}, {ID: state.ID{3}, Bases: []state.ID{{2}}}}}
	v.want("commit", c.Check(ctx, v.State), nil)
	v.add((&state.Condemn{Packs: []log.ObjectID{object(1).ID}}).Op(),
		(&state.Condemn{Orphans: true, Packs: []log.ObjectID{object(3).ID}}).Op(),
		(&state.Purge{Points: []state.Purged{{ID: state.ID{1}}}}).Op())
	var lost *state.Lost
	if err := c.Check(ctx, v.State); !errors.As(err, &lost) || len(lost.Own) != 1 ||
		!slices.Equal(lost.Counts, []log.ObjectID{object(1).ID}) ||
		!slices.Equal(lost.Bases, []state.ID{{1}}) {
		t.Errorf("commit: %v, %+v", err, lost)
	}
}

func TestAdoptedSessionsEnd(t *testing.T) {
	ctx := context.Background()
	v := newVault(t)
	old, next := log.Session{1}, log.Session{2}
	v.add((&state.Progress{Session: old, Machine: "vm", Added: []log.Object{object(1)}}).Op())
	adopt := state.Adopt{From: state.Adopted{Session: old, Progress: 1}, By: next}
	v.want("adopt", adopt.Check(ctx, v.State), nil)
	v.add(adopt.Op())
	v.want("adopt twice", adopt.Check(ctx, v.State), state.ErrEnded)
	mine := state.Commit{Session: old, Progress: 1, Own: []log.ObjectID{object(1).ID},
		Points: []state.Point{{ID: state.ID{1}}}}
	v.want("commit of the old session", mine.Check(ctx, v.State), state.ErrEnded)
	theirs := state.Commit{Session: next, Adopted: []state.Adopted{{Session: old, Progress: 1}}, Own: mine.Own,
		Points: mine.Points}
	v.want("commit of the new session", theirs.Check(ctx, v.State), nil)
	condemn := state.Condemn{Packs: []log.ObjectID{object(1).ID}, MarkAt: v.Count(), Last: v.LastCondemn()}
	v.want("condemn the pack of an open session", condemn.Prune(ctx, v.State), state.ErrNoChange)
	v.add(theirs.Op())
	if open, err := v.Sessions(ctx); len(open) > 0 || err != nil {
		t.Errorf("%d sessions are open after the commit: %v", len(open), err)
	}
	condemn.Packs = []log.ObjectID{object(1).ID}
	v.want("condemn it afterwards", condemn.Prune(ctx, v.State), nil)
}

// What a mirror has pinned stays, whatever is condemned after it; what was condemned before does
// not.
func TestPinsKeepObjects(t *testing.T) {
	ctx := context.Background()
	v := newVault(t)
	v.commit(1, 0, object(1), object(2), object(3))
	v.add((&state.Condemn{Packs: []log.ObjectID{object(1).ID}, Bytes: 1}).Op())
	v.add(state.Pin(state.ID{7}))
	v.add((&state.Condemn{Packs: []log.ObjectID{object(2).ID}, Bytes: 2}).Op())
	deletable := func() (ids []log.ObjectID) {
		if err := v.Condemned(ctx, func(id log.ObjectID) bool { ids = append(ids, id); return true }); err != nil {
			t.Fatal(err)
		}
		return ids
	}
	if got := deletable(); !slices.Equal(got, []log.ObjectID{object(1).ID}) {
		t.Errorf("with a pin %v may be deleted", got)
	}
	v.add(state.Arrived(state.ID{7}))
	if got := deletable(); len(got) != 2 {
		t.Errorf("without a pin %v may be deleted", got)
	}
	v.add(state.Gone(deletable()))
	if got := deletable(); len(got) != 0 {
		t.Errorf("%v are gone and may be deleted", got)
	}
	if c := v.Counters(); c != (state.Counters{Points: 1, Packs: 1, Bytes: 3}) {
		t.Errorf("counters %+v", c)
	}
	v.want("condemned names are remembered", func() error {
		c := state.Commit{Added: []log.Object{object(1)}}
		var lost *state.Lost
		if err := c.Check(ctx, v.State); errors.As(err, &lost) {
			return nil
		}
		return errors.New("a condemned pack may be committed")
	}(), nil)
}

// A freed bit goes again when something counts on the slot, and not before.
func TestSharedBitsRevive(t *testing.T) {
	ctx := context.Background()
	v := newVault(t)
	v.commit(1, 0, object(1))
	count := func(id, bits byte) {
		c := state.Commit{Counts: []state.Count{{Pack: object(1).ID, Shared: []byte{bits}}},
			Points: []state.Point{{ID: state.ID{id}}}}
		v.add(c.Op())
	}
	count(2, 0b0001)
	v.add((&state.Freed{Slots: []state.Count{{Pack: object(1).ID, Shared: []byte{0b0110, 1}}}}).Op())
	count(3, 0b0010)
	shared, freed, err := v.Bits(ctx, object(1).ID)
	if err != nil || !slices.Equal(shared, []byte{0b0011}) || !slices.Equal(freed, []byte{0b0100, 1}) {
		t.Errorf("shared %08b, freed %08b: %v", shared, freed, err)
	}
}

// Neighbours are those of the model: what a purge frees by them neither loses nor leaks a chunk.
func TestPurgeFreesWhatNoNeighbourHas(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 9))
		v := newVault(t)
		holds, stored := map[state.ID][]string{}, map[string]bool{}
		var alive []state.ID
		for n := byte(1); n < 14; n++ {
			if len(alive) > 0 && rng.IntN(10) < 4 {
				i := rng.IntN(len(alive))
				id := alive[i]
				alive = slices.Delete(alive, i, i+1)
				p := state.Purge{Points: []state.Purged{{ID: id}}}
				if err := p.Check(ctx, v.State, 0); err != nil {
					t.Fatal(err)
				}
				v.add(p.Op())
				near, err := v.Neighbours(ctx, id, v.Count())
				if err != nil {
					t.Fatal(err)
				}
				for place, c := range holds[id] {
					if !slices.ContainsFunc(near, func(q state.Point) bool { return holds[q.ID][place] == c }) {
						delete(stored, c)
					}
				}
			} else {
				id, base := state.ID{n}, byte(0)
				if len(alive) > 0 && rng.IntN(20) > 0 {
					base = alive[rng.IntN(len(alive))][0]
				}
				for place := range 3 {
					c := fmt.Sprintf("%d.%d", n, place)
					if base > 0 && rng.IntN(10) < 6 {
						c = holds[state.ID{base}][place]
					}
					holds[id] = append(holds[id], c)
					stored[c] = true
				}
				v.commit(n, base)
				alive = append(alive, id)
			}
			needed := map[string]bool{}
			for _, id := range alive {
				for _, c := range holds[id] {
					needed[c] = true
				}
			}
			if len(needed) != len(stored) {
				t.Fatalf("seed %d: %d chunks are needed, %d stored", seed, len(needed), len(stored))
			}
			for c := range needed {
				if !stored[c] {
					t.Fatalf("seed %d: chunk %s was freed and is needed", seed, c)
				}
			}
		}
	}
}
