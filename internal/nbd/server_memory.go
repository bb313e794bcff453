package nbd

import (
	"math/bits"
	"sync"
)

const (
	headRoom   = 64 // before the data of a buffer, for the longest header
	leastClass = 12 // of buffers: 4 KiB
	mostClass  = 25 // 32 MiB
)

// grant is memory that a request may use.
type grant struct {
	bytes    int64
	reserved bool // it is the one beyond the limit
}

// share is the most that one connection may have of the memory limit.
func (o *ServerOptions) share() int64 { return max(o.MemoryLimit/4, 1) }

// acquire waits for n bytes. A connection that has none gets them at once, so that those that hold
// theirs for long stop nobody.
func (c *connection) acquire(n int64) (grant, error) {
	if c.reserved.CompareAndSwap(false, true) {
		return grant{reserved: true}, nil
	}
	n = min(n, c.opts.share())
	if err := c.share.Acquire(c.ctx, n); err != nil {
		return grant{}, err
	}
	if err := c.server.memory.Acquire(c.ctx, n); err != nil {
		c.share.Release(n)
		return grant{}, err
	}
	return grant{bytes: n}, nil
}

func (c *connection) free(g grant) {
	switch {
	case g.reserved:
		c.reserved.Store(false)
	case g.bytes > 0:
		c.server.memory.Release(g.bytes)
		c.share.Release(g.bytes)
	}
}

// buffer is memory from a pool. It has one owner at a time, the last of whom calls recycle.
type buffer struct {
	raw   []byte // headRoom and the data
	class int

	grant grant
	send  []byte // what of raw is an answer
	last  bool   // it ends its request
}

var buffers [mostClass - leastClass + 1]sync.Pool

// newBuffer returns a buffer for n bytes of data, at most 32 MiB. What it holds is left from
// others: all of it must be overwritten.
func newBuffer(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), leastClass)
	if b, ok := buffers[class-leastClass].Get().(*buffer); ok {
		return b
	}
	return &buffer{raw: make([]byte, headRoom+1<<class), class: class}
}

func (b *buffer) data(n int) []byte { return b.raw[headRoom : headRoom+n] }

func (b *buffer) recycle() {
	b.grant, b.send, b.last = grant{}, nil, false
	buffers[b.class-leastClass].Put(b)
}

// granted returns a buffer for n bytes when there is memory for it.
func (c *connection) granted(n int) (*buffer, error) {
	g, err := c.acquire(int64(n))
	if err != nil {
		return nil, err
	}
	b := newBuffer(n)
	b.grant = g
	return b, nil
}

// discard gives b and its memory back.
func (c *connection) discard(b *buffer) {
	g := b.grant
	b.recycle()
	c.free(g)
}
