package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// left are sessions of this process that ended without a point after they had told of progress.
type left struct {
	mu  sync.Mutex
	ids map[log.Session]bool
}

func (l *left) add(s *Session) {
	s.telling.mu.Lock()
	leaves := s.telling.number > 0 && !s.telling.committed
	s.telling.mu.Unlock()
	if !leaves {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids == nil {
		l.ids = map[log.Session]bool{}
	}
	l.ids[s.ids.Session] = true
}

func (l *left) has(id log.Session) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ids[id]
}

func (l *left) remove(ids map[log.Session]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range ids {
		delete(l.ids, id)
	}
}

// abandoned returns the session of a machine that is dead and has stored most, after those that it
// went on from itself; none if there is none.
func (r *Room) abandoned(ctx context.Context, st *state.State, machine string) ([]state.Adopted, error) {
	all, err := st.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	var best *state.Session
	for i := range all {
		x := &all[i]
		if x.AdoptedBy == (log.Session{}) && r.isDead(x, machine) && (best == nil || len(x.Own) > len(best.Own)) {
			best = x
		}
	}
	var chain []state.Adopted
	for best != nil {
		chain = append(chain, state.Adopted{Session: best.ID, Progress: uint32(len(best.Progress))})
		i := slices.IndexFunc(all, func(x state.Session) bool { return x.AdoptedBy == best.ID })
		if best = nil; i >= 0 {
			best = &all[i]
		}
	}
	slices.Reverse(chain)
	return chain, nil
}

func (r *Room) isDead(x *state.Session, machine string) bool {
	if len(x.Progress) == 0 || x.Progress[0].Machine != machine {
		return false
	}
	return r.left.has(x.ID) || r.Gone != nil && r.Gone(x.Progress[0].Holder)
}

// adopt goes on from the last of the sessions that were found. The entry of progress beside the
// adoption is by what the next one can adopt this session in turn. If another was faster, nothing
// is adopted.
func (s *Session) adopt(ctx context.Context) error {
	from := s.telling.from
	a := state.Adopt{From: from[len(from)-1], By: s.ids.Session}
	p := state.Progress{Session: s.ids.Session, Machine: s.machine, Holder: s.room.Holder}
	_, err := s.room.Journal.Append(ctx, func(ctx context.Context, st *state.State) ([]log.Op, error) {
		if err := a.Check(ctx, st); err != nil {
			return nil, err
		}
		return []log.Op{a.Op(), p.Op()}, nil
	})
	if errors.Is(err, state.ErrEnded) {
		s.telling.from = nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("go on with what an earlier session of %s stored: %w", s.machine, err)
	}
	s.acknowledged(nil, 1)
	s.telling.adopted = map[log.Session]bool{}
	for _, x := range from {
		s.telling.adopted[x.Session] = true
	}
	s.room.left.remove(s.telling.adopted)
	return s.room.Index.Sync(ctx)
}
