package vault_test

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// counted counts calls. Listing is one for each object that it shows, but points: they are listed
// to find one.
type counted struct {
	*mem.Store
	count atomic.Int64
}

func (c *counted) calls() int { return int(c.count.Load()) }

func (c *counted) Create(ctx context.Context, name string) (blob.Writer, error) {
	c.count.Add(1)
	return c.Store.Create(ctx, name)
}

func (c *counted) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	c.count.Add(1)
	return c.Store.ReadAt(ctx, name, p, off)
}

func (c *counted) Stat(ctx context.Context, name string) (blob.Info, error) {
	c.count.Add(1)
	return c.Store.Stat(ctx, name)
}

func (c *counted) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	c.count.Add(1)
	return func(yield func(blob.Info, error) bool) {
		for info, err := range c.Store.List(ctx, prefix, after) {
			c.count.Add(1)
			if !yield(info, err) {
				return
			}
		}
	}
}

func (c *counted) Delete(ctx context.Context, name string) error {
	c.count.Add(1)
	return c.Store.Delete(ctx, name)
}

// However many points a disk has, what is done with one of them asks the store for the same:
// listing apart, nothing is read of the others.
func TestPointsDoNotSlowEachOther(t *testing.T) {
	if underRace {
		t.Skip("it counts, or compares, and is run without the race detector")
	}
	ctx := context.Background()
	inner := mem.New()
	key := newVault(t, inner)
	store := &counted{Store: inner}
	v := openVault(t, store, key)
	rng := rand.New(rand.NewPCG(1, 41))
	d := &disk{data: make([]byte, 64*64*testChunk)}
	var last *point.RecoveryPoint
	take := func() {
		at := rng.Int64N(64*64) * testChunk
		s := begin(t, v)
		d.data[at]++
		if err := put(ctx, s, d, extent.Of(extent.Extent{Off: at, Len: testChunk}), nil); err != nil {
			t.Fatal(err)
		}
		last = newPoint("vm", d)
		if err := s.Commit(ctx, last); err != nil {
			t.Fatal(err)
		}
	}
	measure := func() map[string]int {
		first := last
		take()
		calls := make(map[string]int)
		for _, op := range []struct { // in this order: what one has read the next need not
			what string
			do   func() error
		}{
			{"begin", func() error {
				s, err := v.Begin(ctx, "")
				if err == nil {
					s.Abort()
				}
				return err
			}},
			{"find", func() error { _, err := v.Point(ctx, string(first.ID)); return err }},
			{"prefix", func() error { _, err := v.Point(ctx, string(first.ID[:16])); return err }},
			{"diff", func() error {
				_, err := v.Diff(ctx, first.Disks[0].Root, first.Disks[0].Size, last.Disks[0].Root, last.Disks[0].Size)
				return err
			}},
			{"note", func() error { _, err := v.AddNote(ctx, last.ID, "drill", nil); return err }},
		} {
			before := store.calls()
			if err := op.do(); err != nil {
				t.Fatalf("%s: %v", op.what, err)
			}
			calls[op.what] = store.calls() - before
		}
		before := store.calls()
		deletePoint(t, v, first.ID)
		calls["delete"] = store.calls() - before
		return calls
	}
	take()
	few := measure()
	for range 300 {
		take()
	}
	if many := measure(); fmt.Sprint(many) != fmt.Sprint(few) {
		t.Errorf("with 300 points calls of the store are %v, with few %v", many, few)
	}
}
