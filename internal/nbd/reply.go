package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"syscall"

	"github.com/holdfast-vm/holdfast/internal/extent"
)

const maxScattered = 1024 // chunks of one read that come out of order

// reply collects what a server answered to one request.
type reply struct {
	next      int64           // of a read: all before is there
	scattered []extent.Extent // of a read: came out of order
	got       int64           // of a read: bytes
	status    []StatusExtent
	err       *Error // the first that the server reported
}

// finish checks that r was answered as a whole. An error of the server excuses what is missing.
func (p *reply) finish(r *request) error {
	if p.err != nil {
		return nil
	}
	switch r.cmd {
	case cmdRead:
		all := extent.Of(append(p.scattered, extent.Extent{Off: r.off, Len: p.next})...)
		if p.got != r.len || len(all) != 1 || all[0] != (extent.Extent{Off: r.off, Len: r.len}) {
			return violated("read of %d bytes at %d answered with %d bytes", r.len, r.off, p.got)
		}
	case cmdBlockStatus:
		if p.status == nil {
			return violated("block status at %d answered without the context", r.off)
		}
	}
	return nil
}

// replyHeader is the beginning of a reply, whatever its kind.
type replyHeader struct {
	simple  bool
	flags   uint16
	kind    uint16
	cookie  uint64
	len     int64
	errno   uint32
	isError bool
}

// receive reads replies until the connection ends.
func (c *Client) receive() {
	defer close(c.received)
	for {
		if err := c.receiveOne(); err != nil {
			if !errors.Is(err, ErrProtocol) {
				err = fmt.Errorf("%w: %w", ErrDisconnected, err)
			}
			c.fail(err)
			return
		}
	}
}

// receiveOne reads one reply, or one chunk of one.
func (c *Client) receiveOne() error {
	h, err := c.readHeader()
	if err != nil {
		return err
	}
	r := c.find(h.cookie)
	if r == nil {
		return violated("answer to a request that is not under way")
	}
	r.busy <- struct{}{}
	if h.simple {
		err = c.simpleReply(r, h)
	} else {
		err = c.chunk(r, h)
	}
	<-r.busy
	if err != nil {
		return err
	}
	if h.simple || h.flags&replyDone != 0 {
		if err := r.reply.finish(r); err != nil {
			return err
		}
		c.take(h.cookie)
		close(r.done)
	}
	return nil
}

func (c *Client) readHeader() (h replyHeader, err error) {
	be := binary.BigEndian
	var b [extendedBytes]byte
	if _, err := io.ReadFull(c.in, b[:4]); err != nil {
		return h, err
	}
	magic, size := be.Uint32(b[:]), 0
	switch {
	case magic == magicSimple && !c.export.extended:
		size = simpleBytes
	case magic == magicStructured && c.export.structured && !c.export.extended:
		size = structuredBytes
	case magic == magicExtended && c.export.extended:
		size = extendedBytes
	default:
		return h, violated("answer begins with %#x", magic)
	}
	if _, err := io.ReadFull(c.in, b[4:size]); err != nil {
		return h, err
	}
	h.cookie = be.Uint64(b[8:])
	if magic == magicSimple {
		h.simple, h.errno = true, be.Uint32(b[4:])
		return h, nil
	}
	h.flags, h.kind = be.Uint16(b[4:]), be.Uint16(b[6:])
	h.isError = h.kind&replyErrBit != 0
	n := uint64(be.Uint32(b[16:]))
	if magic == magicExtended {
		n = be.Uint64(b[24:])
	}
	if n > maxPayload+8 {
		return h, violated("answer of %d bytes", n)
	}
	h.len = int64(n)
	return h, nil
}

func (c *Client) simpleReply(r *request, h replyHeader) error {
	if h.errno != 0 {
		r.refused(h.errno, "")
		return nil
	}
	if r.cmd == cmdBlockStatus || r.cmd == cmdRead && c.export.structured {
		return violated("simple answer to a %s", cmdNames[r.cmd])
	}
	if r.cmd != cmdRead {
		return nil
	}
	r.reply.got, r.reply.next = r.len, r.len
	return c.fill(r, 0, r.len)
}

func (r *request) refused(errno uint32, message string) {
	if r.reply.err == nil {
		if errno == 0 || errno > math.MaxInt16 {
			errno = uint32(syscall.EINVAL)
		}
		r.reply.err = &Error{Op: cmdNames[r.cmd], Off: r.off, Len: r.len, Errno: syscall.Errno(errno), Message: message}
	}
}

// fill reads n bytes of the connection into r's buffer at at, or nowhere if the caller has gone.
func (c *Client) fill(r *request, at, n int64) error {
	if r.gone {
		_, err := c.in.Discard(int(n))
		return err
	}
	_, err := io.ReadFull(c.in, r.dst[at:at+n])
	return err
}

func (c *Client) chunk(r *request, h replyHeader) error {
	switch {
	case h.isError:
		return c.errorChunk(r, h)
	case h.kind == replyNone && h.len == 0 && h.flags&replyDone != 0:
		return nil
	case h.kind == replyData && r.cmd == cmdRead && h.len > 8:
		return c.dataChunk(r, h)
	case h.kind == replyHole && r.cmd == cmdRead && h.len == 12:
		return c.holeChunk(r)
	case (h.kind == replyStatus || h.kind == replyStatusExt) && r.cmd == cmdBlockStatus && h.len <= maxStatusPayload:
		return c.statusChunk(r, h)
	}
	return violated("chunk of type %d and %d bytes in the answer to a %s", h.kind, h.len, cmdNames[r.cmd])
}

func (c *Client) payload(n int64) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(c.in, b)
	return b, err
}

func (c *Client) errorChunk(r *request, h replyHeader) error {
	if h.len > maxErrorPayload || h.len < 6 {
		return violated("error of %d bytes", h.len)
	}
	b, err := c.payload(h.len)
	if err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n > len(b)-6 {
		return violated("error message of %d bytes in %d", n, len(b))
	}
	r.refused(binary.BigEndian.Uint32(b), string(b[6:6+n]))
	return nil
}

func (c *Client) dataChunk(r *request, h replyHeader) error {
	b, err := c.payload(8)
	if err != nil {
		return err
	}
	n := h.len - 8
	at, err := r.arrived(binary.BigEndian.Uint64(b), n)
	if err != nil {
		return err
	}
	return c.fill(r, at, n)
}

func (c *Client) holeChunk(r *request) error {
	b, err := c.payload(12)
	if err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(b[8:]))
	at, err := r.arrived(binary.BigEndian.Uint64(b), n)
	if err == nil && !r.gone {
		clear(r.dst[at : at+n])
	}
	return err
}

// arrived notes that n bytes at off have come and returns where in the buffer they belong.
func (r *request) arrived(off uint64, n int64) (at int64, err error) {
	p := &r.reply
	if off < uint64(r.off) || off >= uint64(r.off+r.len) || n <= 0 || n > r.off+r.len-int64(off) || n > r.len-p.got {
		return 0, violated("%d bytes at %d in the answer to a read of %d bytes at %d", n, off, r.len, r.off)
	}
	at = int64(off) - r.off
	p.got += n
	if at == p.next {
		p.next += n
		return at, nil
	}
	if len(p.scattered) == maxScattered {
		return 0, violated("read answered in too many pieces")
	}
	p.scattered = append(p.scattered, extent.Extent{Off: int64(off), Len: n})
	return at, nil
}
