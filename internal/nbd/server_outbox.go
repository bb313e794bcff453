package nbd

import (
	"bufio"
	"net"
	"sync"
	"time"
)

const (
	writeAtOnce = 4 << 20 // bytes of answers in one go, so that the deadline is for so many
	heldBytes   = 128 << 10
)

// outbox writes answers. Whoever finds nobody writing writes, for the others too, until nothing is
// left.
type outbox struct {
	c *connection

	mu      sync.Mutex
	idle    sync.Cond // writing has become false
	writing bool
	pending []*buffer
	err     error

	deadline time.Time // guarded by writing, as are the next two
	taken    []*buffer
	vector   net.Buffers
}

func (o *outbox) init(c *connection) {
	o.c = c
	o.idle.L = &o.mu
}

// send queues b, whose owner it becomes. It does not report errors: they end the session.
func (o *outbox) send(b *buffer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pending = append(o.pending, b)
	if !o.writing {
		o.writePending()
	}
}

// write writes p. When it returns, p is not read any more.
func (o *outbox) write(p []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.writing {
		o.idle.Wait()
	}
	if o.err != nil {
		return o.err
	}
	o.writing = true
	o.mu.Unlock()
	o.extendDeadline()
	_, err := o.c.conn.Write(p)
	if err == nil {
		err = o.c.hold.flush()
	}
	o.mu.Lock()
	o.fail(err)
	o.writePending()
	return err
}

// fail notes the first error and ends the session. The caller holds mu.
func (o *outbox) fail(err error) {
	if err != nil && o.err == nil {
		o.err = err
		o.c.cancel()
		o.c.raw.Close()
	}
}

// writePending writes what is queued until nothing is. The caller holds mu and is the one who
// writes.
func (o *outbox) writePending() {
	o.writing = true
	for len(o.pending) > 0 {
		batch, err := o.take(), o.err
		o.mu.Unlock()
		if err == nil {
			err = o.writeBatch(batch)
		}
		for i, b := range batch {
			batch[i] = nil
			o.written(b)
		}
		o.mu.Lock()
		o.fail(err)
	}
	o.writing = false
	o.idle.Broadcast()
}

// take removes from the queue what is written in one go.
func (o *outbox) take() []*buffer {
	n, size := 0, 0
	for n < len(o.pending) && size < writeAtOnce {
		size += len(o.pending[n].send)
		n++
	}
	o.taken = append(o.taken[:0], o.pending[:n]...)
	rest := copy(o.pending, o.pending[n:])
	clear(o.pending[rest:])
	o.pending = o.pending[:rest]
	return o.taken
}

func (o *outbox) writeBatch(batch []*buffer) error {
	o.extendDeadline()
	if o.c.hold != nil {
		for _, b := range batch {
			if _, err := o.c.conn.Write(b.send); err != nil {
				return err
			}
		}
		return o.c.hold.flush()
	}
	if len(batch) == 1 {
		_, err := o.c.conn.Write(batch[0].send)
		return err
	}
	o.vector = o.vector[:0]
	for _, b := range batch {
		o.vector = append(o.vector, b.send)
	}
	v := o.vector // WriteTo consumes it
	_, err := v.WriteTo(o.c.conn)
	return err
}

// extendDeadline leaves at least three quarters of the time a client has.
func (o *outbox) extendDeadline() {
	limit := o.c.opts.StallTimeout
	if now := time.Now(); o.deadline.Sub(now) < limit*3/4 {
		o.deadline = now.Add(limit)
		o.c.raw.SetWriteDeadline(o.deadline) // if it fails, so does the write
	}
}

func (o *outbox) written(b *buffer) {
	last := b.last
	o.c.discard(b)
	if last {
		o.c.freeSlot()
	}
}

// heldConn collects what TLS writes, which is a record at a time. A nil heldConn holds nothing.
type heldConn struct {
	net.Conn
	mu  sync.Mutex
	out *bufio.Writer // nil: not yet
}

// begin holds writes from now on until flush.
func (h *heldConn) begin() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.out = bufio.NewWriterSize(h.Conn, heldBytes)
}

func (h *heldConn) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.out == nil {
		return h.Conn.Write(p)
	}
	return h.out.Write(p)
}

func (h *heldConn) flush() error {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.out == nil {
		return nil
	}
	return h.out.Flush()
}

func (h *heldConn) Close() error {
	h.flush() // the goodbye of TLS, if it can still be said
	return h.Conn.Close()
}
