package nbd

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// script is a connection to a server that says what was written beforehand, whatever it is asked.
type script struct {
	net.Conn
	in io.Reader
}

func (s *script) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return len(p), nil }
func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// underWay returns a client that waits for answers to a read (1), a block status (2) and a write
// (3) and receives what in holds.
func underWay(in []byte, x exportInfo) (*Client, []*request) {
	x.size, x.contexts = 1<<40, map[string]uint32{"base:allocation": 7}
	conn := &script{in: bytes.NewReader(in)}
	c := newClient(conn, x, Options{}.withDefaults())
	c.in = bufio.NewReader(conn)
	list := []*request{
		{cmd: cmdRead, off: 4096, len: 512, dst: make([]byte, 512)},
		{cmd: cmdBlockStatus, off: 4096, len: 1 << 20, context: 7},
		{cmd: cmdWrite, off: 0, len: 10},
	}
	for _, r := range list {
		r.busy, r.done = make(chan struct{}, 1), make(chan struct{})
		c.window <- struct{}{}
		if _, err := c.register(r); err != nil {
			panic(err)
		}
	}
	return c, list
}

// Whatever a server answers, each request has its whole answer, an error of the server, or the
// connection ends.
func FuzzReplies(f *testing.F) {
	f.Add([]byte("\x67\x44\x66\x98\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x03"), byte(0))
	f.Add([]byte("\x66\x8e\x33\xef\x00\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0c\x00\x00\x00\x00"+
		"\x00\x00\x10\x00\x00\x00\x02\x00"), byte(1))
	f.Add([]byte("\x66\x8e\x33\xef\x00\x01\x00\x05\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x0c\x00\x00\x00\x07"+
		"\x00\x00\x10\x00\x00\x00\x00\x03"), byte(1))
	f.Add([]byte("\x66\x8e\x33\xef\x00\x01\x80\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00\x05"+
		"\x00\x02no"), byte(1))
	f.Add([]byte("\x6e\x8a\x27\x8c\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x10\x00"+
		"\x00\x00\x00\x00\x00\x00\x00\x18"+
		"\x00\x00\x00\x07\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03"), byte(3))
	f.Fuzz(func(t *testing.T, in []byte, mode byte) {
		c, list := underWay(in, exportInfo{minBlock: 1, maxBlock: maxPayload, structured: mode&1 != 0,
			extended: mode&3 == 3})
		c.receive()
		if c.failure() == nil {
			t.Fatal("the input has ended, the connection has not")
		}
		for _, r := range list {
			select {
			case <-r.done:
				requireWhole(t, r)
			default:
			}
		}
	})
}

func requireWhole(t *testing.T, r *request) {
	t.Helper()
	switch {
	case r.reply.err != nil:
	case r.cmd == cmdRead && r.reply.got != r.len:
		t.Fatalf("a read of %d bytes ended with %d", r.len, r.reply.got)
	case r.cmd == cmdBlockStatus:
		n := int64(0)
		for _, e := range r.reply.status {
			n += e.Length
			if e.Length <= 0 {
				t.Fatalf("extents %v", r.reply.status)
			}
		}
		if n == 0 || n > r.len {
			t.Fatalf("block status of %d bytes for %d", n, r.len)
		}
	}
}

func FuzzHandshake(f *testing.F) {
	greeting := "NBDMAGICIHAVEOPT\x00\x03"
	ack := func(opt string) string {
		return "\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00" + opt + "\x00\x00\x00\x01\x00\x00\x00\x00"
	}
	export := "\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x03\x00\x00\x00\x0c\x00\x00\x00\x00\x00" +
		"\x00\x00\x10\x00\x00\x00\x03"
	f.Add([]byte(greeting + ack("\x0b") + ack("\x0a") + export + ack("\x07")))
	f.Add([]byte(greeting + ack("\x03")))
	f.Fuzz(func(t *testing.T, in []byte) {
		h := &handshake{&script{in: bytes.NewReader(in)}}
		if h.greet() != nil {
			return
		}
		x, err := h.negotiate(Options{MetaContexts: []string{"base:allocation"}})
		if err == nil && (x.size < 0 || x.minBlock < 1 || x.maxBlock < x.minBlock || x.maxBlock > maxPayload) {
			t.Fatalf("agreed on %+v", x)
		}
		h = &handshake{&script{in: bytes.NewReader(in[18:])}}
		if _, err := h.list(); errors.Is(err, io.ErrShortBuffer) {
			t.Fatal(err)
		}
	})
}

// Answers that do not fit their question end the connection.
func TestViolations(t *testing.T) {
	head := "\x66\x8e\x33\xef\x00\x01"
	for name, in := range map[string]string{
		"unknown request":   "\x67\x44\x66\x98\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09",
		"simple read":       "\x67\x44\x66\x98\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01",
		"read without data": head + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00",
		"hole outside": head +
			"\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00",
		"hole too long": head +
			"\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x02\x01",
		"status of nothing": head +
			"\x00\x05\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x0c\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x00",
		"status of no context": head +
			"\x00\x05\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x0c\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00",
		"data for a write": head +
			"\x00\x01\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00\x00x",
		"4 GiB": head + "\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xff",
	} {
		c, _ := underWay([]byte(in), exportInfo{minBlock: 1, maxBlock: maxPayload, structured: true})
		c.receive()
		if err := c.failure(); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v, want %v", name, err, ErrProtocol)
		}
	}
}
