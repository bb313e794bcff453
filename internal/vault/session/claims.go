package session

import (
	"context"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// claims says which chunks and nodes a session is storing, so that no two workers store the same
// one, and where those of packs lie that the index does not know yet.
type claims struct{ shards [64]claimShard }

type claimShard struct {
	mu sync.Mutex
	of map[chunk.ID]*claim
}

// claim is a chunk or node that is being stored or was.
type claim struct {
	place
	placed bool
	node   *tree.Node    // nil for a chunk
	wait   chan struct{} // closed once it is placed, or dropped; nil while nobody waits
}

// place is a row of a pack of this session.
type place struct {
	pack log.ObjectID
	slot uint32
}

func (c *claims) shard(id chunk.ID) *claimShard { return &c.shards[id[0]%64] }

// take claims id, or returns where it lies; it waits for one who is storing it.
func (c *claims) take(ctx context.Context, id chunk.ID) (at place, taken bool, err error) {
	for {
		x, wait := c.shard(id).take(id)
		if wait == nil {
			return x.place, x.placed, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return at, false, ctx.Err()
		}
	}
}

// take returns a copy of the claim of id, a new one if there was none, and what to wait for before
// it is asked for again.
func (s *claimShard) take(id chunk.ID) (x claim, wait chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.of[id]
	switch {
	case was == nil:
		if s.of == nil {
			s.of = map[chunk.ID]*claim{}
		}
		s.of[id] = &claim{}
		return x, nil
	case was.placed:
		return *was, nil
	case was.wait == nil:
		was.wait = make(chan struct{})
	}
	return x, was.wait
}

// put says where what was claimed lies. node is nil for a chunk.
func (c *claims) put(id chunk.ID, at place, node *tree.Node) {
	s := c.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.of[id]
	x.place, x.placed, x.node = at, true, node
	x.wake()
}

// drop gives a claim up.
func (c *claims) drop(id chunk.ID) {
	s := c.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of[id].wake()
	delete(s.of, id)
}

func (x *claim) wake() {
	if x.wait != nil {
		close(x.wait)
		x.wait = nil
	}
}

// known drops the claims of a pack's rows: the index answers for them now.
func (c *claims) known(entries []pack.Entry) {
	for i := range entries {
		s := c.shard(entries[i].ID)
		s.mu.Lock()
		delete(s.of, entries[i].ID)
		s.mu.Unlock()
	}
}

// nodeOf returns a node of a pack that the index does not know yet, nil if it is none.
func (c *claims) nodeOf(id chunk.ID) *tree.Node {
	s := c.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.of[id]; x != nil {
		return x.node
	}
	return nil
}
