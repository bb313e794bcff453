package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// collects rewrites what is thin and condemns what is dead, and deletes what is condemned.
func (a *actor) collects(times int) error {
	w, err := a.worker()
	if err != nil {
		return over(err)
	}
	for range times {
		if err := over(w.collect()); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) collect() error {
	if err := w.finish(); err != nil {
		return err
	}
	var c state.Condemn
	move, shared := "", ""
	look := w.view
	if w.peek {
		look = w.glance
		if err := w.awaitEntry(); err != nil {
			return err
		}
	}
	if err := look(func(ctx context.Context, st *state.State) (err error) {
		if c, move, err = w.mark(ctx, st); err == nil {
			shared, err = w.merge(ctx, st, &c)
		}
		return err
	}); err != nil || len(c.Packs) == 0 {
		return err
	}
	w.actor.sleep(time.Duration(w.rng.IntN(3)) * time.Second)
	if move != "" {
		var s log.Session
		var n uint32
		fill(w.rng, s[:])
		o, err := w.pack(s, &n, move)
		if err != nil {
			return err
		}
		c.Added = []log.Object{o}
		c.Moved = append(c.Moved, state.Moved{Pack: o.ID, Shared: slotsOf(move, shared)})
	}
	if w.actor.world.without.Has(log.SayFirst) {
		if err := w.deletePacks(c.Packs); err != nil {
			return err
		}
	}
	if err := w.append(func(ctx context.Context) (log.Op, error) {
		try := c
		err := try.Prune(ctx, w.state)
		return try.Op(), err
	}); err != nil {
		return err
	}
	return w.finish()
}

// glance runs f on the state as it is, which may have entries that turn out void.
func (w *worker) glance(f func(ctx context.Context, s *state.State) error) error {
	return w.actor.insist(func() error {
		return w.Do(w.actor.ctx, func(*log.Log) error { return f(w.actor.ctx, w.state) })
	})
}

// awaitEntry waits for a while until the process has folded in something.
func (w *worker) awaitEntry() error {
	var was, now uint64
	for i := range 40 {
		if err := w.glance(func(_ context.Context, st *state.State) error {
			now = st.Count()
			return nil
		}); err != nil {
			return err
		}
		if i == 0 {
			was = now
		} else if now != was {
			return nil
		}
		w.actor.sleep(time.Millisecond)
	}
	return nil
}

// mark finds what no point needs, and what of the rest is in packs that are mostly dead.
func (w *worker) mark(ctx context.Context, st *state.State) (c state.Condemn, move string, err error) {
	c = state.Condemn{Mark: st.At(), MarkAt: st.Count(), Last: st.LastCondemn()}
	need := ""
	if err := st.Points(ctx, func(p state.Point) bool {
		need += string(p.Manifest)
		return true
	}); err != nil {
		return c, "", err
	}
	if err := st.Pending(ctx, func(p state.Pending) bool { // of which a walk still has to say what they free
		if !w.rash {
			need += string(p.Point.Manifest)
		}
		return true
	}); err != nil {
		return c, "", err
	}
	sessions, err := st.Sessions(ctx)
	if err != nil {
		return c, "", err
	}
	whole := map[log.ObjectID]bool{}
	for _, x := range sessions {
		for _, id := range x.Own {
			whole[id] = true
		}
		for _, p := range x.Progress {
			for _, n := range p.Counts {
				whole[n.Pack] = true
			}
		}
	}
	packs, err := good(ctx, st)
	w.rng.Shuffle(len(packs), func(i, j int) { packs[i], packs[j] = packs[j], packs[i] })
	kept := ""
	for _, o := range packs {
		content := w.actor.world.content(o.ID)
		used := ""
		_, freed, err := st.Bits(ctx, o.ID)
		if err != nil {
			return c, "", err
		}
		for i := range len(content) {
			if !isSet(freed, i) && strings.IndexByte(need, content[i]) >= 0 && strings.IndexByte(kept, content[i]) < 0 {
				used += content[i : i+1]
			}
		}
		if used == content || whole[o.ID] {
			kept += used
		} else {
			c.Packs = append(c.Packs, o.ID)
			move += used
		}
	}
	return c, without(move, kept), err
}

// finish deletes what is condemned, whoever condemned it, and says so.
func (w *worker) finish() error {
	var ids []log.ObjectID
	if err := w.actor.insist(func() error {
		return w.Do(w.actor.ctx, func(l *log.Log) error {
			if err := l.Confirm(w.actor.ctx); err != nil {
				return err
			}
			ids = nil
			return w.state.Condemned(w.actor.ctx, func(id log.ObjectID) bool {
				ids = append(ids, id)
				return true
			})
		})
	}); err != nil || len(ids) == 0 {
		return err
	}
	if err := w.deletePacks(ids); err != nil {
		return err
	}
	return w.append(func(ctx context.Context) (log.Op, error) {
		left, err := state.CheckGone(ctx, w.state, ids)
		if err == nil && len(left) == 0 {
			err = state.ErrNoChange
		}
		return state.Gone(left), err
	})
}

func (w *worker) deletePacks(ids []log.ObjectID) error {
	for _, id := range ids {
		o := log.Object{ID: id, Kind: log.Pack}
		if err := w.actor.insist(func() error { return w.store.Delete(w.actor.ctx, o.Name()) }); err != nil {
			return err
		}
	}
	return nil
}

// sweeps condemns packs that are in no entry.
func (a *actor) sweeps(apart time.Duration) error {
	w, err := a.worker()
	if err != nil {
		return over(err)
	}
	first, err := w.orphans()
	if err != nil {
		return over(err)
	}
	a.sleep(apart)
	second, err := w.orphans()
	if err != nil {
		return over(err)
	}
	c := state.Condemn{Orphans: true}
	for _, id := range second {
		if slices.Contains(first, id) {
			c.Packs = append(c.Packs, id)
		}
	}
	if len(c.Packs) == 0 {
		return nil
	}
	err = w.append(func(ctx context.Context) (log.Op, error) {
		try := c
		err := try.Prune(ctx, w.state)
		return try.Op(), err
	})
	if err == nil {
		err = w.finish()
	}
	return over(err)
}

// orphans lists packs that the store has and no entry.
func (w *worker) orphans() (ids []log.ObjectID, err error) {
	var listed []log.ObjectID
	if err := w.actor.insist(func() error {
		listed = nil
		for name, err := range blob.Names(w.actor.ctx, w.store, "pack/", "") {
			if err != nil {
				return err
			}
			if o, ok := log.ParsePackName(name); ok {
				listed = append(listed, o.ID)
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	err = w.view(func(ctx context.Context, st *state.State) error {
		ids = nil
		for _, id := range listed {
			_, good, err := st.Good(ctx, id)
			if err != nil {
				return err
			}
			if !good {
				ids = append(ids, id)
			}
		}
		return nil
	})
	return ids, err
}

// points returns the IDs of the points that live.
func (w *worker) points() (ids []state.ID, err error) {
	err = w.view(func(ctx context.Context, st *state.State) error {
		ids = nil
		return st.Points(ctx, func(p state.Point) bool {
			ids = append(ids, p.ID)
			return true
		})
	})
	return ids, err
}

// deletes purges points, some of them after a soft deletion.
func (a *actor) deletes(times int) error {
	w, err := a.worker()
	if err != nil {
		return over(err)
	}
	for range times {
		if err := over(w.deleteOne()); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) deleteOne() error {
	ids, err := w.points()
	if err != nil || len(ids) == 0 {
		return err
	}
	id := ids[w.rng.IntN(len(ids))]
	if w.rng.IntN(2) == 0 {
		d := state.Delete{Points: []state.ID{id}}
		if err := w.append(func(ctx context.Context) (log.Op, error) {
			return d.Op(), d.Check(ctx, w.state, w.actor.now().UnixMilli())
		}); err != nil {
			return err
		}
		if w.rng.IntN(3) == 0 {
			return w.undelete(id)
		}
	}
	t := w.actor.world.truth
	t.note(func() { t.purging[id] = true })
	err = w.append(func(ctx context.Context) (log.Op, error) {
		p := state.Purge{Points: []state.Purged{{ID: id}}}
		err := p.Check(ctx, w.state, w.actor.now().UnixMilli())
		return p.Op(), err
	})
	if err == nil {
		t.note(func() { t.purged[id] = true })
	}
	return err
}

// holds places holds on points.
func (a *actor) holds(times int) error {
	w, err := a.worker()
	if err != nil {
		return over(err)
	}
	for range times {
		if err := over(w.holdOne()); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) holdOne() error {
	ids, err := w.points()
	if err != nil || len(ids) == 0 {
		return err
	}
	h := state.Hold{Point: ids[w.rng.IntN(len(ids))]}
	fill(w.rng, h.ID[:])
	err = w.append(func(ctx context.Context) (log.Op, error) { return h.Op(), h.Check(ctx, w.state) })
	if err == nil {
		t := w.actor.world.truth
		t.note(func() { t.held[h.Point] = true })
	}
	return err
}

// rolls closes volumes, by an entry or without.
func (a *actor) rolls(times int, takeovers bool) error {
	w, err := a.worker()
	if err != nil {
		return over(err)
	}
	for range times {
		if err != nil {
			return over(err)
		}
		a.sleep(time.Duration(w.rng.IntN(60)) * time.Second)
		if takeovers && w.rng.IntN(2) == 0 {
			err = a.insist(func() error { return w.Do(a.ctx, func(l *log.Log) error { return l.Close(a.ctx) }) })
			continue
		}
		for err = w.Roll(a.ctx); errors.Is(err, blob.ErrNoSpace) || errors.Is(err, errIO); err = w.Roll(a.ctx) {
			a.sleep(time.Second)
		}
		err = over(err)
	}
	return over(err)
}

// cuts deletes the entries of volumes that are over.
func (a *actor) cuts(times int) error {
	w, err := a.worker()
	if err != nil {
		return over(err)
	}
	for range times {
		a.sleep(time.Duration(30+w.rng.IntN(60)) * time.Second)
		if err := w.cutAll(); over(err) != nil {
			return err
		}
	}
	return nil
}

func (w *worker) cutAll() error {
	return w.actor.insist(func() error {
		return w.Do(w.actor.ctx, func(l *log.Log) error {
			if err := l.Read(w.actor.ctx); err != nil {
				return err
			}
			now := l.Head().At.Volume
			for v := (log.Volume{}); v != now; v = v.Next() {
				err := l.Cut(w.actor.ctx, v, w.verify)
				if errors.Is(err, errSwept) {
					continue // it was cut before
				}
				if err != nil {
					return err
				}
			}
			return w.sweepCheckpoints(l)
		})
	})
}

// sweepCheckpoints deletes checkpoints and parts that nobody needs any more.
func (w *worker) sweepCheckpoints(l *log.Log) error {
	if err := l.Confirm(w.actor.ctx); err != nil {
		return err
	}
	first, ok, err := l.Begun(w.actor.ctx)
	if err != nil || !ok {
		return err
	}
	return w.state.Sweep(w.actor.ctx, first)
}

// errSwept reports a checkpoint that is older than what was swept.
var errSwept = errors.New("the checkpoint was swept")

// verify reads a checkpoint back, and compares it with a second fold while the entries are there.
func (w *worker) verify(ctx context.Context, c log.Checkpoint) error {
	loaded, err := state.Verify(ctx, w.store, w.actor.world.keys, c)
	if errors.Is(err, blob.ErrNotExist) {
		absent, askErr := w.store.Absent(ctx, log.CheckpointName(c))
		if askErr == nil && absent {
			return errSwept
		}
	}
	if err != nil {
		return err
	}
	st := state.New(w.store, w.actor.world.keys, state.Options{})
	head, err := log.Refold(ctx, w.store, w.actor.world.keys.Log(), st, c.At)
	if errors.Is(err, blob.ErrNotExist) || err == nil && head.Hash != loaded.Head {
		return nil // cut by another, who has compared
	}
	if err != nil {
		return err
	}
	again, err := st.Digest(ctx)
	if err == nil && again != c {
		err = fmt.Errorf("%w: a second fold makes another checkpoint at %s", log.ErrDamaged, c.At)
	}
	return err
}

// spoils puts garbage where the next entries belong, and strays where lists look.
func (a *actor) spoils(times int) error {
	w, err := a.worker()
	if err != nil {
		return over(err)
	}
	for i := range times {
		a.sleep(time.Duration(w.rng.IntN(3000)) * time.Millisecond)
		var at log.Position
		if err := w.view(func(_ context.Context, st *state.State) error { at = st.At(); return nil }); err != nil {
			return over(err)
		}
		at.Number += uint32(1 + w.rng.IntN(2))
		names := []string{log.EntryName(at), fmt.Sprintf("pack/.nfs%d", i), fmt.Sprintf("checkpoint/.nfs%d", i),
			fmt.Sprintf("state/.nfs%d", i)}
		for _, name := range names {
			_ = blob.Put(a.ctx, w.store, name, []byte(strings.Repeat("garbage ", w.rng.IntN(3))))
		}
	}
	return nil
}

// reads reads points that live.
func (a *actor) reads(times int) error {
	w, err := a.worker()
	if err != nil {
		return over(err)
	}
	for range times {
		ids, err := w.points()
		if err == nil && len(ids) > 0 {
			err = w.read(ids[w.rng.IntN(len(ids))])
		}
		if over(err) != nil {
			return err
		}
		a.sleep(time.Duration(w.rng.IntN(5)) * time.Second)
	}
	return nil
}

// read reads a point's chunks by a state that gets old; what it misses it looks for after reading
// on.
func (w *worker) read(id state.ID) error {
	need := ""
	if err := w.view(func(ctx context.Context, st *state.State) error {
		p, ok, err := st.Point(ctx, id)
		if err == nil && !ok {
			err = state.ErrNoPoint
		}
		need = string(p.Manifest)
		return err
	}); err != nil {
		return err
	}
	for i := range len(need) {
		for {
			err := w.readChunk(id, need[i])
			if err == nil {
				break
			}
			if !errors.Is(err, blob.ErrNotExist) || w.actor.world.without.Has(log.ReadOn) {
				return err
			}
			if err := w.view(func(ctx context.Context, st *state.State) error { return nil }); err != nil {
				return err
			}
			w.actor.sleep(time.Second)
		}
	}
	return nil
}

func (w *worker) readChunk(id state.ID, c byte) error {
	var packs []log.Object
	if err := w.actor.insist(func() error {
		return w.Do(w.actor.ctx, func(*log.Log) error {
			_, ok, err := w.state.Point(w.actor.ctx, id)
			if err == nil && !ok {
				err = state.ErrNoPoint
			}
			if err == nil {
				packs, err = good(w.actor.ctx, w.state)
			}
			return err
		})
	}); err != nil {
		return err
	}
	for _, o := range packs {
		if strings.IndexByte(w.actor.world.content(o.ID), c) < 0 {
			continue
		}
		var raw []byte
		err := w.actor.insist(func() (err error) {
			raw, err = blob.Read(w.actor.ctx, w.store, o.Name(), 100)
			if errors.Is(err, blob.ErrNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
		if strings.IndexByte(string(raw), c) >= 0 {
			return nil
		}
	}
	return fmt.Errorf("read chunk %q of point %x: %w", c, id[:4], blob.ErrNotExist)
}

// givesUp ends open sessions that seem silent.
func (a *actor) givesUp(times int) error {
	w, err := a.worker()
	if err != nil {
		return over(err)
	}
	for range times {
		if err != nil {
			return over(err)
		}
		a.sleep(time.Duration(w.rng.IntN(600)) * time.Second)
		var g state.GiveUp
		err = w.view(func(ctx context.Context, st *state.State) error {
			all, err := st.Sessions(ctx)
			g.Sessions = nil
			for _, x := range all {
				g.Sessions = append(g.Sessions, state.Adopted{Session: x.ID, Progress: uint32(len(x.Progress))})
			}
			return err
		})
		if err == nil && len(g.Sessions) > 0 {
			err = over(w.append(func(ctx context.Context) (log.Op, error) { return g.Op(), g.Check(ctx, w.state) }))
		}
	}
	return over(err)
}
