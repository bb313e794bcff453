package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// maxRecounts is how often a commit counts anew because something that it counts on was collected
// meanwhile. Each time is a collection that ends just then.
const maxRecounts = 8

// Commit makes everything durable and then appends p, whose ID must be fresh, as a point. Its disks
// and files name trees that PutDisk returned or that [Session.Keep] kept; any other is ErrBase.
// When Commit returns nil the point survives power loss. [ErrLost] says that a session which reads
// anew is needed, state.ErrExists that there is or was a point of that ID, state.ErrEnded that
// another session went on from this one, log.ErrInDoubt that the point may be there, now or later.
// The session is over in any case.
func (s *Session) Commit(ctx context.Context, p *point.RecoveryPoint) error {
	if err := s.err(); err != nil {
		s.Abort()
		return fmt.Errorf("commit point %s: %w", p.ID, err)
	}
	defer s.Abort()
	stop := context.AfterFunc(ctx, s.cancel)
	defer stop()
	if err := s.commit(ctx, p); err != nil {
		return fmt.Errorf("commit point %s: %w", p.ID, err)
	}
	return nil
}

func (s *Session) commit(ctx context.Context, p *point.RecoveryPoint) error {
	id, err := stateID(p.ID)
	if err != nil {
		return err
	}
	what, err := s.choose(p)
	if err != nil {
		return err
	}
	var settling sync.WaitGroup
	defer settling.Wait()
	settling.Go(func() { _ = s.room.Journal.Settle(ctx) }) // what fails is done again by who appends
	w, err := s.finish(ctx)
	if err != nil {
		return err
	}
	manifest, err := s.storeManifest(ctx, w, p, what.trees)
	if err != nil {
		return err
	}
	e := entry{Session: s, what: what, point: state.Point{ID: id, Time: p.Time.UnixMilli(), Manifest: manifest}}
	if s.room.Finds != nil {
		e.point.Finds = s.room.Finds(p)
	}
	for _, base := range what.bases {
		b, err := stateID(base)
		if err != nil {
			return err
		}
		e.point.Bases = append(e.point.Bases, b)
	}
	return e.append(ctx)
}

// storeManifest stores the manifest in the last pack, w, and returns the point's row. Where there
// is no such pack, a small one stands in the row.
func (s *Session) storeManifest(ctx context.Context, w *pack.Writer, p *point.RecoveryPoint, trees []row.Tree) (
	[]byte, error,
) {
	raw, err := row.EncodeManifest(&row.Manifest{Point: *p, Trees: trees})
	if err != nil {
		return nil, err
	}
	r := row.Row{Point: row.Summary(p), Trees: trees}
	if w == nil && len(raw) <= row.MaxInline {
		r.Inline = raw
		return r.Encode()
	}
	if w == nil {
		w = s.data.borrow()
	}
	r.Manifest = row.Place{Pack: w.ID(), Slot: uint32(w.Len())}
	r.Manifest.Entry, err = w.Append(ctx, pack.Manifest, s.nodeID(raw), len(raw), raw, chunk.Plain)
	if err != nil {
		return nil, fmt.Errorf("fill pack %s: %w", w.ID(), err)
	}
	if err := s.commitPack(ctx, w); err != nil {
		return nil, err
	}
	return r.Encode()
}

// entry is a commit on its way.
type entry struct {
	*Session
	what   choice
	point  state.Point
	added  []log.Object
	counts []state.Count
}

// append appends the commit. What it counts on and is gone is counted anew.
func (e *entry) append(ctx context.Context) (err error) {
	e.added = e.telling.takePacks()
	defer func() {
		if err != nil {
			e.forget(e.added)
		}
	}()
	if err := e.countWhole(ctx, e.what.whole); err != nil {
		return err
	}
	for range maxRecounts {
		if e.telling.takeLost() {
			if err := e.recount(ctx); err != nil {
				return err
			}
		}
		if err := e.fit(ctx); err != nil {
			return err
		}
		if e.telling.isLost() {
			continue
		}
		err := e.try(ctx)
		var lost *state.Lost
		if !errors.As(err, &lost) || len(lost.Own) > 0 {
			return lostOwn(err)
		}
		e.noteLost(lost)
		e.counts = withoutPacks(e.counts, lost.Counts)
	}
	return fmt.Errorf("%w: it was collected again and again", ErrLost)
}

func (e *entry) op() state.Commit {
	return state.Commit{Session: e.ids.Session, Progress: e.progress(), Adopted: e.telling.from, Added: e.added,
		Counts: e.counts, Points: []state.Point{e.point}}
}

// fit takes what is to be counted into the commit, and tells of it before where that is too much.
func (e *entry) fit(ctx context.Context) error {
	e.counts = append(e.counts, e.uses.take(e.mayCount)...)
	c := e.op()
	op := c.Op()
	if op.Size() <= pieceSize {
		return nil
	}
	e.telling.turn.Lock()
	defer e.telling.turn.Unlock()
	pieces := e.pieces(e.added, e.counts, e.trees.untold())
	e.added, e.counts = nil, nil
	for i := range pieces {
		if err := e.tellPiece(ctx, &pieces[i]); err != nil {
			for _, p := range pieces[i+1:] {
				e.forget(p.Added)
			}
			return fmt.Errorf("tell of the session's packs: %w", err)
		}
	}
	return nil
}

// try appends the commit once.
func (e *entry) try(ctx context.Context) error {
	c := e.op()
	_, err := e.room.Journal.Append(ctx, func(ctx context.Context, st *state.State) ([]log.Op, error) {
		err := c.Check(ctx, st)
		if errors.Is(err, state.ErrExists) {
			return nil, e.isMine(ctx, st, err)
		}
		if err != nil {
			return nil, err
		}
		return []log.Op{c.Op()}, nil
	})
	if err != nil {
		return err
	}
	e.acknowledged(e.added, 0)
	e.telling.mu.Lock()
	defer e.telling.mu.Unlock()
	e.telling.committed = true
	return nil
}

// isMine returns nil if the point that exists is this one, and exists otherwise.
func (e *entry) isMine(ctx context.Context, st *state.State, exists error) error {
	p, ok, err := st.Point(ctx, e.point.ID)
	if err == nil && ok && bytes.Equal(p.Manifest, e.point.Manifest) {
		return nil
	}
	return errors.Join(exists, err)
}

// recount counts all that the point needs one by one, and drops the bases that are gone.
func (e *entry) recount(ctx context.Context) error {
	e.telling.mu.Lock()
	gone := e.telling.lostBases
	e.telling.mu.Unlock()
	e.point.Bases = slices.DeleteFunc(e.point.Bases, func(id state.ID) bool { return slices.Contains(gone, id) })
	return e.countAll(ctx, &e.what)
}
