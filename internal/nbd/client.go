package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	socketBuffer = 1 << 20
	cancelGrace  = time.Second // for bytes on the move when a caller gives up; then the connection is given up
)

// Options says whom to dial and how. The zero value of each field but the first two is its default.
type Options struct {
	Network string // "unix" or "tcp"
	Address string // socket path, or host:port

	Export         string
	MetaContexts   []string      // wanted for BlockStatus, such as base:allocation; those not offered are left out
	TLS            *tls.Config   // nil speaks in the clear; ServerName defaults to the host dialled
	Window         int           // requests under way at once; 0 means 16
	RequestTimeout time.Duration // longest time for an answer, and for the handshake; 0 means one minute
}

func (o Options) withDefaults() Options {
	if o.Window <= 0 {
		o.Window = 16
	}
	if o.RequestTimeout <= 0 {
		o.RequestTimeout = time.Minute
	}
	return o
}

func (o Options) validate() error {
	if len(o.Export) > maxName {
		return fmt.Errorf("export name of %d bytes", len(o.Export))
	}
	for _, name := range o.MetaContexts {
		if len(name) > maxName {
			return fmt.Errorf("meta context name of %d bytes", len(name))
		}
	}
	return nil
}

// Client is one connection to one export. Its methods are safe for concurrent use.
type Client struct {
	conn    net.Conn
	in      *bufio.Reader // owned by receive
	timeout time.Duration
	export  exportInfo

	window   chan struct{} // holds a token per request under way
	sending  chan struct{} // held by whatever writes to conn
	received chan struct{} // closed when receive has ended

	mu      sync.Mutex
	pending map[uint64]*request
	cookie  uint64
	err     error         // why the connection is of no more use; set once
	failed  chan struct{} // closed when err is set
}

// Dial connects to an export. The error wraps ErrNoExport or ErrTLSRequired where that is why.
func Dial(ctx context.Context, o Options) (*Client, error) {
	o = o.withDefaults()
	h, x, err := dialExport(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("connect to NBD export %q at %s: %w", o.Export, o.Address, err)
	}
	c := newClient(h.conn, *x, o)
	go c.receive()
	return c, nil
}

func dialExport(ctx context.Context, o Options) (*handshake, *exportInfo, error) {
	if err := o.validate(); err != nil {
		return nil, nil, err
	}
	h, err := connect(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	release := h.bound(ctx, o.RequestTimeout)
	x, err := h.negotiate(o)
	release()
	if err != nil {
		h.conn.Close()
		return nil, nil, contextual(ctx, err)
	}
	return h, x, nil
}

func newClient(conn net.Conn, x exportInfo, o Options) *Client {
	return &Client{
		conn: conn, in: bufio.NewReaderSize(conn, 32<<10), timeout: o.RequestTimeout, export: x,
		window: make(chan struct{}, o.Window), sending: make(chan struct{}, 1), received: make(chan struct{}),
		pending: make(map[uint64]*request), failed: make(chan struct{}),
	}
}

// List returns the exports of a server. Options.Export is ignored.
func List(ctx context.Context, o Options) ([]Export, error) {
	o = o.withDefaults()
	h, err := connect(ctx, o)
	if err == nil {
		defer h.conn.Close()
		defer h.bound(ctx, o.RequestTimeout)()
		var exports []Export
		if exports, err = h.list(); err == nil {
			return exports, nil
		}
		err = contextual(ctx, err)
	}
	return nil, fmt.Errorf("list NBD exports at %s: %w", o.Address, err)
}

// Size returns the size of the export.
func (c *Client) Size() int64 { return c.export.size }

// Flags returns what the export can do.
func (c *Client) Flags() Flags { return c.export.flags }

// BlockSize returns the alignment that writes must have; reads may have any.
func (c *Client) BlockSize() int64 { return c.export.minBlock }

// HasContext reports whether the server offers a meta context that was asked for.
func (c *Client) HasContext(name string) bool {
	_, ok := c.export.contexts[name]
	return ok
}

// Close says goodbye and closes the connection. Requests under way end with ErrClosed. Closing
// twice is harmless.
func (c *Client) Close() error {
	select {
	case c.sending <- struct{}{}:
		c.conn.SetWriteDeadline(time.Now().Add(cancelGrace))
		c.conn.Write(c.encode(&request{cmd: cmdDisconnect})) // a courtesy: the server sees the end anyway
		<-c.sending
	case <-c.failed:
	case <-time.After(cancelGrace): // somebody's write is stuck
	}
	c.fail(ErrClosed)
	<-c.received
	return nil
}

// fail ends the connection and every request with err, unless it has ended already.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	close(c.failed)
	c.conn.Close()
}

