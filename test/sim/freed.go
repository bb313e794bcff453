package sim

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// walks says what purges freed, a piece at a time. A chunk's place is itself.
func (a *actor) walks(times int) error {
	w, err := a.worker()
	if err != nil {
		return over(err)
	}
	for range times {
		if err := over(w.walkOn()); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) walkOn() error {
	var f state.Freed
	if err := w.view(func(ctx context.Context, st *state.State) (err error) {
		f, err = w.nextPiece(ctx, st)
		return err
	}); err != nil || len(f.Walk) == 0 {
		return err
	}
	return w.append(func(ctx context.Context) (log.Op, error) {
		try := f
		err := try.Check(ctx, w.state)
		return try.Op(), err
	})
}

// nextPiece walks on in the first pending purge, over one chunk or all.
func (w *worker) nextPiece(ctx context.Context, st *state.State) (f state.Freed, err error) {
	var p state.Pending
	if err := st.Pending(ctx, func(first state.Pending) bool { p = first; return false }); err != nil || p.At == 0 {
		return f, err
	}
	near, err := st.Neighbours(ctx, p.ID, p.At)
	if err != nil {
		return f, err
	}
	has := ""
	for _, q := range near {
		has += string(q.Manifest)
	}
	all := string(p.Point.Manifest)
	from := len(p.Cursor)
	to := min(len(all), from+1+w.rng.IntN(4))
	for _, c := range []byte(without(all[from:to], has)) {
		if err := w.freeOne(ctx, st, &f, c); err != nil {
			return f, err
		}
	}
	f.Walk = []state.Walk{{Point: p.ID, At: p.At, From: p.Cursor, To: []byte(all[:to]), Done: to == len(all)}}
	return f, nil
}

// freeOne adds one copy of a chunk that is neither freed nor shared, if there is one.
func (w *worker) freeOne(ctx context.Context, st *state.State, f *state.Freed, c byte) error {
	packs, err := good(ctx, st)
	if err != nil {
		return err
	}
	w.rng.Shuffle(len(packs), func(i, j int) { packs[i], packs[j] = packs[j], packs[i] })
	for _, o := range packs {
		slot := strings.IndexByte(w.actor.world.content(o.ID), c)
		if slot < 0 {
			continue
		}
		shared, freed, err := st.Bits(ctx, o.ID)
		if err != nil {
			return err
		}
		if !isSet(shared, slot) && !isSet(freed, slot) {
			f.Slots = setSlot(f.Slots, o.ID, slot)
			return nil
		}
	}
	return nil
}

func isSet(bits []byte, i int) bool { return i/8 < len(bits) && bits[i/8]>>(i%8)&1 == 1 }

// setSlot sets the bit of a slot.
func setSlot(cs []state.Count, id log.ObjectID, slot int) []state.Count {
	for i := range cs {
		if cs[i].Pack == id {
			cs[i].Shared[slot/8] |= 1 << (slot % 8)
			return cs
		}
	}
	c := state.Count{Pack: id, Shared: make([]byte, 2)}
	c.Shared[slot/8] |= 1 << (slot % 8)
	return append(cs, c)
}

// merge says what is shared from then on because a condemnation leaves fewer copies of it: of packs
// that stay, in the condemnation; and of what moves.
func (w *worker) merge(ctx context.Context, st *state.State, c *state.Condemn) (moved string, err error) {
	going := map[log.ObjectID]bool{}
	copies, isShared := map[byte]int{}, map[byte]bool{}
	for _, id := range c.Packs {
		going[id] = true
		shared, freed, err := st.Bits(ctx, id)
		if err != nil {
			return "", err
		}
		for i, x := range []byte(w.actor.world.content(id)) {
			if !isSet(freed, i) {
				copies[x]++
				isShared[x] = isShared[x] || isSet(shared, i)
			}
		}
	}
	packs, err := good(ctx, st)
	if err != nil {
		return "", err
	}
	for _, o := range packs {
		if content := w.actor.world.content(o.ID); !going[o.ID] {
			gone := ""
			for x := range copies {
				gone += string(x)
			}
			if bits := slotsOf(content, gone); bits != nil {
				c.Moved = append(c.Moved, state.Moved{Pack: o.ID, Shared: bits})
			}
		}
	}
	for x, n := range copies {
		if n > 1 || isShared[x] {
			moved += string(x)
		}
	}
	return moved, nil
}

// slotsOf returns the bits of those slots that hold some chunks; nil if none does.
func slotsOf(content, chunks string) (bits []byte) {
	for i := range len(content) {
		if strings.IndexByte(chunks, content[i]) >= 0 {
			if bits == nil {
				bits = make([]byte, 2)
			}
			bits[i/8] |= 1 << (i % 8)
		}
	}
	return bits
}

// damages says of a pack that it is damaged, though it is not.
func (a *actor) damages(times int) error {
	w, err := a.worker()
	if err != nil {
		return over(err)
	}
	for range times {
		var ids []log.ObjectID
		err := w.view(func(ctx context.Context, st *state.State) error {
			ids = nil
			return st.Packs(ctx, func(o log.Object) bool { ids = append(ids, o.ID); return true })
		})
		if err == nil && len(ids) > 0 {
			x := state.Damaged{Packs: []log.ObjectID{ids[w.rng.IntN(len(ids))]}}
			err = w.append(func(ctx context.Context) (log.Op, error) {
				try := x
				err := try.Check(ctx, w.state)
				return try.Op(), err
			})
		}
		if err := over(err); err != nil {
			return err
		}
	}
	return nil
}

// undelete brings a point back that was deleted softly.
func (w *worker) undelete(id state.ID) error {
	u := state.Undelete{Points: []state.ID{id}}
	err := w.append(func(ctx context.Context) (log.Op, error) { return u.Op(), u.Check(ctx, w.state) })
	if errors.Is(err, state.ErrNoChange) {
		return nil
	}
	return err
}

// checkFreed demands that of each chunk that a point needs a copy is left that nobody said is free.
func (w *World) checkFreed(ctx context.Context, st *state.State, points map[state.ID]string) error {
	left := map[byte]bool{}
	var bad error
	if err := st.Packs(ctx, func(o log.Object) bool {
		_, freed, err := st.Bits(ctx, o.ID)
		bad = err
		for i, c := range []byte(w.content(o.ID)) {
			if !isSet(freed, i) {
				left[c] = true
			}
		}
		return err == nil
	}); err != nil || bad != nil {
		return errors.Join(err, bad)
	}
	for _, id := range sortedIDs(points) {
		for _, c := range []byte(points[id]) {
			if !left[c] {
				return fmt.Errorf("freed: all copies of chunk %q of point %x are said to be free", c, id[:4])
			}
		}
	}
	return nil
}
