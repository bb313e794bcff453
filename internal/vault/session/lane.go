package session

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

const (
	// nodePackSize is the size in bytes at which a pack of nodes is full.
	nodePackSize = 16 << 20
	// maxCommits is how many full packs of a lane may be on their way before a worker has to wait.
	maxCommits = 4
)

// lane hands out packs that are being filled: each worker borrows one, so that no lock is held
// meanwhile, neighbours of a disk are neighbours in a pack, and few are open when few work.
type lane struct {
	s     *Session
	limit int64 // bytes

	commits errgroup.Group // full packs on their way, while the workers go on

	mu   sync.Mutex
	free []*pack.Writer
	all  map[*pack.Writer]bool // that are not committed
}

func (l *lane) begin(s *Session, limit int64) {
	l.s, l.limit, l.all = s, limit, map[*pack.Writer]bool{}
	l.commits.SetLimit(maxCommits)
}

func (l *lane) borrow() *pack.Writer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.free); n > 0 {
		w := l.free[n-1]
		l.free = l.free[:n-1]
		return w
	}
	w := l.s.room.Secret.Begin(l.s.room.Store, l.s.room.Vault, l.s.ids.Next())
	l.all[w] = true
	return w
}

// giveBack returns a borrowed pack. A full one is committed behind the worker's back.
func (l *lane) giveBack(w *pack.Writer) {
	if w.Full(l.limit) {
		l.commit(w)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = append(l.free, w)
}

// commit commits a pack in the background; wait tells if that failed.
func (l *lane) commit(w *pack.Writer) {
	l.commits.Go(func() error {
		if err := l.s.commitPack(l.s.ctx, w); err != nil {
			return l.s.fail(err)
		}
		l.forget(w)
		l.s.tellIfDue()
		return nil
	})
}

func (l *lane) forget(w *pack.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, w)
}

// commitPack commits a pack, and lets the index know it.
func (s *Session) commitPack(ctx context.Context, w *pack.Writer) error {
	o, entries, err := w.Commit(ctx)
	if err != nil {
		return fmt.Errorf("store pack %s: %w", w.ID(), err)
	}
	s.room.unsettled.add(o.ID, s.ids.Session) // before anybody can find its rows
	s.room.Index.Know(o, entries)
	s.claims.known(entries)
	s.telling.addPack(o)
	return nil
}

// drop ends the lane: what is not committed never will be.
func (l *lane) drop() {
	_ = l.commits.Wait() // whoever needed them has seen the error
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.all {
		w.Abort()
	}
	l.all, l.free = nil, nil
}

// rest returns the packs that are not full. None may be borrowed.
func (l *lane) rest() []*pack.Writer {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := l.free
	l.free = nil
	return rest
}

// finish commits all packs but one, which it returns to take the manifest; nil if none is open.
func (s *Session) finish(ctx context.Context) (*pack.Writer, error) {
	rest, err := s.joined(ctx, append(s.data.rest(), s.nodes.rest()...))
	if err != nil {
		return nil, s.fail(err)
	}
	var last *pack.Writer
	if n := len(rest); n > 0 {
		rest, last = rest[:n-1], rest[n-1]
	}
	for _, w := range rest {
		s.data.commit(w)
	}
	if err := s.data.commits.Wait(); err != nil {
		return nil, err
	}
	if err := s.nodes.commits.Wait(); err != nil {
		return nil, err
	}
	s.telling.wait.Wait()
	return last, s.err()
}

// joined joins small packs, so that a small point is one object, and returns what is left, the
// largest first.
func (s *Session) joined(ctx context.Context, rest []*pack.Writer) (left []*pack.Writer, err error) {
	slices.SortStableFunc(rest, func(a, b *pack.Writer) int { return cmp.Compare(b.Size(), a.Size()) })
	for _, w := range rest {
		ok, err := s.join(ctx, left, w)
		if err != nil {
			return nil, fmt.Errorf("join packs: %w", err)
		}
		if !ok {
			left = append(left, w)
		}
	}
	return left, nil
}

// join appends w to one of some packs, if there is one with room.
func (s *Session) join(ctx context.Context, to []*pack.Writer, w *pack.Writer) (bool, error) {
	for _, t := range to {
		if t.Size()+w.Size() > s.room.PackSize {
			continue
		}
		if first, ok, err := t.Join(ctx, w); err != nil {
			return false, err
		} else if ok {
			s.uses.moved(w.ID(), t.ID(), uint32(first))
			return true, nil
		}
	}
	return false, nil
}
