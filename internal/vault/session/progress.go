package session

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

const (
	every      = 5 * time.Minute
	everyBytes = 16 << 30
	// What things take in an operation, and a little more.
	objectSize, countSize, baseSize, fixedSize = 66, 28, 16, 128
)

// pieceSize is how many bytes of an entry of the log a session fills with one operation; tests make
// it smaller.
var pieceSize = log.MaxEntry - 4<<10

// telling is what a session tells the log, and has told.
type telling struct {
	from    []state.Adopted      // sessions that this one goes on from, each by the next
	adopted map[log.Session]bool // the same; set by Begin

	busy atomic.Bool    // an entry of progress is on its way behind the workers' backs
	wait sync.WaitGroup // for it
	turn sync.Mutex     // held by who tells

	mu        sync.Mutex
	packs     []log.Object // that no entry tells of
	bytes     int64        // of packs since the last entry
	last      time.Time    // of the last entry, or of the beginning
	told      bitmap       // by its counter: own packs of which an entry tells, or is about to
	number    uint32       // of entries of progress
	lost      bool         // something that was counted on is gone: all must be counted anew
	lostBases []state.ID
	committed bool
}

func (t *telling) isAdopted(id log.ObjectID) bool { return t.adopted[id.Session()] }

func (t *telling) addPack(o log.Object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.packs = append(t.packs, o)
	t.bytes += int64(o.Size)
}

// takePacks returns the packs that no entry tells of. The caller sees to it that one does.
func (t *telling) takePacks() []log.Object {
	t.mu.Lock()
	defer t.mu.Unlock()
	packs := t.packs
	t.packs = nil
	for i := range packs {
		t.told.set(counter(packs[i].ID))
	}
	return packs
}

// counter returns the number of a pack among those of its session.
func counter(id log.ObjectID) uint32 { return binary.BigEndian.Uint32(id[len(id)-4:]) }

// due reports whether it is time to tell of the progress.
func (t *telling) due(r *Room) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	after, bytes := r.Every, r.EveryBytes
	if after == 0 {
		after = every
	}
	if bytes == 0 {
		bytes = everyBytes
	}
	return t.bytes >= bytes || time.Since(t.last) >= after
}

// mayCount reports whether an entry can say which rows of a pack are shared: of a pack of one's own
// not before one tells of the pack.
func (s *Session) mayCount(id log.ObjectID) bool {
	if id.Session() != s.ids.Session {
		return true
	}
	s.telling.mu.Lock()
	defer s.telling.mu.Unlock()
	return s.telling.told.has(counter(id))
}

// tellIfDue tells of the progress behind the caller's back, if it is time.
func (s *Session) tellIfDue() {
	if !s.telling.due(s.room) || !s.telling.busy.CompareAndSwap(false, true) {
		return
	}
	s.telling.wait.Go(func() {
		defer s.telling.busy.Store(false)
		if err := s.tell(s.ctx); err != nil {
			_ = s.fail(err)
		}
	})
}

// tell tells of all that no entry tells of yet. After an error the session is over.
func (s *Session) tell(ctx context.Context) error {
	s.telling.turn.Lock()
	defer s.telling.turn.Unlock()
	packs := s.telling.takePacks()
	pieces := s.pieces(packs, s.uses.take(s.mayCount), s.trees.untold())
	for i := range pieces {
		if err := s.tellPiece(ctx, &pieces[i]); err != nil {
			for _, p := range pieces[i+1:] {
				s.forget(p.Added)
			}
			return fmt.Errorf("tell of the session's progress: %w", err)
		}
	}
	s.telling.mu.Lock()
	defer s.telling.mu.Unlock()
	s.telling.bytes, s.telling.last = 0, time.Now()
	return nil
}

// pieces cuts what is to be told into operations of which each fits into an entry.
func (s *Session) pieces(packs []log.Object, counts []state.Count, bases []point.ID) (out []state.Progress) {
	left := 0
	need := func(n int) *state.Progress {
		if left < n {
			out = append(out, state.Progress{Session: s.ids.Session, Machine: s.machine, Holder: s.room.Holder})
			left = pieceSize - fixedSize - len(s.machine) - len(s.room.Holder)
		}
		left -= n
		return &out[len(out)-1]
	}
	for _, b := range bases {
		if id, err := stateID(b); err == nil { // it was found by it
			p := need(baseSize)
			p.Bases = append(p.Bases, id)
		}
	}
	for _, o := range packs {
		p := need(objectSize)
		p.Added = append(p.Added, o)
	}
	for _, c := range counts {
		p := need(countSize + len(c.Shared))
		p.Counts = append(p.Counts, c)
	}
	return out
}

// tellPiece appends one operation. What it counts on and is gone is noted and left out.
func (s *Session) tellPiece(ctx context.Context, p *state.Progress) error {
	p.Number = s.progress()
	for {
		_, err := s.room.Journal.Append(ctx, func(ctx context.Context, st *state.State) ([]log.Op, error) {
			if err := p.Check(ctx, st); err != nil {
				return nil, err
			}
			return []log.Op{p.Op()}, nil
		})
		var lost *state.Lost
		switch {
		case err == nil:
			s.acknowledged(p.Added, 1)
			return nil
		case !errors.As(err, &lost) || len(lost.Own) > 0:
			s.forget(p.Added)
			return lostOwn(err)
		}
		s.noteLost(lost)
		p.Counts = withoutPacks(p.Counts, lost.Counts)
		p.Bases = slices.DeleteFunc(p.Bases, func(id state.ID) bool { return slices.Contains(lost.Bases, id) })
	}
}

func (s *Session) progress() uint32 {
	s.telling.mu.Lock()
	defer s.telling.mu.Unlock()
	return s.telling.number
}

// acknowledged notes that an entry tells of packs; it and so many are entries of progress.
func (s *Session) acknowledged(packs []log.Object, entries uint32) {
	for i := range packs {
		s.room.unsettled.remove(packs[i].ID)
	}
	s.telling.mu.Lock()
	defer s.telling.mu.Unlock()
	s.telling.number += entries
}

// forget forgets packs of which no entry tells. If one does after all, as nobody may know yet, the
// index learns of them by it.
func (s *Session) forget(packs []log.Object) {
	for i := range packs {
		s.room.Index.Forget(packs[i].ID)
		s.room.unsettled.remove(packs[i].ID)
	}
}

// noteLost notes what is gone that the session had counted on.
func (s *Session) noteLost(lost *state.Lost) {
	for _, id := range lost.Counts {
		s.uses.forget(id)
	}
	s.telling.mu.Lock()
	defer s.telling.mu.Unlock()
	s.telling.lost = true
	s.telling.lostBases = append(s.telling.lostBases, lost.Bases...)
}

// isLost reports whether all must be counted anew.
func (t *telling) isLost() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost
}

// takeLost is isLost, and takes it that the caller counts.
func (t *telling) takeLost() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	lost := t.lost
	t.lost = false
	return lost
}

func withoutPacks(counts []state.Count, gone []log.ObjectID) []state.Count {
	return slices.DeleteFunc(counts, func(c state.Count) bool { return slices.Contains(gone, c.Pack) })
}

// lostOwn makes ErrLost of the loss of a session's own packs.
func lostOwn(err error) error {
	var lost *state.Lost
	if errors.As(err, &lost) && len(lost.Own) > 0 {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return err
}
