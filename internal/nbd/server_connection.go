package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

const serverSocketBuffer = 2 << 20

// errGoodbye reports that the client has ended the session as the protocol says.
var errGoodbye = errors.New("the client has said goodbye")

// connection is one client. One goroutine reads its requests; those that may wait are performed
// by workers.
type connection struct {
	server *Server
	opts   *ServerOptions
	log    *slog.Logger
	raw    net.Conn
	conn   net.Conn  // raw, or TLS over it
	hold   *heldConn // under TLS, between it and raw; nil without
	ctx    context.Context
	cancel context.CancelFunc

	agreed
	in    *bufio.Reader // of transmission
	out   outbox
	batch []byte // answers of the reader that are not written yet

	work     chan *command // to idle workers
	workers  sync.WaitGroup
	slots    chan struct{} // holds a token per request under way
	share    *semaphore.Weighted
	reserved atomic.Bool // the one request beyond the memory limit is under way
	draining atomic.Bool
}

// serveConn goes through the life of a connection and closes it. ctx tells it to end, base is that
// of its requests.
func (s *Server) serveConn(ctx, base context.Context, conn net.Conn) {
	c := s.newConnection(base, conn)
	ended, drained := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		c.drain(ended)
	})
	err := c.run()
	c.cancel()
	c.raw.Close()
	close(ended)
	if !stop() {
		<-drained
	}
	level := slog.LevelInfo
	if errors.Is(err, errGoodbye) || errors.Is(err, io.EOF) || c.draining.Load() {
		level = slog.LevelDebug
	}
	c.log.Log(ctx, level, "NBD connection ended", "export", c.export.Name, "why", err)
}

func (s *Server) newConnection(base context.Context, conn net.Conn) *connection {
	if u, ok := conn.(*net.UnixConn); ok {
		u.SetWriteBuffer(serverSocketBuffer) // best effort: the default throttles large requests
		u.SetReadBuffer(serverSocketBuffer)
	}
	c := &connection{
		server: s, opts: &s.opts, log: s.opts.Log.With("client", conn.RemoteAddr().String()), raw: conn, conn: conn,
		work: make(chan *command), slots: make(chan struct{}, s.opts.MaxRequests),
		share: semaphore.NewWeighted(s.opts.share()),
	}
	c.ctx, c.cancel = context.WithCancel(base)
	c.out.init(c)
	return c
}

func (c *connection) run() error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.server.leave()
	c.hold.begin()
	c.in = bufio.NewReaderSize(c.conn, 64<<10)
	err := c.raw.SetDeadline(time.Time{})
	if err == nil && c.draining.Load() {
		err = errDraining
	}
	if err == nil {
		err = c.transmit()
	}
	switch {
	case errors.Is(err, errGoodbye):
		patience := time.AfterFunc(c.opts.StallTimeout, c.cancel)
		defer patience.Stop()
	case !errors.Is(err, errDraining):
		c.cancel()
		c.raw.Close()
	}
	close(c.work)
	c.workers.Wait()
	if errors.Is(err, errGoodbye) {
		c.conn.Close()
	}
	return err
}

// enter goes through the handshake, in the time it has.
func (c *connection) enter() error {
	c.server.shake(c)
	err := c.raw.SetDeadline(time.Now().Add(c.opts.HandshakeTimeout))
	if err == nil && c.draining.Load() {
		err = errDraining
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(c.ctx, c.opts.HandshakeTimeout)
		defer cancel()
		err = c.handshake(ctx)
	}
	if !c.server.establish(c, err == nil) && err == nil {
		err = fmt.Errorf("more than %d connections", c.opts.MaxConnections)
	}
	if err != nil {
		return err
	}
	return nil
}

// shake notes that c begins its handshake; if too many have, the oldest must go, so that silent
// ones keep nobody out.
func (s *Server) shake(c *connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.shaking) >= s.opts.MaxConnections {
		s.shaking[0].raw.Close()
		s.shaking = slices.Delete(s.shaking, 0, 1)
	}
	s.shaking = append(s.shaking, c)
}

// establish notes that c has ended its handshake, and reports whether there is room for it, if it
// wants to stay.
func (s *Server) establish(c *connection, stay bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.shaking, c); i >= 0 {
		s.shaking = slices.Delete(s.shaking, i, i+1)
	}
	if !stay || s.established >= s.opts.MaxConnections {
		return false
	}
	s.established++
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.established--
}

// errDraining reports that the server ends.
var errDraining = errors.New("the server is shutting down")

// drain makes the session end when nothing is under way, or when its time is over.
func (c *connection) drain(ended <-chan struct{}) {
	c.draining.Store(true)
	if len(c.slots) == 0 {
		c.stopReading()
	}
	patience := time.NewTimer(c.opts.DrainTimeout)
	defer patience.Stop()
	select {
	case <-ended:
	case <-patience.C:
		c.cancel()
		c.raw.Close()
	}
}

func (c *connection) stopReading() { c.raw.SetReadDeadline(time.Unix(1, 0)) }

// deadline bounds reads from now on by d; 0 is no bound.
func (c *connection) deadline(d time.Duration) error {
	var t time.Time
	if d > 0 {
		t = time.Now().Add(d)
	}
	if err := c.raw.SetReadDeadline(t); err != nil {
		return err
	}
	if c.draining.Load() && len(c.slots) == 0 {
		return errDraining // its deadline may have come before ours
	}
	return nil
}

// ended says why reading has ended.
func (c *connection) ended(err error) error {
	if c.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		return errDraining
	}
	return err
}

// takeSlot waits until fewer than the allowed number of requests are under way.
func (c *connection) takeSlot() error {
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

func (c *connection) freeSlot() {
	<-c.slots
	if c.draining.Load() && len(c.slots) == 0 {
		c.stopReading()
	}
}

// guarded calls a backend's code, which may panic.
func (c *connection) guarded(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("NBD backend panicked", "export", c.export.Name, "in", what, "panic", p, "stack",
				string(debug.Stack()))
			err = fmt.Errorf("%s: the server has a fault", what)
		}
	}()
	return f()
}
