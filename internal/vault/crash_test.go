package vault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/blob/fault"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/durable"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// history is what a run of sessions, deletions and garbage collections was told has happened.
type history struct {
	sealed  map[point.ID][]byte       // acknowledged points and what each must hold
	unsure  map[point.ID][]byte       // points whose commit returned an error, or that were being deleted
	notes   map[point.ID][]vault.Note // acknowledged
	current *disk
}

func newHistory() *history {
	return &history{sealed: map[point.ID][]byte{}, unsure: map[point.ID][]byte{}, notes: map[point.ID][]vault.Note{},
		current: &disk{data: make([]byte, 9*testChunk+100)}}
}

// run does random work on the vault in s until it is done or something fails. Its sequence depends
// on rng alone.
func (h *history) run(ctx context.Context, s blob.Store, key vault.Key, rng *rand.Rand) error {
	v, err := vault.Open(ctx, s, key, vault.Options{Workers: 1, PackSize: 3 * testChunk})
	if err != nil {
		return err
	}
	for range 3 {
		if err := h.backUp(ctx, v, rng); err != nil {
			return err
		}
		ids := sortedIDs(h.sealed)
		if err := h.note(ctx, v, ids[rng.IntN(len(ids))], rng); err != nil {
			return err
		}
		if rng.IntN(2) == 0 {
			id := ids[rng.IntN(len(ids))]
			h.unsure[id] = h.sealed[id]
			delete(h.sealed, id)
			delete(h.notes, id) // they go with it
			if h.current.of == id {
				h.current.root, h.current.used = "", 0 // a base must be of a point that is there
			}
			if err := v.PurgePoint(ctx, id); err != nil {
				return err
			}
			delete(h.unsure, id)
			if _, err := v.CollectGarbage(ctx, vault.GCOptions{}); err != nil {
				return err
			}
		}
	}
	return nil
}

func sortedIDs(m map[point.ID][]byte) []point.ID {
	var ids []point.ID
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (h *history) backUp(ctx context.Context, v *vault.Vault, rng *rand.Rand) error {
	s, err := v.Begin(ctx, "")
	if err != nil {
		return err
	}
	data, zero := h.current.scribble(rng)
	// The disk as it is now, against nothing: a machine whose last point is in doubt is read whole.
	whole := extent.Of(extent.Extent{Len: int64(len(h.current.data))})
	if h.current.root == "" {
		data, zero = whole, nil
	}
	if err := put(ctx, s, h.current, data, zero); err != nil {
		s.Abort()
		return err
	}
	p := newPoint("vm", h.current)
	p.ID = point.ID(fmt.Sprintf("%032x", rng.Uint64()))
	h.current.of = p.ID
	h.unsure[p.ID] = bytes.Clone(h.current.data)
	if err := s.Commit(ctx, p); err != nil {
		return err
	}
	h.sealed[p.ID] = h.unsure[p.ID]
	delete(h.unsure, p.ID)
	return nil
}

// note attaches a note to a point, or takes one away.
func (h *history) note(ctx context.Context, v *vault.Vault, id point.ID, rng *rand.Rand) error {
	if of := h.notes[id]; len(of) > 0 {
		h.notes[id] = of[1:]
		return v.DeleteNote(ctx, id, of[0].ID)
	}
	n, err := v.AddNote(ctx, id, vault.NoteDrill, fmt.Appendf(nil, "note %d of %s", rng.Uint64(), id))
	if err == nil {
		h.notes[id] = append(h.notes[id], n)
	}
	return err
}

// requireNotes demands every acknowledged note of a point; one in doubt is there whole or not at
// all.
func (h *history) requireNotes(ctx context.Context, v *vault.Vault, id point.ID) error {
	got, err := v.Notes(ctx, id, "")
	if err != nil {
		return err
	}
	for _, want := range h.notes[id] {
		if !slices.ContainsFunc(got, func(n vault.Note) bool {
			return n.ID == want.ID && bytes.Equal(n.Body, want.Body)
		}) {
			return fmt.Errorf("note %s of point %s is gone, %v are there", want.ID, id, got)
		}
	}
	for _, n := range got {
		if !bytes.HasSuffix(n.Body, []byte("of "+string(id))) {
			return fmt.Errorf("note %s of point %s reads as %q", n.ID, id, n.Body)
		}
	}
	return nil
}

// verify opens what is left and demands every acknowledged point; a point in doubt is there whole
// or not at all.
func (h *history) verify(s blob.Store, key vault.Key) error {
	ctx := context.Background()
	v, err := vault.Open(ctx, s, key, vault.Options{Workers: 1})
	if err != nil {
		return err
	}
	points, err := v.Points(ctx)
	if err != nil {
		return err
	}
	found := 0
	for _, p := range points {
		want, sealed := h.sealed[p.ID]
		if sealed {
			found++
		} else if want = h.unsure[p.ID]; want == nil {
			return fmt.Errorf("point %s was never written, or was deleted", p.ID)
		}
		got, err := restore(ctx, v, p.Disks[0])
		if err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("point %s (acknowledged: %v) does not read back: %v", p.ID, sealed, err)
		}
		if err := h.requireNotes(ctx, v, p.ID); err != nil {
			return err
		}
	}
	if found != len(h.sealed) {
		return fmt.Errorf("%d of %d acknowledged points are there", found, len(h.sealed))
	}
	report, err := v.Check(ctx, vault.CheckOptions{ReadData: true})
	if err != nil || len(report.Damage)+len(report.Warnings) > 0 {
		return fmt.Errorf("check: %v %v %v", report.Damage, report.Warnings, err)
	}
	return nil
}

