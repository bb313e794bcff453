package vault_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// commitEmpty commits a point of no disk.
func commitEmpty(t *testing.T, v *vault.Vault, p *point.RecoveryPoint) {
	t.Helper()
	if err := begin(t, v).Commit(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

func namesOf(t *testing.T, s blob.Store, prefix string) (names []string) {
	t.Helper()
	for info, err := range s.List(t.Context(), prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

// listing is a vault whose points are known, and processes that have it open.
type listing struct {
	store *mem.Store
	key   vault.Key
	open  []*vault.Vault
	want  map[point.ID]*point.RecoveryPoint
}

// require checks that everybody lists exactly the points that there are, whatever lists there are.
func (l *listing) require(t *testing.T, seed uint64) {
	t.Helper()
	for _, v := range append(slices.Clone(l.open), openVault(t, l.store, l.key)) {
		whole, err := v.Points(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		heads, err := v.Summaries(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(whole) != len(l.want) || len(heads) != len(l.want) {
			t.Fatalf("seed %d: %d points, %d summaries, want %d", seed, len(whole), len(heads), len(l.want))
		}
		for i, p := range whole {
			want := l.want[p.ID]
			if !reflect.DeepEqual(p, want) {
				t.Fatalf("seed %d: got\n%+v, want\n%+v", seed, p, want)
			}
			p.Definition = point.Definition{Kind: p.Definition.Kind}
			if !reflect.DeepEqual(heads[i], p) {
				t.Fatalf("seed %d: summary\n%+v of\n%+v", seed, heads[i], p)
			}
		}
		latest, err := v.Point(t.Context(), "a@latest")
		if want := l.latest("a"); want == nil != errors.Is(err, vault.ErrNoPoint) || want != nil && (err != nil || latest.ID != want.ID) {
			t.Fatalf("seed %d: the latest is %+v, %v; want %+v", seed, latest, err, want)
		}
	}
}

func (l *listing) latest(vm string) (best *point.RecoveryPoint) {
	for _, p := range l.want {
		if p.VM == vm && !p.IsSnapshot() && (best == nil || p.Time.After(best.Time) || p.Time.Equal(best.Time) && p.ID > best.ID) {
			best = p
		}
	}
	return best
}

// step does something at random.
func (l *listing) step(t *testing.T, rng *rand.Rand) {
	t.Helper()
	v := l.open[rng.IntN(len(l.open))]
	lists := namesOf(t, l.store, "lists/")
	switch rng.IntN(12) {
	case 0: // another process deletes
		for id := range l.want {
			delete(l.want, id)
			deletePoint(t, v, id)
			break
		}
	case 1:
		collect(t, v)
	case 2:
		if len(lists) > 0 {
			name, at, bit := lists[rng.IntN(len(lists))], rng.Float64(), byte(1)<<rng.IntN(8)
			if err := l.store.Corrupt(name, func(b []byte) []byte { b[int(at*float64(len(b)))] ^= bit; return b }); err != nil {
				t.Fatal(err)
			}
		}
	case 3:
		if len(lists) > 0 {
			if err := l.store.Delete(t.Context(), lists[rng.IntN(len(lists))]); err != nil {
				t.Fatal(err)
			}
		}
	case 4:
		l.open[rng.IntN(len(l.open))] = openVault(t, l.store, l.key)
	case 5:
		if _, err := v.Summaries(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	default:
		for range 1 + rng.IntN(12) {
			p := newPoint(string(rune('a' + rng.IntN(2))))
			p.Time = time.Unix(int64(rng.IntN(50)), 0).UTC()
			if rng.IntN(2) == 0 {
				p.Kind, p.Name = point.Snapshot, "s"
				p.Definition = point.Definition{Kind: "image"}
			}
			commitEmpty(t, v, p)
			read, err := openVault(t, l.store, l.key).Point(t.Context(), string(p.ID)) // from its manifest
			if err != nil {
				t.Fatal(err)
			}
			l.want[p.ID] = read
		}
	}
}

// Whatever processes commit, delete, collect, damage and lose, everybody lists the points that there are: with and without lists it is the same.
func TestListsChangeNothing(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 5))
		l := &listing{store: mem.New(), want: map[point.ID]*point.RecoveryPoint{}}
		l.key = newVault(t, l.store)
		l.open = []*vault.Vault{openVault(t, l.store, l.key), openVault(t, l.store, l.key)}
		for range 25 {
			l.step(t, rng)
			l.require(t, seed)
		}
	}
}

// A list of another vault, or under another name, is passed over.
func TestListsOfOthersArePassedOver(t *testing.T) {
	other := mem.New()
	v := openVault(t, other, newVault(t, other))
	for range 20 {
		commitEmpty(t, v, newPoint("theirs"))
	}
	theirs := namesOf(t, other, "lists/")
	if len(theirs) == 0 {
		t.Fatal("no list was written")
	}
	store := mem.New()
	key := newVault(t, store)
	mine := newPoint("mine")
	commitEmpty(t, openVault(t, store, key), mine)
	for _, name := range []string{theirs[0], "lists/" + strings.Repeat("0", 32), "lists/x"} {
		if err := blob.Put(t.Context(), store, name, mustGet(t, other, theirs[0])); err != nil {
			t.Fatal(err)
		}
	}
	points, err := openVault(t, store, key).Summaries(t.Context(), nil)
	if err != nil || len(points) != 1 || points[0].ID != mine.ID {
		t.Fatalf("%d points, %v", len(points), err)
	}
	collect(t, openVault(t, store, key))
	if left := namesOf(t, store, "lists/"); len(left) > 0 {
		t.Errorf("%q are left after a garbage collection", left)
	}
}

// A point that was deleted and comes back as a copy is listed as the copy.
func TestACopyIsListedAsACopy(t *testing.T) {
	store, away := mem.New(), mem.New()
	key, awayKey := newVault(t, store), newVault(t, away)
	v, backup := openVault(t, store, key), openVault(t, away, awayKey)
	p := newPoint("vm")
	commitEmpty(t, v, p)
	for range 40 {
		commitEmpty(t, v, newPoint("vm"))
	}
	copyPoint(t, v, backup, p.ID)
	deletePoint(t, v, p.ID)
	copyPoint(t, backup, v, p.ID)
	for _, v := range []*vault.Vault{v, openVault(t, store, key)} {
		points, err := v.Summaries(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(points, func(q *point.RecoveryPoint) bool { return q.ID == p.ID })
		if i < 0 || points[i].CopiedFrom == nil {
			t.Fatalf("listed at %d of %d, not as a copy", i, len(points))
		}
	}
}

// Finding the latest point of a machine, and listing, take the same few calls of the store with many points as with few.
func TestListsAreFew(t *testing.T) {
	inner := mem.New()
	key := newVault(t, inner)
	store := &counted{Store: inner}
	writer := openVault(t, inner, key)
	most := 0
	for n := 1; n <= 600; n++ {
		commitEmpty(t, writer, newPoint("vm"))
		if n%97 != 0 && n > 20 {
			continue
		}
		v := openVault(t, store, key)
		before := store.calls()
		if _, err := v.Point(context.Background(), "vm@latest"); err != nil {
			t.Fatal(err)
		}
		calls := store.calls() - before
		if n <= 20 {
			most = max(most, calls)
		} else if calls > most+2*10 { // lists are at most as many as 600 can be halved
			t.Errorf("the latest of %d points took %d calls, of few at most %d", n, calls, most)
		}
	}
}
