package content

import (
	"context"
	"fmt"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// maxCachedNodes bounds the node cache: 2 KiB each.
const maxCachedNodes = 2048

// nodeCache keeps recently read tree nodes.
type nodeCache struct {
	mu    sync.Mutex
	nodes map[chunk.ID]*tree.Node
}

func newNodeCache() *nodeCache { return &nodeCache{nodes: make(map[chunk.ID]*tree.Node)} }

func (c *nodeCache) get(id chunk.ID) *tree.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id]
}

func (c *nodeCache) put(id chunk.ID, n *tree.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.nodes) >= maxCachedNodes {
		for k := range c.nodes {
			delete(c.nodes, k)
			break
		}
	}
	c.nodes[id] = n
}

// Node reads a tree node. It implements tree.Reader.
func (s *Source) Node(ctx context.Context, id chunk.ID, level int) (*tree.Node, error) {
	if n := s.nodes.get(id); n != nil && n.Level == level {
		return n, nil
	}
	var buf [tree.MaxNodeSize]byte
	raw, err := s.Chunk(ctx, id, buf[:])
	if err != nil {
		return nil, fmt.Errorf("read tree node %s: %w", id, err)
	}
	n, err := tree.Parse(raw, level)
	if err != nil {
		return nil, fmt.Errorf("read tree node %s: %w: %w", id, ErrCorrupt, err)
	}
	s.nodes.put(id, n)
	return n, nil
}

// Remember puts a node that the caller has just stored where Node finds it. Nobody changes n any
// more.
func (s *Source) Remember(id chunk.ID, n *tree.Node) { s.nodes.put(id, n) }
