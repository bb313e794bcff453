package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

const (
	programRemote    = 0x20008086
	programQEMU      = 0x20008087
	programKeepalive = 0x6b656570

	typeCall    = 0
	typeReply   = 1
	typeMessage = 2

	statusOK    = 0
	statusError = 1

	headerLen  = 28 // length word and header
	messageMax = 32<<20 + 4

	keepalivePing = 1
	keepalivePong = 2

	writeTimeout = 20 * time.Second
)

// ErrClosed reports that the connection is gone: libvirtd ended or restarted, or Close was called.
// It is a [hypervisor.ErrUnreachable].
var ErrClosed error = closed{}

type closed struct{}

func (closed) Error() string        { return "connection to libvirtd is closed" }
func (closed) Is(target error) bool { return target == hypervisor.ErrUnreachable }

type header struct {
	prog, vers uint32
	proc       int32
	typ        uint32
	serial     uint32
	status     uint32
}

type message struct {
	header
	body []byte
}

// pending is a call that waits for its reply.
type pending struct {
	reply chan message
	// hook runs in the reader before any later message is looked at; nil for most calls.
	hook func(message)
}

// conn carries calls, replies and events over one stream.
type conn struct {
	nc net.Conn

	writeMu sync.Mutex // one message at a time

	mu      sync.Mutex // guards what follows
	serial  uint32
	calls   map[uint32]*pending
	events  map[int32]*subscription
	streams map[uint32]*stream // by the serial number of the call
	err     error              // why it ended

	done chan struct{} // closed when the reader has ended
}

func newConn(nc net.Conn) *conn {
	c := &conn{nc: nc, calls: map[uint32]*pending{}, events: map[int32]*subscription{}, streams: map[uint32]*stream{},
		done: make(chan struct{})}
	go c.read()
	return c
}

func (c *conn) close() {
	c.fail(ErrClosed)
	<-c.done
}

func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.nc.Close()
}

// read owns the receiving side. It ends when the stream does.
func (c *conn) read() {
	defer close(c.done)
	for {
		m, err := readMessage(c.nc)
		if err != nil {
			if !errors.Is(err, errBadFrame) {
				err = fmt.Errorf("%w: %w", ErrClosed, err)
			}
			c.fail(err)
			return
		}
		c.dispatch(m)
	}
}

func (c *conn) dispatch(m message) {
	switch {
	case m.prog == programKeepalive && m.proc == keepalivePing:
		// Answered apart, so that a full socket cannot hold up the reader.
		go c.write(context.Background(), header{prog: programKeepalive, vers: 1, proc: keepalivePong, typ: typeMessage},
			nil)
	case m.typ == typeReply:
		c.mu.Lock()
		p := c.calls[m.serial]
		delete(c.calls, m.serial)
		c.mu.Unlock()
		if p == nil {
			return // its caller gave up
		}
		if p.hook != nil {
			p.hook(m)
		}
		p.reply <- m
	case m.typ == typeStream:
		c.mu.Lock()
		s := c.streams[m.serial]
		c.mu.Unlock()
		if s != nil {
			s.take(m)
		}
	case m.typ == typeMessage && m.prog == programRemote:
		c.deliver(m)
	}
}

// call sends one call and waits for its reply. With ctx over it returns ctx's error; the call may
// still happen.
func (c *conn) call(ctx context.Context, prog uint32, proc int32, args []byte, hook func(message)) ([]byte, error) {
	return c.callWith(ctx, prog, proc, args, hook, func(uint32) {})
}

// callWith is call; numbered is told the call's serial number, with mu held, before it is sent.
func (c *conn) callWith(ctx context.Context, prog uint32, proc int32, args []byte, hook func(message),
	numbered func(serial uint32)) ([]byte, error) {
	p := &pending{reply: make(chan message, 1), hook: hook}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	c.serial++
	serial := c.serial
	c.calls[serial] = p
	numbered(serial)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.calls, serial)
		c.mu.Unlock()
	}()
	if err := c.write(ctx, header{prog: prog, vers: 1, proc: proc, typ: typeCall, serial: serial}, args); err != nil {
		return nil, err
	}
	select {
	case m := <-p.reply:
		return m.result(prog, proc)
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.done:
	}
	select {
	case m := <-p.reply:
		return m.result(prog, proc)
	default:
		c.mu.Lock()
		defer c.mu.Unlock()
		return nil, c.err
	}
}

func (m message) result(prog uint32, proc int32) ([]byte, error) {
	switch {
	case m.prog != prog || m.proc != proc:
		return nil, fmt.Errorf("libvirtd answered call %d with a reply to %d", proc, m.proc)
	case m.status == statusOK:
		return m.body, nil
	case m.status == statusError:
		d := decoder{b: m.body}
		e := d.remoteError()
		if d.err != nil {
			return nil, fmt.Errorf("error reply to call %d: %w", proc, d.err)
		}
		return nil, e
	}
	return nil, fmt.Errorf("reply to call %d has unknown status %d", proc, m.status)
}

func (c *conn) write(ctx context.Context, h header, body []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(body) > messageMax-headerLen {
		return fmt.Errorf("message of %d bytes is too long for libvirt", len(body))
	}
	b := appendHeader(make([]byte, 0, headerLen+len(body)), h, len(body))
	b = append(b, body...)
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	deadline := time.Now().Add(writeTimeout)
	if t, ok := ctx.Deadline(); ok && t.Before(deadline) {
		deadline = t
	}
	c.nc.SetWriteDeadline(deadline)
	if _, err := c.nc.Write(b); err != nil {
		// What libvirtd got of the message is unknown: nothing can follow it.
		c.fail(fmt.Errorf("%w: %w", ErrClosed, err))
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.err
	}
	return nil
}

func appendHeader(b []byte, h header, body int) []byte {
	for _, v := range []uint32{uint32(headerLen + body), h.prog, h.vers, uint32(h.proc), h.typ, h.serial, h.status} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

var errBadFrame = errors.New("not a libvirt message")

// readMessage reads one message. Memory grows only as bytes arrive, to at most messageMax.
func readMessage(r io.Reader) (message, error) {
	var fixed [headerLen]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return message{}, err
	}
	d := decoder{b: fixed[:]}
	n := d.u32()
	m := message{header: header{prog: d.u32(), vers: d.u32(), proc: d.i32(), typ: d.u32(), serial: d.u32(),
		status: d.u32()}}
	if n < headerLen || n > messageMax {
		return message{}, fmt.Errorf("%w: length %d", errBadFrame, n)
	}
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, int64(n-headerLen)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return message{}, err
	}
	m.body = body.Bytes()
	return m, nil
}
