package export

import (
	"bytes"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// Chunks of a cache that is large enough for slabs are each their own, before and after others made
// room.
func TestLargeCacheKeepsChunksApart(t *testing.T) {
	const size = chunk.DefaultSize
	c := &Cache{limit: 4 * slabBytes,
		shards: []shard{{entries: make(map[chunk.ID]*entry), flights: make(map[chunk.ID]*flight),
			limit: 4 * slabBytes}}}
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
