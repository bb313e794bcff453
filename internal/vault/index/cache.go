package index

import (
	"context"
	"sync"
)

// cacheBlocks bounds the cache: 16 MiB.
const cacheBlocks = 4096

type blockKey struct {
	seg     *page // the segment's first
	section section
	n       int
}

// cache keeps opened blocks. When it is full, an arbitrary one makes room: look-ups are random, and
// recency says nothing.
type cache struct {
	mu     sync.RWMutex
	blocks map[blockKey][]byte
}

func newCache() *cache { return &cache{blocks: make(map[blockKey][]byte)} }

// get returns the plain bytes of a block, which nobody changes.
func (c *cache) get(ctx context.Context, s *segment, sec section, n int) ([]byte, error) {
	key := blockKey{&s.pages[0], sec, n}
	c.mu.RLock()
	b := c.blocks[key]
	c.mu.RUnlock()
	if b != nil {
		return b, nil
	}
	b, err := s.read(ctx, sec, n, n+1, nil)
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
	c.blocks[key] = b
	return b, nil
}

// drop forgets the blocks of segments that are used no more.
func (c *cache) drop(old []*segment) {
	gone := make(map[*page]bool, len(old))
	for _, s := range old {
		gone[&s.pages[0]] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.blocks {
		if gone[k.seg] {
			delete(c.blocks, k)
		}
	}
}
