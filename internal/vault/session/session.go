// Package session writes the disks of one point.
//
// A [Session] gathers chunks and tree nodes in packs, tells the log of them, and commits the point.
// What it has written is an orphan until an entry names it: nobody needs it, and a sweep finds it.
// A session that lasts tells of its progress on the way, and a later one of the same machine goes
// on with what it stored.
//
// Each tree of a point has a line ([row.Line]). What the tree that it was made from has at the same
// place is inherited, which is why that tree's point must live when this one is committed; what is
// stored belongs to the place that it was stored for; every other use of something that is there
// sets the shared bit of the copy that was found. docs/design/log.md says what that is good for.
//
// Any number of sessions may be at work in one process on one [Room].
package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/journal"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

var (
	// ErrLost reports that something which the point builds on is in the vault no more: collected
	// while the session was at work. A new session that reads the disks anew stores it again.
	ErrLost = errors.New("what the point builds on is gone from the vault meanwhile")
	// ErrBase reports a tree to build on that is of neither the point named nor this session.
	ErrBase = errors.New("the tree to build on is not of the point named")
	// ErrOver reports the use of a session that was committed or aborted.
	ErrOver = errors.New("the session is over")
)

// Room is where sessions are at work: a vault as they see it. The fields are set before the first
// Begin and not changed. A Room must not be copied.
type Room struct {
	Store   blob.Store
	Vault   [16]byte
	Secret  *pack.Secret
	Journal *journal.Journal
	Index   *index.Index
	Content *content.Source

	ChunkKey, NodeKey [32]byte // of the IDs of chunks, and of nodes and manifests
	ChunkSize         int      // bytes
	Workers           int      // goroutines of a PutDisk
	PackSize          int64    // bytes at which a pack is full
	Level             chunk.Level
	Holder            []byte                                // who is at work, and how to see that he is gone
	Gone              func(holder []byte) bool              // whether a holder is proved gone; nil: nobody is
	Finds             func(p *point.RecoveryPoint) []string // words by which a point is found; nil: none

	Every      time.Duration // between entries of progress; 0 means 5 minutes
	EveryBytes int64         // of packs between entries of progress; 0 means 16 GiB

	unsettled unsettled
	left      left
	tools     sync.Pool // of *tools
}

// Session writes the disks of one point. Its methods are safe for concurrent use, but nothing may
// be at work when Commit or Abort is called.
type Session struct {
	room    *Room
	machine string
	ids     *journal.IDs
	ctx     context.Context // of what goes on behind the callers' backs
	cancel  context.CancelFunc

	data, nodes lane
	claims      claims
	uses        uses
	trees       trees
	hashers     sync.Pool
	damaged     map[log.ObjectID]bool // packs whose rows do not count as stored
	telling     telling
	over        atomic.Bool

	mu     sync.Mutex
	failed error // the first
}

// Begin begins a session. If machine is not "", one of the same machine that is dead may have left
// something: this session goes on with it.
func (r *Room) Begin(ctx context.Context, machine string) (*Session, error) {
	if err := r.Index.Sync(ctx); err != nil {
		return nil, fmt.Errorf("begin session: %w", err)
	}
	s := &Session{room: r, machine: machine, ids: r.Journal.NewIDs()}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.data.begin(s, r.PackSize)
	s.nodes.begin(s, min(nodePackSize, r.PackSize))
	s.hashers.New = func() any { return chunk.NewHasher(r.NodeKey) }
	s.telling.last = time.Now()
	err := r.Journal.View(ctx, func(st *state.State) error { return s.look(ctx, st) })
	if err == nil && s.telling.from != nil {
		err = s.adopt(ctx)
	}
	if err != nil {
		s.end()
		return nil, fmt.Errorf("begin session: %w", err)
	}
	return s, nil
}

// look takes from the state what the session must know.
func (s *Session) look(ctx context.Context, st *state.State) error {
	var err error
	if s.damaged, err = damagedPacks(ctx, st); err != nil || s.machine == "" {
		return err
	}
	s.telling.from, err = s.room.abandoned(ctx, st, s.machine)
	return err
}

// Abort ends the session without a point. Packs that were finished stay: an entry that nobody knows
// the fate of may name them. It is a no-op after Commit.
func (s *Session) Abort() {
	if s.over.CompareAndSwap(false, true) {
		s.end()
	}
}

// end ends all that is under way. What no entry names is forgotten.
func (s *Session) end() {
	s.over.Store(true)
	s.cancel()
	s.data.drop()
	s.nodes.drop()
	s.telling.wait.Wait()
	s.forget(s.telling.takePacks())
	s.room.left.add(s)
}

// fail notes that the session cannot be committed.
func (s *Session) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
	}
	return err
}

// err returns why the session can do no more.
func (s *Session) err() error {
	if s.over.Load() {
		return ErrOver
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// owns reports whether a pack is of this session, or of one that it went on from.
func (s *Session) owns(id log.ObjectID) bool {
	return id.Session() == s.ids.Session || s.telling.isAdopted(id)
}

// skip reports whether a copy must not be counted on: its pack is damaged, or of a session of this
// process of which no entry tells yet.
func (s *Session) skip(l *index.Loc) bool {
	return s.damaged[l.Pack.ID] || s.room.unsettled.hides(l.Pack.ID, s.ids.Session)
}

// have reports whether a chunk or node is stored, or being stored by this session, and counts on
// the copy. If it is not the caller has claimed it: it stores and places it, or drops the claim.
func (s *Session) have(ctx context.Context, id chunk.ID) (bool, error) {
	at, taken, err := s.claims.take(ctx, id)
	if err != nil {
		return false, err
	}
	if taken {
		s.uses.share(at.pack, at.slot)
		return true, nil
	}
	loc, found, err := s.room.Index.Find(ctx, id, s.skip)
	if err != nil || !found {
		if err != nil {
			s.claims.drop(id)
		}
		return false, err
	}
	s.count(&loc)
	s.claims.drop(id)
	return true, nil
}

// count counts on a copy that was found. The first use of what an adopted session stored is that
// for which it was stored.
func (s *Session) count(l *index.Loc) {
	if s.telling.isAdopted(l.Pack.ID) && s.uses.first(l.Pack.ID, l.Slot) {
		return
	}
	s.uses.share(l.Pack.ID, l.Slot)
}

// damagedPacks returns the packs in which a check found damage: what they hold does not count as
// stored.
func damagedPacks(ctx context.Context, st *state.State) (map[log.ObjectID]bool, error) {
	found := map[log.ObjectID]bool{}
	return found, st.DamagedPacks(ctx, func(id log.ObjectID) bool {
		found[id] = true
		return true
	})
}
