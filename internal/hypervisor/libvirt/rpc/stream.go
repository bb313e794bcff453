package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
)

const (
	typeStream     = 3
	statusContinue = 2

	procDomainScreenshot = 211
)

// errTooLong reports that libvirtd sent more than was asked for.
var errTooLong = errors.New("libvirtd sends more than is wanted")

// stream collects what libvirtd sends after the reply to a call, up to a limit.
type stream struct {
	proc int32
	max  int

	mu   sync.Mutex // guards what follows
	buf  bytes.Buffer
	err  error
	over bool

	ended    chan struct{} // closed when all has come, or an error has
	finished chan struct{} // closed when libvirtd has agreed to the end
}

func newStream(proc int32, max int) *stream {
	return &stream{proc: proc, max: max, ended: make(chan struct{}), finished: make(chan struct{})}
}

// take handles one message of the stream. It never waits: the reader calls it.
func (s *stream) take(m message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case m.prog != programRemote || m.proc != s.proc:
		s.end(fmt.Errorf("libvirtd sent a part of call %d in the stream of %d", m.proc, s.proc))
	case m.status == statusContinue && len(m.body) == 0:
		s.end(nil)
	case m.status == statusContinue && s.buf.Len()+len(m.body) > s.max:
		s.end(errTooLong)
	case m.status == statusContinue && !s.over:
		s.buf.Write(m.body)
	case m.status == statusOK:
		s.end(nil)
		select {
		case <-s.finished:
		default:
			close(s.finished)
		}
	case m.status == statusError:
		d := decoder{b: m.body}
		err := error(d.remoteError())
		if d.err != nil {
			err = fmt.Errorf("error in the stream of call %d: %w", s.proc, d.err)
		}
		s.end(err)
	}
}

// end is called with mu held.
func (s *stream) end(err error) {
	if s.over {
		return
	}
	s.over, s.err = true, err
	close(s.ended)
}

// result returns what came.
func (s *stream) result() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Bytes(), s.err
}

// Screenshot returns the picture of a domain's first screen in a format of the hypervisor's choice,
// with the MIME type that libvirt gives it. A picture of more than max bytes is an error.
func (c *Client) Screenshot(ctx context.Context, dom Domain, max int) (mime string, data []byte, err error) {
	var e encoder
	e.domain(dom)
	e.u32(0) // the first screen
	e.u32(0)
	s := newStream(procDomainScreenshot, max)
	body, serial, err := c.conn.callStream(ctx, procDomainScreenshot, e.b, s)
	if err != nil {
		return "", nil, err
	}
	defer c.conn.forgetStream(serial)
	d := decoder{b: body}
	if mime = d.optional(); d.err != nil {
		return "", nil, d.err
	}
	data, err = c.conn.receive(ctx, serial, s)
	return mime, data, err
}

// callStream makes a call whose reply a stream follows.
func (c *conn) callStream(ctx context.Context, proc int32, args []byte, s *stream) (body []byte, serial uint32,
	err error) {
	body, err = c.callWith(ctx, programRemote, proc, args, nil, func(n uint32) {
		serial = n
		c.streams[n] = s
	})
	if err != nil {
		c.forgetStream(serial)
	}
	return body, serial, err
}

func (c *conn) forgetStream(serial uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.streams, serial)
}

// receive waits for the end of a stream and agrees to it, or breaks it off.
func (c *conn) receive(ctx context.Context, serial uint32, s *stream) ([]byte, error) {
	h := header{prog: programRemote, vers: 1, proc: s.proc, typ: typeStream, serial: serial}
	if err := c.await(ctx, s.ended); err != nil {
		h.status = statusError
		return nil, errors.Join(err, c.write(context.WithoutCancel(ctx), h, nil))
	}
	data, err := s.result()
	if errors.Is(err, errTooLong) {
		h.status = statusError
		return nil, errors.Join(err, c.write(ctx, h, nil))
	}
	if err != nil {
		return nil, err // libvirtd has ended the stream
	}
	if err := c.write(ctx, h, nil); err != nil {
		return nil, err
	}
	return data, c.await(ctx, s.finished)
}

func (c *conn) await(ctx context.Context, event <-chan struct{}) error {
	select {
	case <-event:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
	}
	select {
	case <-event:
		return nil
	default:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.err
	}
}
