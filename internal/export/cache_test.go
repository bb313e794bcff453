package export

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// Chunks of a cache that is large enough for slabs are each their own, before and after others made
// room.
func TestLargeCacheKeepsChunksApart(t *testing.T) {
	const size = chunk.DefaultSize
	c := &Cache{limit: 4 * slabBytes,
		shards: []shard{{entries: make(map[chunk.ID]*entry), flights: make(map[chunk.ID]*flight),
			limit: 4 * slabBytes}}, memory: memory{slabs: true}}
	c.shards[0].memory = &c.memory
	content := func(n int) []byte { return bytes.Repeat([]byte{byte(n), byte(n >> 8)}, size/2) }
	id := func(n int) *chunk.ID { return &chunk.ID{1: byte(n), 2: byte(n >> 8), 3: 1} }
	got := make([]byte, size)
	chunks := 3 * int(c.Limit()/size) / 2
	for n := range chunks {
		f, mine := c.claim(id(n), size)
		if !mine || len(f.plain) != size {
			t.Fatalf("chunk %d: claimed %v, %d bytes", n, mine, len(f.plain))
		}
		copy(f.plain, content(n))
		c.land(f, nil)
		for _, old := range []int{n, n - 1, n / 2} {
			if c.read(id(max(old, 0)), got, 0) && !bytes.Equal(got, content(max(old, 0))) {
				t.Fatalf("chunk %d is not what it was after chunk %d", old, n)
			}
		}
	}
	if kept := c.Bytes(); kept > c.Limit() || kept < c.Limit()-size {
		t.Errorf("%d bytes are kept of %d", kept, c.Limit())
	}
	if !c.read(id(chunks-1), got, 0) {
		t.Error("the last chunk is not kept")
	}
}

// A cache takes memory for what is in it: pages that nobody uses cost a boot its time.
func TestLargeCacheTakesMemoryForWhatItHolds(t *testing.T) {
	const size, chunks = chunk.DefaultSize, 64
	c := NewCache(256 << 20)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for n := range chunks {
		f, _ := c.claim(&chunk.ID{byte(n), 1}, size)
		c.land(f, nil)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > chunks*size+slabBytes+1<<20 {
		t.Errorf("%d bytes were taken for %d", took, chunks*size)
	}
}
