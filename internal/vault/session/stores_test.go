package session_test

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
)

// cancelling ends a context at one of its calls.
type cancelling struct {
	blob.Store
	cancel func()

	mu   sync.Mutex
	left int // calls before that
}

func (c *cancelling) count() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left == -1 {
		c.cancel()
	}
}

func (c *cancelling) Create(ctx context.Context, name string) (blob.Writer, error) {
	c.count()
	w, err := c.Store.Create(ctx, name)
	return &cancellingWriter{w, c}, err
}

type cancellingWriter struct {
	blob.Writer
	c *cancelling
}

func (w *cancellingWriter) Commit(ctx context.Context) error {
	w.c.count()
	return w.Writer.Commit(ctx)
}

func (c *cancelling) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	c.count()
	return c.Store.ReadAt(ctx, name, p, off)
}

func (c *cancelling) Absent(ctx context.Context, name string) (bool, error) {
	c.count()
	return c.Store.Absent(ctx, name)
}

// far is a store a round trip away: each call takes one, in virtual time. Settling costs nothing,
// as in an object store.
type far struct {
	*mem.Store
	puts atomic.Int64
}

const trip = 50 * time.Millisecond

func (f *far) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := f.Store.Create(ctx, name)
	return &farWriter{Writer: w, far: f}, err
}

type farWriter struct {
	blob.Writer
	far *far
}

func (w *farWriter) Commit(ctx context.Context) error {
	time.Sleep(trip)
	w.far.puts.Add(1)
	return w.Writer.Commit(ctx)
}

func (f *far) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	time.Sleep(trip)
	return f.Store.ReadAt(ctx, name, p, off)
}

func (f *far) Stat(ctx context.Context, name string) (blob.Info, error) {
	time.Sleep(trip)
	return f.Store.Stat(ctx, name)
}

func (f *far) Absent(ctx context.Context, name string) (bool, error) {
	time.Sleep(trip)
	return f.Store.Absent(ctx, name)
}

// trips returns how many round trips, one after the other, something takes.
func trips(do func()) int {
	began := time.Now()
	do()
	return int(time.Since(began) / trip)
}
