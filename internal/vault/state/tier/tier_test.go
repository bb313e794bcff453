package tier_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/vault/state/tier"
)

// shelf keeps parts in memory and counts.
type shelf struct {
	parts map[string][]byte
	puts  int
	rows  int // that were put
	fail  bool
}

func (s *shelf) Put(_ context.Context, from, to uint64, rows []tier.Row) (tier.Part, error) {
	if s.fail {
		return tier.Part{}, errors.New("store is full")
	}
	plain := tier.Encode(from, to, rows)
	p := tier.Part{From: from, To: to, Size: uint32(len(plain))}
	binary.BigEndian.PutUint64(p.Salt[:], uint64(len(s.parts)))
	s.parts[string(p.Salt[:])] = plain
	s.puts++
	s.rows += len(rows)
	return p, nil
}

func (s *shelf) Get(_ context.Context, p tier.Part) ([]tier.Row, error) {
	return tier.Decode(s.parts[string(p.Salt[:])], p.From, p.To)
}

// sums are rows of which those of the table + add up.
type sums struct{}

func (sums) Adds(key []byte) bool { return key[0] == '+' }
func (sums) Keep(tier.Row) bool   { return true }
func (sums) Join(older, newer tier.Row) tier.Row {
	if older.Gone || newer.Gone {
		return newer
	}
	return tier.Row{Key: newer.Key, Value: append(slices.Clone(older.Value), newer.Value...)}
}

// What tiers hold is what a plain map would, however rows come, go, add up and are merged.
func TestTiersAreAMap(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(5) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s := &shelf{parts: map[string][]byte{}}
		tiers, want := tier.New(s, sums{}, nil), map[string]string{}
		for range 300 {
			now := map[string]tier.Row{}
			for range rng.IntN(20) {
				k := fmt.Sprintf("%c%03d", "+abc"[rng.IntN(4)], rng.IntN(200))
				row := tier.Row{Key: []byte(k)}
				if _, again := now[k]; again {
					continue
				}
				if rng.IntN(4) == 0 && k[0] != '+' { // what adds up is not put again once it is gone
					row.Gone = true
					delete(want, k)
				} else if row.Value = []byte{byte(rng.Uint32())}; k[0] == '+' {
					want[k] += string(row.Value)
				} else {
					want[k] = string(row.Value)
				}
				now[k] = row
			}
			tiers.Add(tier.Sorted(now, nil), func(tier.Row) bool { return true })
			if rng.IntN(5) == 0 {
				if err := tiers.Settle(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
		requireMap(t, tiers, want)
		tiers.Warm(ctx, []byte("a001"), []byte("b100"))
		if n := len(tiers.Runs); n > 7*3 {
			t.Errorf("%d runs of 300 stretches", n)
		}
		if len(s.parts) > 0 && s.rows > 300*10*4 {
			t.Errorf("%d rows were written", s.rows)
		}
	}
}

func requireMap(t *testing.T, tiers *tier.Tiers, want map[string]string) {
	t.Helper()
	ctx := context.Background()
	for n := range 200 {
		for _, table := range "+abc" {
			k := fmt.Sprintf("%c%03d", table, n)
			row, ok, err := tiers.Get(ctx, []byte(k))
			v, there := want[k]
			if err != nil || ok != there || ok && string(row.Value) != v {
				t.Fatalf("%s is %q, %v, want %q, %v: %v", k, row.Value, ok, v, there, err)
			}
		}
	}
	for _, prefix := range []string{"", "a", "b1", "+", "c19", "z"} {
		got := map[string]string{}
		last := ""
		for row, err := range tiers.Scan(ctx, []byte(prefix)) {
			if err != nil || last != "" && string(row.Key) <= last {
				t.Fatalf("scan %q: %s after %s: %v", prefix, row.Key, last, err)
			}
			last = string(row.Key)
			got[last] = string(row.Value)
		}
		some := maps.Clone(want)
		maps.DeleteFunc(some, func(k, _ string) bool { return !bytes.HasPrefix([]byte(k), []byte(prefix)) })
		if !maps.Equal(got, some) {
			t.Fatalf("scan %q shows %d rows, want %d", prefix, len(got), len(some))
		}
	}
}

// A store that takes nothing loses nothing: what was added stays, and is stored later.
func TestSettleAgain(t *testing.T) {
	s := &shelf{parts: map[string][]byte{}, fail: true}
	tiers := tier.New(s, sums{}, nil)
	want := map[string]string{}
	for i := range 20 {
		k := fmt.Sprintf("a%03d", i)
		want[k] = "x"
		tiers.Add([]tier.Row{{Key: []byte(k), Value: []byte("x")}}, func(tier.Row) bool { return true })
		if err := tiers.Settle(context.Background()); err == nil {
			t.Fatal("settled on a full store")
		}
	}
	requireMap(t, tiers, want)
	s.fail = false
	if err := tiers.Settle(context.Background()); err != nil {
		t.Fatal(err)
	}
	requireMap(t, tiers, want)
}

// Rows are refused or read as what makes the same rows.
func FuzzRows(f *testing.F) {
	f.Add(tier.Encode(1, 2, []tier.Row{{Key: []byte("a"), Value: []byte("x")}, {Key: []byte("ab"), Gone: true}})[24:])
	f.Fuzz(func(t *testing.T, b []byte) {
		rows, _, err := tier.ReadRows(b)
		if err != nil {
			return
		}
		again, rest, err := tier.ReadRows(tier.AppendRows(nil, rows))
		if err != nil || len(rest) > 0 || len(again) != len(rows) {
			t.Errorf("%d rows read as %d: %v", len(rows), len(again), err)
		}
	})
}
