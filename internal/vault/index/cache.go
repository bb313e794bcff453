package index

import (
	"context"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// cacheBlocks bounds the block cache: 16 MiB.
const cacheBlocks = 4096

type blockKey struct {
	name  string
	block int
}

// blockCache keeps checked blocks. When it is full, an arbitrary one makes room: look-ups are random, recency says nothing.
type blockCache struct {
	mu     sync.RWMutex
	blocks map[blockKey][]byte // the rows
}

func newBlockCache() *blockCache { return &blockCache{blocks: make(map[blockKey][]byte)} }

// get returns the rows of block b of s.
func (c *blockCache) get(ctx context.Context, store blob.Store, s *segment, b int) ([]byte, error) {
	key := blockKey{s.name, b}
	c.mu.RLock()
	rows := c.blocks[key]
	c.mu.RUnlock()
	if rows != nil {
		return rows, nil
	}
	rows, err := s.block(ctx, store, b, make([]byte, blockSize))
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.blocks) >= cacheBlocks {
		for k := range c.blocks {
			delete(c.blocks, k)
			break
		}
	}
	c.blocks[key] = rows
	return rows, nil
}