// Whatever was done and wherever power failed, what was acknowledged reads back exactly; the vault
// is without damage, and the next garbage collection leaves nothing that no point needs.
func TestPointsSurviveACrashAtEveryWrite(t *testing.T) {
	for seed := range uint64(2) {
		calls := 1
		for n := 0; n < calls; n += stride + 6*int(seed) {
			fs := durable.NewCrashable(durable.Never)
			store, key := onDisk(t, fs)
			h := newHistory()
			before := fs.Calls()
			fs.CrashAt(before + n)
			dying, cancel := context.WithCancel(context.Background())
			err := h.run(dying, &ending{Store: store, end: cancel}, key, rand.New(rand.NewPCG(seed, 7)))
			lost := dying.Err() != nil
			cancel()
			if err == nil {
				calls = 0 // it ran to its end: every call has been tried
				break
			}
			calls = n + 1 + stride + 6*int(seed)
			if !lost {
				t.Fatalf("seed %d, crash at %d: %v", seed, n, err)
			}
			after := dir.On(fs.AfterCrash(rand.New(rand.NewPCG(seed, uint64(n)))), "/vault")
			if err := h.verify(after, key); err != nil {
				t.Fatalf("seed %d, crash at %d: %v", seed, n, err)
			}
			requireNoGarbage(t, after, key)
		}
	}
}

// ending is the store as somebody sees it who ends with it: after the power went nobody asks on.
type ending struct {
	blob.Store
	end func()
}

func (e *ending) look(err error) error {
	if errors.Is(err, durable.ErrPowerLost) {
		e.end()
	}
	return err
}

func (e *ending) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := e.Store.Create(ctx, name)
	return &endingWriter{w, e}, e.look(err)
}

func (e *ending) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	n, err := e.Store.ReadAt(ctx, name, p, off)
	return n, e.look(err)
}

func (e *ending) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		for i, err := range e.Store.List(ctx, prefix, after) {
			if !yield(i, e.look(err)) {
				return
			}
		}
	}
}

func (e *ending) Settle(ctx context.Context, name string) error {
	return e.look(e.Store.Settle(ctx, name))
}

func (e *ending) Absent(ctx context.Context, name string) (bool, error) {
	absent, err := e.Store.Absent(ctx, name)
	return absent, e.look(err)
}

func (e *ending) Delete(ctx context.Context, name string) error {
	return e.look(e.Store.Delete(ctx, name))
}

type endingWriter struct {
	blob.Writer
	e *ending
}

func (w *endingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	return n, w.e.look(err)
}

func (w *endingWriter) Commit(ctx context.Context) error { return w.e.look(w.Writer.Commit(ctx)) }

func onDisk(t *testing.T, fs durable.FS) (blob.Store, vault.Key) {
	t.Helper()
	if err := durable.MkdirAll(fs, "/vault"); err != nil {
		t.Fatal(err)
	}
	store := dir.On(fs, "/vault")
	return store, newVault(t, store)
}

// requireNoGarbage collects twice, then demands that packs hold what the points need and nothing
// more than half as much again.
func requireNoGarbage(t *testing.T, s blob.Store, key vault.Key) {
	t.Helper()
	ctx := context.Background()
	v := openVault(t, s, key)
	for range 2 {
		if _, err := v.CollectGarbage(ctx, vault.GCOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	plan, err := v.CollectGarbage(ctx, vault.GCOptions{DryRun: true})
	if err != nil || plan.DeadPacks+plan.ThinPacks+plan.WaitingPacks+plan.Notes > 0 {
		t.Fatalf("garbage is left: %+v %v", plan, err)
	}
}

// Whichever call of the store fails, and whether or not it took effect, the error is reported, what
// was acknowledged reads back, and the next run works.
func TestPointsSurviveEveryFailingCall(t *testing.T) {
	boom := errors.New("boom")
	for first, inject := range []func(*fault.Store, int){
		func(f *fault.Store, i int) { f.FailCall(i, boom) },
		func(f *fault.Store, i int) { f.LoseReply(i, boom) },
	} {
		for i := first; ; i += 2 * stride {
			inner := mem.New()
			key := newVault(t, inner)
			f := fault.New(inner)
			inject(f, i)
			h := newHistory()
			rng := rand.New(rand.NewPCG(5, 7))
			err := h.run(context.Background(), f, key, rng)
			if err != nil && !errors.Is(err, boom) {
				t.Fatalf("call %d: %v", i, err)
			}
			if err := h.verify(inner, key); err != nil {
				t.Fatalf("call %d: %v", i, err)
			}
			h.current.root, h.current.used = "", 0 // its last point is in doubt
			if err := h.backUp(context.Background(), openVault(t, inner, key), rng); err != nil {
				t.Fatalf("after failing call %d: %v", i, err)
			}
			if err := h.verify(inner, key); err != nil {
				t.Fatalf("after failing call %d: %v", i, err)
			}
			if f.Calls() <= i {
				break
			}
		}
	}
}
