package vault

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// metaPackSize is the size in bytes at which a pack of tree nodes is full.
const metaPackSize = 16 << 20

// Session writes the disks of one point. Its methods are safe for concurrent use. What it has written is garbage until Commit.
type Session struct {
	v       *Vault
	id      [12]byte
	lease   *heldLease
	avoid   map[pack.Ref]bool // condemned or damaged: their chunks do not count as stored
	counter atomic.Uint32
	claims  claims

	data, meta *lane
	hashers    sync.Pool

	mu    sync.Mutex
	bases map[string]bool // roots that PutDisk took over and this session did not make
	made  map[string]bool // roots that this session made
}

// Begin starts a session.
func (v *Vault) Begin(ctx context.Context) (*Session, error) {
	return v.begin(ctx, "session")
}

func (v *Vault) begin(ctx context.Context, what string) (*Session, error) {
	s := &Session{v: v, id: newSessionID(), bases: make(map[string]bool), made: make(map[string]bool)}
	s.claims.ids = make(map[chunk.ID]struct{})
	s.data = &lane{s: s, kind: pack.Data, limit: v.opts.PackSize}
	s.meta = &lane{s: s, kind: pack.Meta, limit: metaPackSize}
	s.data.commits.SetLimit(maxCommits)
	s.meta.commits.SetLimit(maxCommits)
	s.hashers.New = func() any { return chunk.NewHasher(v.sec.nodes) }
	var err error
	// The lease comes first: garbage that is condemned after it waits for this session, garbage condemned before it is avoided.
	if s.lease, err = takeLease(ctx, v.store, newLease(s.id, what)); err != nil {
		return nil, err
	}
	if s.avoid, err = v.notCounted(ctx); err == nil {
		err = v.index.Reload(ctx)
	}
	if err == nil {
		err = v.learnSessions(ctx, hex.EncodeToString(s.id[:]))
	}
	if err != nil {
		_ = s.lease.release(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("begin session: %w", err)
	}
	return s, nil
}

// notCounted returns the packs that a session does not count on: garbage collection is about to delete them, or a check
// found them damaged.
func (v *Vault) notCounted(ctx context.Context) (map[pack.Ref]bool, error) {
	sets, err := v.condemnedSets(ctx)
	if err != nil {
		return nil, err
	}
	out, err := v.damagedPacks(ctx)
	if err != nil {
		return nil, err
	}
	for _, set := range sets {
		for _, r := range set.refs {
			out[r] = true
		}
	}
	return out, nil
}

// claims says which chunks this session is storing or has stored, so that two workers do not store the same one. It forgets those
// that the index knows.
type claims struct {
	mu  sync.Mutex
	ids map[chunk.ID]struct{}
}

// take reports whether the caller is the first to claim id.
func (c *claims) take(id chunk.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, taken := c.ids[id]; taken {
		return false
	}
	c.ids[id] = struct{}{}
	return true
}

func (c *claims) drop(entries []pack.Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range entries {
		delete(c.ids, entries[i].ID)
	}
}

// lane hands out pack writers of one kind: each worker borrows one, so that packs are filled without a lock, and few are open when few work.
type lane struct {
	s     *Session
	kind  pack.Kind
	limit int64

	commits errgroup.Group // full packs on their way to the disk, while the workers go on

	mu   sync.Mutex
	free []*pack.Writer
	all  map[*pack.Writer]bool
}

func (l *lane) borrow(ctx context.Context) (*pack.Writer, error) {
	l.mu.Lock()
	if n := len(l.free); n > 0 {
		w := l.free[n-1]
		l.free = l.free[:n-1]
		l.mu.Unlock()
		return w, nil
	}
	l.mu.Unlock()
	var id pack.ID
	copy(id[:], l.s.id[:])
	n := l.s.counter.Add(1)
	id[12], id[13], id[14], id[15] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	w, err := l.s.v.packs.Create(ctx, l.s.v.store, pack.Ref{ID: id, Kind: l.kind}, l.s.v.id)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = make(map[*pack.Writer]bool)
	}
	l.all[w] = true
	return w, nil
}

// maxCommits is how many full packs may be on their way to the disk before a worker has to wait.
const maxCommits = 4

