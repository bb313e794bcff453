package state_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// Points are found by their words, the newest first, while they live, and by no other word.
func TestFound(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(4, 4))
	v := newVault(t)
	words := []string{"a", "ab", "b", strings.Repeat("x", 255)}
	var points []state.Point
	for n := range 60 {
		p := state.Point{ID: state.ID{byte(n + 1)}, Time: rng.Int64N(40)}
		for _, w := range words {
			if rng.IntN(2) == 0 {
				p.Finds = append(p.Finds, w)
			}
		}
		points = append(points, p)
		v.add((&state.Commit{Points: []state.Point{p}}).Op())
		if rng.IntN(3) == 0 {
			i := rng.IntN(len(points))
			purge := state.Purge{Points: []state.Purged{{ID: points[i].ID}}}
			if err := purge.Check(ctx, v.State, 0); err != nil {
				t.Fatal(err)
			}
			v.add(purge.Op())
			points = slices.Delete(points, i, i+1)
		}
		for _, w := range append(words, "", "x", "aa") {
			want := map[state.ID]int64{}
			for _, p := range points {
				if slices.Contains(p.Finds, w) {
					want[p.ID] = p.Time
				}
			}
			last := int64(100)
			err := v.Found(ctx, w, func(id state.ID, time int64) bool {
				if at, ok := want[id]; !ok || at != time || time > last {
					t.Fatalf("%q finds %x of %d after one of %d", w, id[:1], time, last)
				}
				last = time
				delete(want, id)
				return true
			})
			if err != nil || len(want) > 0 {
				t.Fatalf("%q does not find %d points: %v", w, len(want), err)
			}
		}
	}
}

func TestDeletionsAreChecked(t *testing.T) {
	ctx := context.Background()
	v := newVault(t)
	v.commit(1, 0, object(1))
	v.commit(2, 0, object(2))
	both := []state.ID{{1}, {2}}
	d := state.Delete{Points: both, Until: 70}
	u := state.Undelete{Points: both[:1]}
	v.want("undelete what lives", u.Check(ctx, v.State), state.ErrNoChange)
	h := state.Hold{Point: state.ID{2}, ID: state.ID{9}, Holder: []byte("export")}
	v.add(h.Op())
	v.want("delete what is held", d.Check(ctx, v.State, 5), state.ErrHeld)
	v.add(h.Release())
	v.add((&state.Lock{Point: state.ID{1}, Until: 50}).Op())
	v.want("delete what is locked", d.Check(ctx, v.State, 49), state.ErrLocked)
	v.want("delete", d.Check(ctx, v.State, 50), nil)
	v.add(d.Op())
	v.want("delete again", d.Check(ctx, v.State, 50), state.ErrNoChange)
	later := state.Delete{Points: both, Until: 80}
	v.want("delete until later", later.Check(ctx, v.State, 50), nil)
	got := map[state.ID]int64{}
	if err := v.EachDeleted(ctx, func(id state.ID, until int64) bool { got[id] = until; return true }); err != nil ||
		len(got) != 2 || got[both[1]] != 70 {
		t.Errorf("deleted are %v: %v", got, err)
	}
	v.want("undelete", u.Check(ctx, v.State), nil)
	v.add(u.Op())
	v.want("undelete again", u.Check(ctx, v.State), state.ErrNoChange)
	v.add((&state.Purge{Points: []state.Purged{{ID: both[1]}}}).Op())
	v.want("undelete what was purged", (&state.Undelete{Points: both[1:]}).Check(ctx, v.State), state.ErrNoPoint)
	v.want("delete what was purged", (&state.Delete{Points: both[1:]}).Check(ctx, v.State, 50), state.ErrNoPoint)
	v.want("purge twice at once", (&state.Purge{Points: []state.Purged{{ID: both[0]}, {ID: both[0]}}}).Check(ctx,
		v.State, 50), state.ErrNoPoint)
}

// While a purge was not walked its point is no point any more, and no base; and its ID stays taken.
func TestPendingPointsDoNotLive(t *testing.T) {
	ctx := context.Background()
	v := newVault(t)
	v.commit(1, 0, object(1))
	v.commit(2, 1, object(2))
	v.commit(3, 1, object(3))
	v.add((&state.Purge{Points: []state.Purged{{ID: state.ID{1}}}}).Op())
	if _, ok, err := v.Point(ctx, state.ID{1}); ok || err != nil {
		t.Errorf("a purged point lives: %v", err)
	}
	var all []state.ID
	if err := v.Points(ctx, func(p state.Point) bool { all = append(all, p.ID); return true }); err != nil ||
		!slices.Equal(all, []state.ID{{2}, {3}}) || v.Counters().Points != 2 {
		t.Errorf("%v live, %d are counted: %v", all, v.Counters().Points, err)
	}
	c := state.Commit{Points: []state.Point{{ID: state.ID{4}, Bases: []state.ID{{1}}}}}
	var lost *state.Lost
	if err := c.Check(ctx, v.State); !errors.As(err, &lost) || len(lost.Bases) != 1 {
		t.Errorf("commit on a purged point: %v", err)
	}
	v.want("commit a purged point", (&state.Commit{Points: []state.Point{{ID: state.ID{1}}}}).Check(ctx, v.State),
		state.ErrExists)
	f := state.Freed{Walk: []state.Walk{{Point: state.ID{1}, At: v.Count(), Done: true}}}
	v.want("walk", f.Check(ctx, v.State), nil)
	v.add(f.Op())
	v.want("commit what was walked", (&state.Commit{Points: []state.Point{{ID: state.ID{1}}}}).Check(ctx, v.State),
		state.ErrExists)
	near, err := v.Neighbours(ctx, state.ID{2}, v.Count()+1)
	if err != nil || len(near) != 1 || near[0].ID != (state.ID{3}) {
		t.Errorf("the neighbours of one of two children are %v: %v", near, err)
	}
}

