package session_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/session"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// Every point reads back exactly, in one batch or several, after whatever came before it.
func TestPointsReadBack(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(worlds) / 2 {
		rng := rand.New(rand.NewPCG(seed, 1))
		r := newRoom(t, mem.New())
		r.PackSize = int64(3+rng.IntN(40)) * testChunk
		disks := []*disk{{data: make([]byte, rng.IntN(150*testChunk)+1)}, {data: make([]byte, rng.IntN(9*testChunk)+1)}}
		want := map[point.ID][][]byte{}
		for range 5 {
			s := r.begin(t, "vm")
			for range rng.IntN(4) + 1 {
				for _, d := range disks {
					data, zero := d.scribble(rng)
					if d.root == "" {
						data, zero = whole(d), nil
					}
					if err := put(ctx, s, d, data, zero); err != nil {
						t.Fatal(err)
					}
				}
			}
			p, err := commit(ctx, s, disks...)
			if err != nil {
				t.Fatal(err)
			}
			want[p.ID] = [][]byte{bytes.Clone(disks[0].data), bytes.Clone(disks[1].data)}
		}
		again, err := openRoom(t, r.Store)
		if err != nil {
			t.Fatal(err)
		}
		for id, w := range want {
			again.require(t, id, w...)
		}
	}
}

// A tree to build on, and a tree of a point, must be one that is known.
func TestBases(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(1, 1))
	r := newRoom(t, mem.New())
	d := &disk{data: make([]byte, 9*testChunk)}
	fill(rng, d.data)
	p := r.backUp(t, d)
	s := r.begin(t, "vm")
	without := d.fork()
	without.of = ""
	if err := put(ctx, s, without, nil, nil); !errors.Is(err, session.ErrBase) {
		t.Errorf("a base of no point: %v", err)
	}
	other := d.fork()
	other.of = point.NewID()
	if err := put(ctx, s, other, nil, nil); !errors.Is(err, state.ErrNoPoint) {
		t.Errorf("a base of a point that is not there: %v", err)
	}
	larger := d.fork()
	larger.data = append(larger.data, 1)
	if err := put(ctx, s, larger, nil, nil); !errors.Is(err, session.ErrBase) {
		t.Errorf("a base of another size: %v", err)
	}
	if _, err := commit(ctx, s, d); !errors.Is(err, session.ErrBase) {
		t.Errorf("a point of a tree that the session did not make: %v", err)
	}
	s = r.begin(t, "vm")
	if err := s.Keep(ctx, p.ID); err != nil {
		t.Fatal(err)
	}
	q, err := commit(ctx, s, d)
	if err != nil {
		t.Fatalf("a point of a tree that was kept: %v", err)
	}
	r.require(t, q.ID, d.data)
	if err := put(ctx, s, d, nil, nil); !errors.Is(err, session.ErrOver) {
		t.Errorf("a session that is over stores on: %v", err)
	}
	s = r.begin(t, "vm")
	if err := s.Keep(ctx, p.ID); err != nil {
		t.Fatal(err)
	}
	twice := newPoint("vm", d)
	twice.ID = p.ID
	if err := s.Commit(ctx, twice); !errors.Is(err, state.ErrExists) {
		t.Errorf("a second point of an ID: %v", err)
	}
}