// failure returns why the connection ended.
func (c *Client) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// request is one command under way.
type request struct {
	cmd     uint16
	flags   uint16
	off     int64
	len     int64
	payload []byte // of a write
	context uint32 // of a block status

	// busy is held by receive while it fills dst, and by the caller when it gives up.
	busy  chan struct{}
	gone  bool   // the caller has given up; guarded by busy
	dst   []byte // of a read
	reply reply  // owned by receive until done is closed
	done  chan struct{}
}

// do sends r and waits for its end.
func (c *Client) do(ctx context.Context, r *request) error {
	r.busy, r.done = make(chan struct{}, 1), make(chan struct{})
	select {
	case c.window <- struct{}{}:
	case <-c.failed:
		return c.failure()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	timer := time.NewTimer(c.timeout)
	defer timer.Stop()
	if err := c.send(ctx, r, timer); err != nil {
		return err
	}
	select {
	case <-r.done:
		if r.reply.err != nil {
			return r.reply.err
		}
		return nil
	case <-timer.C:
		err := fmt.Errorf("%w: %s of %d bytes at %d took longer than %v", ErrTimeout, cmdNames[r.cmd], r.len, r.off,
			c.timeout)
		c.fail(err)
	case <-ctx.Done():
		c.abandon(r)
		return context.Cause(ctx)
	case <-c.failed:
	}
	c.abandon(r)
	return c.failure()
}

// abandon makes sure that nothing of r is touched any more.
func (c *Client) abandon(r *request) {
	grace := time.NewTimer(cancelGrace)
	defer grace.Stop()
	select {
	case r.busy <- struct{}{}:
	case <-r.done:
		return
	case <-grace.C:
		c.fail(fmt.Errorf("%w: the server stopped in the middle of an answer", ErrTimeout))
		r.busy <- struct{}{}
	}
	r.gone = true
	<-r.busy
}

// send writes r to the connection. When it fails, r is not under way.
func (c *Client) send(ctx context.Context, r *request, timer *time.Timer) error {
	select {
	case c.sending <- struct{}{}:
		defer func() { <-c.sending }()
	case <-c.failed:
		return c.failure()
	case <-ctx.Done():
		<-c.window
		return context.Cause(ctx)
	case <-timer.C:
		c.fail(fmt.Errorf("%w: it takes no more requests", ErrTimeout))
		return c.failure()
	}
	buf, err := c.register(r)
	if err != nil {
		return err
	}
	if err := c.write(ctx, net.Buffers{buf, r.payload}); err != nil {
		c.fail(fmt.Errorf("%w: %w", ErrDisconnected, err))
		return c.failure()
	}
	return nil
}

// register gives r a cookie and encodes it.
func (c *Client) register(r *request) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	c.cookie++
	c.pending[c.cookie] = r
	msg := c.encode(r)
	binary.BigEndian.PutUint64(msg[8:], c.cookie)
	return msg, nil
}

// encode returns the header of r without its cookie.
func (c *Client) encode(r *request) []byte {
	be := binary.BigEndian
	if !c.export.extended {
		b := make([]byte, requestBytes)
		be.PutUint32(b, magicRequest)
		be.PutUint16(b[4:], r.flags)
		be.PutUint16(b[6:], r.cmd)
		be.PutUint64(b[16:], uint64(r.off))
		be.PutUint32(b[24:], uint32(r.len))
		return b
	}
	b := make([]byte, requestExtBytes)
	be.PutUint32(b, magicRequestExt)
	be.PutUint16(b[4:], r.flags)
	if r.cmd == cmdWrite {
		be.PutUint16(b[4:], r.flags|cmdFlagPayloadLen)
	}
	be.PutUint16(b[6:], r.cmd)
	be.PutUint64(b[16:], uint64(r.off))
	be.PutUint64(b[24:], uint64(r.len))
	return b
}

// write writes all of b, or leaves the connection unusable. When ctx ends it has a moment left: a
// request cut in half ends them all.
func (c *Client) write(ctx context.Context, b net.Buffers) error {
	c.conn.SetWriteDeadline(time.Now().Add(c.timeout))
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		c.conn.SetWriteDeadline(time.Now().Add(cancelGrace))
	})
	_, err := b.WriteTo(c.conn)
	if !stop() {
		<-done
	}
	return err
}

// take ends r's being under way.
func (c *Client) take(cookie uint64) {
	c.mu.Lock()
	delete(c.pending, cookie)
	c.mu.Unlock()
	<-c.window
}

func (c *Client) find(cookie uint64) *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending[cookie]
}
