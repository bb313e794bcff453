package export

import (
	"sync"
	"sync/atomic"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// maxShards is how many parts a cache has at most: each has a lock of its own.
const maxShards = 16

// slabBytes is how much memory new buffers are cut from: of a size that the kernel gives at once,
// not page by page, each of which costs about as much as reading the page's bytes from a pack.
const slabBytes = 4 << 20

// Cache keeps decoded chunks of any number of disks, up to a limit in bytes. Chunks are known by
// their ID, so that disks which share a chunk share its place. What is being fetched is fetched
// once, however many ask for it. When it is full, a chunk that was not read since the last look
// makes room. A Cache is safe for concurrent use.
type Cache struct {
	shards []shard
	limit  int64
	memory memory
}

type shard struct {
	mu      sync.RWMutex // readers copy under it, so that whoever holds it for writing may use a buffer again
	entries map[chunk.ID]*entry
	flights map[chunk.ID]*flight
	ring    []*entry // the clock's face
	hand    int
	bytes   int64
	limit   int64
	spare   [][]byte // buffers of chunks that made room
	memory  *memory  // where new buffers are from
}

// memory gives out buffers of a slab, to all shards of a cache: what is taken from the kernel is
// little more than what is used.
type memory struct {
	slabs bool // else each buffer is taken alone

	mu   sync.Mutex
	slab []byte // what is left of it
}

type entry struct {
	id    chunk.ID
	plain []byte
	used  atomic.Bool // read since the hand passed
}

// flight is a chunk on its way into the cache.
type flight struct {
	id    chunk.ID
	plain []byte // belongs to whoever claimed it, until it has landed
	done  chan struct{}
	err   error // valid once done is closed
}

// NewCache returns a cache of at most limit bytes, but of some chunks at least.
func NewCache(limit int64) *Cache {
	n := 1
	for n < maxShards && limit/int64(2*n) >= 16*chunk.DefaultSize {
		n *= 2
	}
	c := &Cache{shards: make([]shard, n), limit: limit}
	c.memory.slabs = limit >= 8*slabBytes
	for i := range c.shards {
		s := &c.shards[i]
		s.entries, s.flights, s.limit = make(map[chunk.ID]*entry), make(map[chunk.ID]*flight), limit/int64(n)
		s.memory = &c.memory
	}
	return c
}

// Limit returns the most bytes that the cache keeps.
func (c *Cache) Limit() int64 { return c.limit }

// Bytes returns how many bytes are kept now.
func (c *Cache) Bytes() (n int64) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		n += s.bytes
		s.mu.RUnlock()
	}
	return n
}

func (c *Cache) shard(id *chunk.ID) *shard { return &c.shards[int(id[0])&(len(c.shards)-1)] }

// read copies from offset off of a chunk and reports whether it was there.
func (c *Cache) read(id *chunk.ID, p []byte, off int64) bool {
	s := c.shard(id)
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.entries[*id]
	if e == nil {
		return false
	}
	copy(p, e.plain[off:])
	if !e.used.Load() {
		e.used.Store(true)
	}
	return true
}

// has reports whether a chunk is there or on its way.
func (c *Cache) has(id *chunk.ID) bool {
	s := c.shard(id)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.entries[*id] != nil || s.flights[*id] != nil
}

// claim returns the flight of a chunk, nil if it is there. If mine is true the flight is new, and
// the caller must fetch size bytes into its buffer and land it.
func (c *Cache) claim(id *chunk.ID, size int64) (f *flight, mine bool) {
	s := c.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[*id] != nil {
		return nil, false
	}
	if f := s.flights[*id]; f != nil {
		return f, false
	}
	f = &flight{id: *id, plain: s.buffer(size), done: make(chan struct{})}
	s.flights[*id] = f
	return f, true
}

// land ends a flight: unless err says that it failed, its chunk is in the cache afterwards.
func (c *Cache) land(f *flight, err error) {
	s := c.shard(&f.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.flights, f.id)
	if f.err = err; err == nil {
		s.insert(&entry{id: f.id, plain: f.plain})
	} else {
		s.keepSpare(f.plain)
	}
	f.plain = nil
	close(f.done)
}

func (s *shard) insert(e *entry) {
	size := int64(len(e.plain))
	for s.bytes+size > s.limit && len(s.ring) > 0 {
		s.evict()
	}
	s.entries[e.id] = e
	s.ring = append(s.ring, e)
	s.bytes += size
}

// evict lets the hand go on to a chunk that was not read since it passed, and drops that.
func (s *shard) evict() {
	for {
		if s.hand >= len(s.ring) {
			s.hand = 0
		}
		e := s.ring[s.hand]
		if e.used.Swap(false) {
			s.hand++
			continue
		}
		last := len(s.ring) - 1
		s.ring[s.hand] = s.ring[last]
		s.ring[last] = nil
		s.ring = s.ring[:last]
		delete(s.entries, e.id)
		s.bytes -= int64(len(e.plain))
		s.keepSpare(e.plain)
		return
	}
}

// maxSpare is how many buffers a shard keeps for flights to come.
const maxSpare = 16

func (s *shard) keepSpare(b []byte) {
	if len(s.spare) < maxSpare {
		s.spare = append(s.spare, b)
	}
}

func (s *shard) buffer(size int64) []byte {
	for n := len(s.spare); n > 0; n-- {
		b := s.spare[n-1]
		s.spare = s.spare[:n-1]
		if int64(len(b)) == size {
			return b
		}
	}
	return s.memory.take(size)
}

// take returns a new buffer of the slab, or of a new slab when that is used up.
func (m *memory) take(size int64) []byte {
	if !m.slabs || size > slabBytes {
		return make([]byte, size)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if int64(len(m.slab)) < size {
		m.slab = make([]byte, slabBytes)
		hugePages(m.slab)
	}
	b := m.slab[:size:size]
	m.slab = m.slab[size:]
	return b
}
