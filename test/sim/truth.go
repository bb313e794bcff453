package sim

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// truth is what the actors were told.
type truth struct {
	mu      sync.Mutex          // one entry answers several
	acked   map[state.ID]string // points whose commit was acknowledged, and what they need
	purging map[state.ID]bool   // points that somebody set out to purge
	purged  map[state.ID]bool   // points whose purge was acknowledged
	held    map[state.ID]bool   // points that somebody was told are held
	commits int
}

func newTruth() *truth {
	return &truth{acked: map[state.ID]string{}, purging: map[state.ID]bool{}, purged: map[state.ID]bool{},
		held: map[state.ID]bool{}}
}

// note changes what is known.
func (t *truth) note(change func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change()
}

// check opens the store as it is now and compares it with what the actors were told.
func (w *World) check() error {
	ctx := context.Background()
	s := mem.New()
	for name, o := range w.disk.objects {
		if err := blob.Put(ctx, s, name, o.data); err != nil {
			return err
		}
	}
	st := state.New(s, w.keys, state.Options{})
	if _, err := log.Open(ctx, s, w.keys.Log(), st, log.Options{NoReadAhead: true, Rand: func([]byte) {}}); err != nil {
		return fmt.Errorf("nobody can open the vault: %w", err)
	}
	points := map[state.ID]string{}
	if err := st.Points(ctx, func(p state.Point) bool {
		points[p.ID] = string(p.Manifest)
		return true
	}); err != nil {
		return err
	}
	if got := st.Counters().Points; got != uint64(len(points)) {
		return fmt.Errorf("counter: %d points are counted, %d are there", got, len(points))
	}
	stored, err := w.checkPacks(ctx, st)
	if err != nil {
		return err
	}
	if err := w.checkPoints(points, stored); err != nil {
		return err
	}
	return w.checkFreed(ctx, st, points)
}

// checkPacks demands that good packs are there, whole, and returns the chunks in them.
func (w *World) checkPacks(ctx context.Context, st *state.State) (map[byte]bool, error) {
	stored := map[byte]bool{}
	var bad error
	n := uint64(0)
	err := st.Packs(ctx, func(o log.Object) bool {
		n++
		have := w.disk.objects[o.Name()]
		switch {
		case have == nil:
			bad = fmt.Errorf("said: good pack %s is not there", o.ID)
		case log.HashOf(have.data) != o.Sum || uint64(len(have.data)) != o.Size:
			bad = fmt.Errorf("said: good pack %s has other bytes", o.ID)
		default:
			for _, c := range have.data {
				stored[c] = true
			}
		}
		return bad == nil
	})
	if bad == nil && err == nil && st.Counters().Packs != n {
		bad = fmt.Errorf("counter: %d packs are counted, %d are there", st.Counters().Packs, n)
	}
	if err == nil {
		err = bad
	}
	return stored, err
}

func (w *World) checkPoints(points map[state.ID]string, stored map[byte]bool) error {
	t := w.truth
	for _, id := range sortedIDs(t.acked) {
		if _, there := points[id]; !there && (!t.purging[id] || t.held[id] && !t.purged[id]) {
			return fmt.Errorf("kept: point %x was acknowledged and is not there", id[:4])
		}
	}
	for _, id := range sortedIDs(t.held) {
		if _, there := points[id]; !there {
			return fmt.Errorf("held: point %x is held and is not there", id[:4])
		}
	}
	for _, id := range sortedIDs(points) {
		if t.purged[id] {
			return fmt.Errorf("once: point %x came back after it was purged", id[:4])
		}
		if want, ok := t.acked[id]; ok && want != points[id] {
			return fmt.Errorf("kept: point %x says something else", id[:4])
		}
		for _, c := range []byte(points[id]) {
			if !stored[c] {
				return fmt.Errorf("readable: chunk %q of point %x is in no good pack", c, id[:4])
			}
		}
	}
	return nil
}

func sortedIDs[V any](m map[state.ID]V) []state.ID {
	return slices.SortedFunc(maps.Keys(m), func(a, b state.ID) int { return slices.Compare(a[:], b[:]) })
}