// Whoever remembers a count is told of the packs since then that are good, in the order of entries.
func TestAddedSince(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(6, 6))
	v := newVault(t)
	added := map[log.ObjectID]uint64{}
	for n := range byte(150) {
		v.commit(n+1, 0, object(n+1))
		added[object(n+1).ID] = v.Count()
		if rng.IntN(3) == 0 {
			c := state.Condemn{MarkAt: v.Count(), Last: v.LastCondemn(),
				Packs: []log.ObjectID{object(byte(rng.IntN(int(n)+1)) + 1).ID}}
			if err := c.Prune(ctx, v.State); err == nil {
				v.add(c.Op())
				delete(added, c.Packs[0])
			}
		}
	}
	for _, since := range []uint64{0, 1, 2, 70, v.Count() - 1, v.Count()} {
		want := 0
		for _, at := range added {
			if at > since {
				want++
			}
		}
		last, got := uint64(0), 0
		err := v.AddedSince(ctx, since, func(o log.Object, at uint64) bool {
			if at <= since || at < last || added[o.ID] != at {
				t.Errorf("since %d: pack %s of entry %d, after one of %d", since, o.ID, at, last)
			}
			last = at
			got++
			return true
		})
		if err != nil || got != want {
			t.Errorf("since %d there are %d packs, want %d: %v", since, got, want, err)
		}
	}
}

// On damaged packs nobody counts any more but the session that adds them; they stay good.
func TestDamagedPacks(t *testing.T) {
	ctx := context.Background()
	v := newVault(t)
	v.commit(1, 0, object(1), object(2))
	x := state.Damaged{Packs: []log.ObjectID{object(1).ID, object(7).ID}}
	v.want("say that packs are damaged", x.Check(ctx, v.State), nil)
	v.add(x.Op())
	if len(x.Packs) != 1 {
		t.Errorf("%d packs are said to be damaged, one is good", len(x.Packs))
	}
	v.want("say it again", x.Check(ctx, v.State), state.ErrNoChange)
	c := state.Commit{Added: []log.Object{object(3)}, Points: []state.Point{{ID: state.ID{2}}},
		Counts: []state.Count{{Pack: object(1).ID}, {Pack: object(2).ID}, {Pack: object(3).ID, Shared: []byte{1}}}}
	var lost *state.Lost
	if err := c.Check(ctx, v.State); !errors.As(err, &lost) || !slices.Equal(lost.Counts,
		[]log.ObjectID{object(1).ID}) {
		t.Errorf("commit: %v, %+v", err, lost)
	}
	p := state.Progress{Counts: c.Counts, Added: c.Added}
	if err := p.Check(ctx, v.State); !errors.As(err, &lost) || len(lost.Counts) != 1 {
		t.Errorf("progress: %v, %+v", err, lost)
	}
	if _, good, err := v.Good(ctx, object(1).ID); !good || err != nil {
		t.Errorf("a damaged pack is not good: %v", err)
	}
	gone := state.Condemn{Packs: []log.ObjectID{object(1).ID}, MarkAt: v.Count(), Last: v.LastCondemn()}
	v.want("condemn it", gone.Prune(ctx, v.State), nil)
	v.add(gone.Op())
	n := 0
	if err := v.DamagedPacks(ctx, func(log.ObjectID) bool { n++; return true }); err != nil || n != 0 {
		t.Errorf("%d condemned packs are damaged: %v", n, err)
	}
	if dying, err := v.Dying(ctx, object(1).ID); !dying || err != nil {
		t.Errorf("a condemned pack is not dying: %v", err)
	}
	v.add(state.Gone(gone.Packs))
	if dying, err := v.Dying(ctx, object(1).ID); dying || err != nil {
		t.Errorf("one that is gone is dying: %v", err)
	}
}

// A purge of many points is cut to what an entry has room for.
func TestPurgesFitAnEntry(t *testing.T) {
	var p state.Purge
	for n := range 5000 {
		p.Points = append(p.Points, state.Purged{ID: state.ID{byte(n), byte(n >> 8)},
			Finds: []string{fmt.Sprint("machine ", n), strings.Repeat("x", n%200+1)}})
	}
	total := 0
	for rest := p.Points; len(rest) > 0; {
		p.Points = rest
		rest = p.Fit()
		op := p.Op()
		if n := op.Size(); n > log.MaxEntry-4096 || len(rest) > 0 && n < 50000 {
			t.Errorf("a purge of %d points takes %d bytes", len(p.Points), n)
		}
		total += len(p.Points)
	}
	if total != 5000 {
		t.Errorf("%d points are purged, want 5000", total)
	}
}
