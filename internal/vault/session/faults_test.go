package session_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/blob/fault"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/durable"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// The encoder of rows is begun outside of any bubble, as it serves all.
var _, _ = row.EncodeManifest(&row.Manifest{})

// history is what a run of sessions was told has happened.
type history struct {
	sealed map[point.ID][]byte // acknowledged points and what each must hold
	unsure map[point.ID][]byte // points whose commit returned an error
	disk   *disk
	rng    *rand.Rand
}

func newHistory(seed uint64) *history {
	return &history{sealed: map[point.ID][]byte{}, unsure: map[point.ID][]byte{}, rng: rand.New(rand.NewPCG(seed, 7)),
		disk: &disk{data: make([]byte, 9*testChunk+100)}}
}

// run stores some points, with entries of progress on the way, until it is done or something fails.
func (h *history) run(ctx context.Context, t *testing.T, s blob.Store) error {
	r, err := openRoom(t, s)
	if err != nil {
		return err
	}
	defer r.Journal.Close()
	r.Workers, r.PackSize, r.EveryBytes = 1, 3*testChunk, 1
	for range 3 {
		if err := h.backUp(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func (h *history) backUp(ctx context.Context, r *room) error {
	s, err := r.Begin(ctx, "vm")
	if err != nil {
		return err
	}
	defer s.Abort()
	data, zero := h.disk.scribble(h.rng)
	if h.disk.root == "" {
		data, zero = whole(h.disk), nil
	}
	if err := put(ctx, s, h.disk, data, zero); err != nil {
		return err
	}
	p := newPoint("vm", h.disk)
	h.unsure[p.ID] = bytes.Clone(h.disk.data)
	if err := s.Commit(ctx, p); err != nil {
		return err
	}
	h.sealed[p.ID] = h.unsure[p.ID]
	h.disk.of = p.ID
	delete(h.unsure, p.ID)
	return nil
}

// verify opens what is left and demands every acknowledged point; one in doubt is there whole or
// not at all.
func (h *history) verify(t *testing.T, s blob.Store) error {
	r, err := openRoom(t, s)
	if err != nil {
		return err
	}
	defer r.Journal.Close()
	if err := r.Index.Sync(t.Context()); err != nil {
		return err
	}
	var found []*row.Row
	err = r.Journal.View(t.Context(), func(st *state.State) error {
		var bad error
		err := st.Points(t.Context(), func(p state.Point) bool {
			var of *row.Row
			of, bad = row.Decode(p.Manifest)
			found = append(found, of)
			return bad == nil
		})
		return errors.Join(err, bad)
	})
	if err != nil {
		return err
	}
	for id := range h.sealed {
		if !slices.ContainsFunc(found, func(f *row.Row) bool { return f.Point.ID == id }) {
			return fmt.Errorf("point %s was acknowledged, and is not there", id)
		}
	}
	for _, f := range found {
		if err := h.readBack(t, r, f); err != nil {
			return fmt.Errorf("point %s: %w", f.Point.ID, err)
		}
	}
	return nil
}

func (h *history) readBack(t *testing.T, r *room, f *row.Row) error {
	want, ok := h.sealed[f.Point.ID]
	if !ok {
		want, ok = h.unsure[f.Point.ID]
	}
	if !ok {
		return errors.New("it was never written")
	}
	got, err := r.read(t.Context(), f.Point.Disks[0])
	if err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("it does not read back: %w", err)
	}
	m, err := r.manifest(t.Context(), f)
	if err != nil || m.Point.ID != f.Point.ID || !slices.Equal(m.Trees, f.Trees) {
		return fmt.Errorf("its manifest does not read back: %w", err)
	}
	return nil
}

// again stores another point, after what went wrong before, and demands all once more.
func (h *history) again(t *testing.T, s blob.Store) error {
	h.disk.root, h.disk.used, h.disk.of = "", 0, "" // its last point is in doubt
	r, err := openRoom(t, s)
	if err != nil {
		return err
	}
	defer r.Journal.Close()
	r.Gone = func([]byte) bool { return true }
	if err := h.backUp(t.Context(), r); err != nil {
		return err
	}
	return h.verify(t, s)
}

// Whichever call of the store fails, and whether or not it took effect: the error is passed on,
// what was acknowledged reads back, nothing is left running, and the next session works.
func TestEveryFailingCall(t *testing.T) {
	boom := errors.New("boom")
	for first, inject := range []func(*fault.Store, int){
		func(f *fault.Store, i int) { f.FailCall(i, boom) },
		func(f *fault.Store, i int) { f.LoseReply(i, boom) },
		func(f *fault.Store, i int) { f.FailCall(i, blob.ErrNoSpace) },
	} {
		for i, done := first%stride, false; !done; i += stride {
			synctest.Test(t, func(t *testing.T) {
				inner := mem.New()
				initLog(t, inner)
				f := fault.New(inner)
				inject(f, i)
				h := newHistory(5)
				err := h.run(t.Context(), t, f)
				if err != nil && !errors.Is(err, boom) && !errors.Is(err, blob.ErrNoSpace) {
					t.Fatalf("call %d: %v", i, err)
				}
				done = f.Calls() <= i
				if err := h.verify(t, inner); err != nil {
					t.Fatalf("call %d: %v", i, err)
				}
				if err := h.again(t, inner); err != nil {
					t.Fatalf("after failing call %d: %v", i, err)
				}
			})
		}
	}
}

// Wherever power fails, what was acknowledged reads back exactly, and the next session works.
func TestPowerFailsAtEveryWrite(t *testing.T) {
	for n, done := 0, false; !done; n += stride {
		synctest.Test(t, func(t *testing.T) {
			fs := durable.NewCrashable(durable.Never)
			if err := durable.MkdirAll(fs, "/vault"); err != nil {
				t.Fatal(err)
			}
			store := dir.On(fs, "/vault")
			initLog(t, store)
			fs.CrashAt(fs.Calls() + n)
			h := newHistory(9)
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			err := h.run(ctx, t, store)
			if done = err == nil; done {
				return
			}
			after := dir.On(fs.AfterCrash(rand.New(rand.NewPCG(1, uint64(n)))), "/vault")
			if err := h.verify(t, after); err != nil {
				t.Fatalf("crash at %d: %v", n, err)
			}
			if err := h.again(t, after); err != nil {
				t.Fatalf("after the crash at %d: %v", n, err)
			}
		})
	}
}

// A context that ends at any call ends the session: what was acknowledged reads back, and nothing
// is left running.
func TestContextEndsAtEveryCall(t *testing.T) {
	for i, done := 0, false; !done; i += stride {
		synctest.Test(t, func(t *testing.T) {
			inner := mem.New()
			initLog(t, inner)
			ctx, cancel := context.WithCancel(t.Context())
			c := &cancelling{Store: inner, left: i, cancel: cancel}
			h := newHistory(3)
			err := h.run(ctx, t, c)
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Fatalf("call %d: %v", i, err)
			}
			done = ctx.Err() == nil
			cancel()
			if err := h.verify(t, inner); err != nil {
				t.Fatalf("call %d: %v", i, err)
			}
			if err := h.again(t, inner); err != nil {
				t.Fatalf("after call %d: %v", i, err)
			}
		})
	}
}
