package sim

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// universe is all chunks there are: a byte each.
const universe = "abcdefgh"

// sessionPlan says how a session goes about it.
type sessionPlan struct {
	progress bool          // it tells of its progress before it commits
	pause    time.Duration // in between
	adopt    bool          // it goes on from an open session, if there is one
	points   int           // that it commits one after the other; 0 means 1
	need     string        // of its own data; "" means something
	noBase   bool
}

// session is the writing of one point.
type session struct {
	*worker
	id       log.Session
	packs    uint32
	base     []state.ID
	need     string                // all that the point needs
	bytes    string                // chunks that the session can store anew
	where    map[byte]log.ObjectID // of chunks that do not come with the base
	added    []log.Object          // own packs that no entry has
	own      []log.ObjectID        // that a progress entry has
	progress uint32
	adopted  []state.Adopted
}

// Sessions commit points, in processes of their own.
func (a *actor) sessions(plan sessionPlan) error {
	w, err := a.worker()
	if err != nil {
		return over(err)
	}
	return w.commitPoints(plan)
}

func (w *worker) commitPoints(plan sessionPlan) error {
	for range max(1, plan.points) {
		s := &session{worker: w, where: map[byte]log.ObjectID{}}
		fill(w.rng, s.id[:])
		if err := over(s.run(plan)); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) run(plan sessionPlan) error {
	if plan.adopt {
		if err := s.adopt(); err != nil {
			return err
		}
	}
	if err := s.view(func(ctx context.Context, st *state.State) error { return s.begin(ctx, st, plan) }); err != nil {
		return err
	}
	if err := s.storeMissing(); err != nil {
		return err
	}
	if plan.progress {
		if err := s.tell(); err != nil {
			return err
		}
		s.actor.sleep(plan.pause)
	}
	return s.commit()
}

// begin chooses what the point is, and counts on what is stored.
func (s *session) begin(ctx context.Context, st *state.State, plan sessionPlan) error {
	s.base, s.need, s.bytes = nil, "", plan.need
	if plan.need == "" {
		for i := range len(universe) {
			if s.rng.IntN(3) == 0 {
				s.bytes += universe[i : i+1]
			}
		}
	}
	var points []state.Point
	if err := st.Points(ctx, func(p state.Point) bool {
		points = append(points, p)
		return true
	}); err != nil {
		return err
	}
	if len(points) > 0 && !plan.noBase && (plan.need != "" || s.rng.IntN(4) > 0) {
		p := points[s.rng.IntN(len(points))]
		s.base = []state.ID{p.ID}
		inherited := without(string(p.Manifest), s.bytes)
		if plan.need == "" && len(inherited) > 1 {
			inherited = inherited[s.rng.IntN(2):]
		}
		s.need = inherited
	}
	s.need = without(s.need+s.bytes, "")
	return s.count(ctx, st, s.bytes)
}

// count counts on good packs for chunks.
func (s *session) count(ctx context.Context, st *state.State, chunks string) error {
	packs, err := good(ctx, st)
	if err != nil {
		return err
	}
	damaged := map[log.ObjectID]bool{}
	if err := st.DamagedPacks(ctx, func(id log.ObjectID) bool { damaged[id] = true; return true }); err != nil {
		return err
	}
	for i := range len(chunks) {
		if _, have := s.where[chunks[i]]; have {
			continue
		}
		for _, o := range packs {
			if !damaged[o.ID] && strings.IndexByte(s.actor.world.content(o.ID), chunks[i]) >= 0 {
				s.where[chunks[i]] = o.ID
				break
			}
		}
	}
	return nil
}

// storeMissing stores what the session has the bytes of and is nowhere.
func (s *session) storeMissing() error {
	missing := ""
	for i := range len(s.bytes) {
		if _, have := s.where[s.bytes[i]]; !have {
			missing += s.bytes[i : i+1]
		}
	}
	if missing == "" {
		return nil
	}
	o, err := s.pack(s.id, &s.packs, missing)
	if err != nil {
		return err
	}
	s.added = append(s.added, o)
	for i := range len(missing) {
		s.where[missing[i]] = o.ID
	}
	return nil
}

// counts returns the packs of others that the session counts on, with the slots.
func (s *session) counts() (out []state.Count) {
	own := map[log.ObjectID]bool{}
	for _, o := range s.added {
		own[o.ID] = true
	}
	for _, id := range s.own {
		own[id] = true
	}
	at := map[log.ObjectID]int{}
	for i := range len(universe) {
		id, have := s.where[universe[i]]
		slot := strings.IndexByte(s.actor.world.content(id), universe[i])
		if !have || own[id] || slot < 0 {
			continue
		}
		if _, ok := at[id]; !ok {
			at[id] = len(out)
			out = append(out, state.Count{Pack: id, Shared: []byte{0}})
		}
		out[at[id]].Shared[0] |= 1 << slot
	}
	return out
}

// tell tells of what was done so far.
func (s *session) tell() error {
	for {
		err := s.append(func(ctx context.Context) (log.Op, error) {
			p := state.Progress{Session: s.id, Number: s.progress, Bases: s.base, Added: s.added, Counts: s.counts()}
			return p.Op(), p.Check(ctx, s.state)
		})
		if err == nil {
			for _, o := range s.added {
				s.own = append(s.own, o.ID)
			}
			s.added = nil
			s.progress++
			return nil
		}
		if err := s.mend(err); err != nil {
			return err
		}
	}
}

// adopt goes on from an open session.
func (s *session) adopt() error {
	var from *state.Session
	if err := s.view(func(ctx context.Context, st *state.State) error {
		all, err := st.Sessions(ctx)
		for i := range all {
			if all[i].AdoptedBy == (log.Session{}) {
				from = &all[i]
			}
		}
		return err
	}); err != nil || from == nil {
		return err
	}
	a := state.Adopt{From: state.Adopted{Session: from.ID, Progress: uint32(len(from.Progress))}, By: s.id}
	if err := s.append(func(ctx context.Context) (log.Op, error) { return a.Op(), a.Check(ctx, s.state) }); err != nil {
		return err
	}
	s.adopted = []state.Adopted{a.From}
	s.own = from.Own
	for _, id := range from.Own {
		c := s.actor.world.content(id)
		for i := range len(c) {
			s.where[c[i]] = id
		}
	}
	return nil
}

// commit commits the point, however often it must be mended for that.
func (s *session) commit() error {
	var id state.ID
	fill(s.rng, id[:])
	for {
		err := s.append(func(ctx context.Context) (log.Op, error) {
			c := state.Commit{Session: s.id, Progress: s.progress, Adopted: s.adopted, Added: s.added, Own: s.own,
				Counts: s.counts(), Points: []state.Point{{ID: id, Bases: s.base, Manifest: []byte(s.need)}}}
			return c.Op(), c.Check(ctx, s.state)
		})
		if err == nil {
			t := s.actor.world.truth
			t.note(func() { t.acked[id], t.commits = s.need, t.commits+1 })
			return nil
		}
		if s.actor.world.without.Has(log.Definite) && strings.Contains(err.Error(), "the entry is absent") {
			return s.removeOwn() // what one does who takes that for an answer
		}
		if err := s.mend(err); err != nil {
			return err
		}
	}
}

func (s *session) removeOwn() error {
	for _, o := range s.added {
		if err := s.actor.insist(func() error { return s.store.Delete(s.actor.ctx, o.Name()) }); err != nil {
			return err
		}
	}
	return errOver
}

// mend stores anew what was lost, or counts what came with a base one by one.
func (s *session) mend(err error) error {
	var lost *state.Lost
	if !errors.As(err, &lost) {
		return err
	}
	gone := map[log.ObjectID]bool{}
	for _, id := range append(lost.Own, lost.Counts...) {
		gone[id] = true
	}
	for c, id := range s.where {
		if gone[id] {
			delete(s.where, c)
			if strings.IndexByte(s.bytes, c) < 0 && strings.IndexByte(s.need, c) >= 0 && len(s.base) == 0 {
				return errOver // it came with a base that is gone, and its bytes are not at hand
			}
		}
	}
	s.added = remove(s.added, func(o log.Object) bool { return gone[o.ID] })
	s.own = remove(s.own, func(id log.ObjectID) bool { return gone[id] })
	if len(lost.Bases) > 0 {
		s.base = nil
		if err := s.walk(); err != nil {
			return err
		}
	}
	return s.storeMissing()
}

// walk counts, one by one, on packs for what came with a base that is gone.
func (s *session) walk() error {
	if err := s.view(func(ctx context.Context, st *state.State) error { return s.count(ctx, st, s.need) }); err != nil {
		return err
	}
	for i := range len(s.need) {
		if _, have := s.where[s.need[i]]; !have && strings.IndexByte(s.bytes, s.need[i]) < 0 {
			return errOver
		}
	}
	return nil
}

func remove[T any](list []T, drop func(T) bool) (left []T) {
	for _, x := range list {
		if !drop(x) {
			left = append(left, x)
		}
	}
	return left
}
