package log_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// told is the history as it is told, from a position on.
func told(t *testing.T, s blob.Store, head log.Remembered, from log.Position) (all []log.Past) {
	t.Helper()
	err := log.History(t.Context(), s, keysOf(t).Log(), head, from, func(p log.Past) bool {
		all = append(all, p)
		return true
	})
	if err != nil {
		t.Fatalf("history from %s: %v", from, err)
	}
	return all
}

// Whatever is void, closed, rolled, cut or put by one who slept, the history is every entry that
// counts and was not cut, each once, by who wrote it, the newest first; and what is cut is said.
func TestHistory(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 21))
		s := mem.New()
		begin(t, s)
		a := open(t, s, log.Options{Who: "a"})
		b := open(t, s, log.Options{Who: "b"})
		want := map[log.Position]string{{}: ""}
		head := func() log.Remembered { return a.log.Head() }
		note := func(who string) { want[head().At] = who }
		cut := map[log.Volume]bool{}
		for n := range 150 {
			switch rng.IntN(12) {
			case 0:
				putAnyhow(t, s, next(a.log, 1), "garbage")
			case 1:
				err := a.Do(t.Context(), func(l *log.Log) error { return l.Close(t.Context()) })
				if err != nil {
					t.Fatal(err)
				}
				note("")
			case 2:
				v := log.Volume{Number: uint32(rng.IntN(int(head().At.Volume.Number) + 1))}
				if v != head().At.Volume {
					cutVolume(t, a, s, v)
					cut[v] = true
					slept := log.Position{Volume: v, Number: uint32(1 + rng.IntN(5))}
					putAnyhow(t, s, log.EntryName(slept), "slept")
				}
			case 3:
				b.mustCommit(t, 1000+n, 1001+n)
				if err := a.Do(t.Context(), func(l *log.Log) error { return l.Read(t.Context()) }); err != nil {
					t.Fatal(err)
				}
				note("b")
			default:
				a.mustCommit(t, n, n+1)
				note("a")
			}
		}
		all := told(t, s, head(), log.Position{})
		requirePast(t, all, want, cut, head().At)
		for range 5 {
			from := all[rng.IntN(len(all)-1)].At // the last, 0.0, asks for all
			part := told(t, s, head(), from)
			i := slices.IndexFunc(all, func(p log.Past) bool { return p.At == from })
			if len(part) != len(all)-i || part[0].Hash != all[i].Hash {
				t.Fatalf("seed %d: from %s there are %d entries, want %d", seed, from, len(part), len(all)-i)
			}
		}
	}
}

func putAnyhow(t *testing.T, s blob.Store, name, text string) {
	t.Helper()
	if err := blob.Put(t.Context(), s, name, []byte(text)); err != nil && !errors.Is(err, blob.ErrExist) {
		t.Fatal(err)
	}
}

func requirePast(t *testing.T, all []log.Past, want map[log.Position]string, cut map[log.Volume]bool,
	head log.Position,
) {
	t.Helper()
	seen := map[log.Position]bool{}
	gaps := map[log.Volume]uint32{}
	for i, p := range all {
		if i == 0 && p.At != head || i > 0 && p.At.Compare(all[i-1].At) >= 0 || seen[p.At] {
			t.Fatalf("entry %s after %d others, of which the newest is %s", p.At, i, all[0].At)
		}
		who, ok := want[p.At]
		if !ok && p.Who != "" || ok && who != p.Who { // ends and begins of volumes by the way
			t.Fatalf("entry %s is said to be of %q, want %q", p.At, p.Who, who)
		}
		seen[p.At] = true
		gaps[p.At.Volume] = max(gaps[p.At.Volume], p.Cut)
	}
	for at := range want {
		if !seen[at] && (!cut[at.Volume] || at.Number > gaps[at.Volume]) {
			t.Fatalf("entry %s is not told, and of its volume %d are said to be cut", at, gaps[at.Volume])
		}
	}
}

// A history with a hole where nothing was cut is damage.
func TestHistoryTellsDamage(t *testing.T) {
	s := mem.New()
	begin(t, s)
	a := open(t, s, log.Options{})
	a.mustCommit(t, 0, 100)
	if err := s.Delete(t.Context(), log.EntryName(log.Position{Number: 40})); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := log.History(t.Context(), s, keysOf(t).Log(), a.log.Head(), log.Position{},
		func(log.Past) bool { n++; return true })
	if n != 60 || !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("after %d entries: %v", n, err)
	}
}

// Who writes is told to whoever has the key, at most 64 bytes of it, and to nobody else.
func TestWhoWrote(t *testing.T) {
	s := mem.New()
	begin(t, s)
	name := "root@häuser.example holdfast[4711] and some more words that nobody needs"
	a := open(t, s, log.Options{Who: name})
	a.mustCommit(t, 0, 1)
	got := told(t, s, a.log.Head(), log.Position{})[0]
	if n := len(got.Who); n > 64 || n < 60 || got.Who != name[:n] {
		t.Errorf("who wrote reads as %q", got.Who)
	}
	mirror := log.MirrorKeys(keysOf(t).Log().LogKey())
	err := log.History(context.Background(), s, mirror, a.log.Head(), log.Position{}, func(p log.Past) bool {
		if p.Who != "" {
			t.Errorf("a mirror reads that %q wrote", p.Who)
		}
		return true
	})
	if err != nil {
		t.Error(err)
	}
	raw, err := blob.Get(t.Context(), s, log.EntryName(got.At))
	if err != nil || bytes.Contains(raw, []byte("root@")) {
		t.Errorf("the name stands in the clear: %v", err)
	}
}