// giveBack returns a borrowed writer. A full one is committed behind the worker's back; finish tells if that failed.
func (l *lane) giveBack(ctx context.Context, w *pack.Writer) error {
	if w.Full(l.limit) {
		ctx = context.WithoutCancel(ctx) // it outlives the PutDisk that filled it
		l.commits.Go(func() error { return l.commit(ctx, w) })
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = append(l.free, w)
	return nil
}

func (l *lane) commit(ctx context.Context, w *pack.Writer) error {
	entries, err := w.Commit(ctx)
	if err != nil {
		return err
	}
	info, err := l.s.v.store.Stat(ctx, w.Ref().Name())
	if err != nil {
		return fmt.Errorf("look at pack %s: %w", w.Ref().ID, err)
	}
	l.mu.Lock()
	delete(l.all, w)
	l.mu.Unlock()
	if err := l.s.v.index.Add(ctx, w.Ref(), info.Size, entries); err != nil {
		return err
	}
	l.s.claims.drop(entries) // the index answers for them now
	return nil
}

// finish commits all writers. None may be borrowed.
func (l *lane) finish(ctx context.Context) error {
	l.mu.Lock()
	free := l.free
	l.free = nil
	l.mu.Unlock()
	for _, w := range free {
		l.commits.Go(func() error { return l.commit(ctx, w) })
	}
	return l.commits.Wait()
}

func (l *lane) abort() {
	_ = l.commits.Wait() // whoever needed them has seen the error
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.all {
		w.Abort()
	}
	l.all, l.free = nil, nil
}

// have reports whether the chunk id is stored, or being stored by this session. If not, the caller has claimed it and must store it.
func (s *Session) have(ctx context.Context, id chunk.ID) (bool, error) {
	if !s.claims.take(id) {
		return true, nil
	}
	_, found, err := s.v.index.FindKept(ctx, id, func(l index.Loc) bool { return l.Cut || s.avoid[l.Ref] })
	if err != nil || found {
		s.claims.mu.Lock()
		delete(s.claims.ids, id)
		s.claims.mu.Unlock()
	}
	return found, err
}

// nodeWriter stores tree nodes and counts the bytes they take.
type nodeWriter struct {
	*Vault
	s     *Session
	added *atomic.Int64
}

// PutNode implements tree.Writer.
func (n nodeWriter) PutNode(ctx context.Context, node *tree.Node) (chunk.ID, error) {
	var buf [tree.MaxNodeSize]byte
	raw := node.Append(buf[:0])
	h := n.s.hashers.Get().(*chunk.Hasher)
	id := h.ID(raw)
	n.s.hashers.Put(h)
	keep := *node
	n.nodes.put(id, &keep)
	if found, err := n.s.have(ctx, id); err != nil || found {
		return id, err
	}
	w, err := n.s.meta.borrow(ctx)
	if err != nil {
		return id, err
	}
	e, err := w.Append(id, len(raw), raw, chunk.Plain)
	if err != nil {
		return id, err
	}
	n.added.Add(int64(e.Stored) + pack.EntrySize)
	return id, n.s.meta.giveBack(ctx, w)
}

// Commit makes everything durable and then writes p, whose ID must be fresh, as the point. When it returns nil the point survives power
// loss. After an error the session is over, and whether the point exists is known by looking for it.
func (s *Session) Commit(ctx context.Context, p *point.RecoveryPoint) error {
	defer s.end(context.WithoutCancel(ctx))
	if err := s.finish(ctx); err != nil {
		return fmt.Errorf("commit point %s: %w", p.ID, err)
	}
	raw, err := s.v.sealPoint(p)
	if err != nil {
		return err
	}
	if err := s.lease.check(ctx); err != nil {
		return fmt.Errorf("commit point %s: %w", p.ID, err)
	}
	if err := s.checkBases(ctx, p); err != nil {
		return fmt.Errorf("commit point %s: %w", p.ID, err)
	}
	if p.CopiedFrom != nil {
		if err := s.v.forgetListed(ctx, p.ID); err != nil {
			return fmt.Errorf("commit point %s: %w", p.ID, err)
		}
	}
	name := pointsPrefix + string(p.ID)
	if err := blob.Put(ctx, s.v.store, name, raw); err != nil {
		return fmt.Errorf("commit point %s: %w", p.ID, err)
	}
	// Whoever breaks a lease looks at the points afterwards: either they saw this one, or we see the broken lease.
	if err := s.lease.check(ctx); errors.Is(err, ErrLeaseLost) {
		err = errors.Join(err, s.v.store.Delete(ctx, name))
		return fmt.Errorf("commit point %s: %w", p.ID, err)
	}
	s.v.listPoint(ctx, p)
	return nil
}

// checkBases looks for everything that p needs, if a point it was made from is gone and packs were condemned when the session began: garbage collection
// does not wait for this session before it deletes those, and only that point may have come to need one of them.
func (s *Session) checkBases(ctx context.Context, p *point.RecoveryPoint) error {
	if len(s.avoid) == 0 || len(s.bases) == 0 {
		return nil
	}
	points, err := s.v.Summaries(ctx, nil)
	if err != nil {
		return err
	}
	there := make(map[string]bool)
	for _, q := range points {
		for _, d := range q.Disks {
			there[d.Root] = true
		}
		for _, f := range q.Files {
			there[f.Root] = true
		}
	}
	for base := range s.bases {
		if !there[base] {
			return s.requireWhole(ctx, p)
		}
	}
	return nil
}

func (s *Session) requireWhole(ctx context.Context, p *point.RecoveryPoint) error {
	if err := s.v.index.Refresh(ctx); err != nil {
		return err
	}
	snap, err := s.v.index.Snapshot(ctx)
	if err != nil {
		return err
	}
	m := newMarks(snap, nil)
	lost := 0
	m.missing = func(chunk.ID) { lost++ }
	if err := s.v.markPoint(ctx, m, p); err != nil {
		return err
	}
	if lost > 0 {
		return fmt.Errorf("%w: the point that it was made from was deleted meanwhile, and %d chunks with it; back up again", ErrNoPoint, lost)
	}
	return nil
}

func (s *Session) finish(ctx context.Context) error {
	if err := s.data.finish(ctx); err != nil {
		return err
	}
	if err := s.meta.finish(ctx); err != nil {
		return err
	}
	return s.v.index.SessionEnd(ctx)
}

// Abort ends the session without a point. Packs that were finished stay until garbage collection: another session may count on them.
func (s *Session) Abort() {
	if s.lease == nil {
		return
	}
	s.data.abort()
	s.meta.abort()
	_ = s.v.index.SessionEnd(context.Background()) // without it the next session may store anew what this one has stored
	s.end(context.Background())
}

func (s *Session) end(ctx context.Context) {
	if s.lease == nil {
		return
	}
	s.data.abort()
	s.meta.abort()
	_ = s.lease.release(ctx) // a lease left behind dies with this process
	s.lease = nil
}
