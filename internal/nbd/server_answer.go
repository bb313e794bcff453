package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"syscall"
)

// appendHeader begins an answer, or a chunk of one, with a payload of n bytes.
func (c *connection) appendHeader(b []byte, r *command, flags, kind uint16, n int) []byte {
	be := binary.BigEndian
	switch c.mode {
	case simpleReplies:
		b = be.AppendUint32(b, magicSimple)
		b = be.AppendUint32(b, 0)
		return be.AppendUint64(b, r.cookie)
	case structuredReplies:
		b = be.AppendUint32(b, magicStructured)
		b = be.AppendUint16(be.AppendUint16(b, flags), kind)
		return be.AppendUint32(be.AppendUint64(b, r.cookie), uint32(n))
	default:
		b = be.AppendUint32(b, magicExtended)
		b = be.AppendUint16(be.AppendUint16(b, flags), kind)
		b = be.AppendUint64(be.AppendUint64(b, r.cookie), r.off)
		return be.AppendUint64(b, uint64(n))
	}
}

// appendReadHeader begins an answer with the n bytes at off.
func (c *connection) appendReadHeader(b []byte, r *command, flags uint16, off int64, n int) []byte {
	if c.mode == simpleReplies {
		return c.appendHeader(b, r, 0, 0, n)
	}
	b = c.appendHeader(b, r, flags, replyData, 8+n)
	return binary.BigEndian.AppendUint64(b, uint64(off))
}

// sendData sends the n bytes at off that b holds.
func (c *connection) sendData(r *command, b *buffer, off int64, n int, last bool) {
	var head [headRoom]byte
	h := c.appendReadHeader(head[:0], r, ending(last), off, n)
	from := headRoom - len(h)
	copy(b.raw[from:], h)
	b.send, b.last = b.raw[from:headRoom+n], last
	c.out.send(b)
}

func ending(last bool) uint16 {
	if last {
		return replyDone
	}
	return 0
}

// sendHole sends that the n bytes at off are zeros.
func (c *connection) sendHole(r *command, off, n int64, last bool) {
	b := newBuffer(headRoom)
	send := c.appendHeader(b.raw[:0], r, ending(last), replyHole, 12)
	send = binary.BigEndian.AppendUint64(send, uint64(off))
	b.send, b.last = binary.BigEndian.AppendUint32(send, uint32(n)), last
	c.out.send(b)
}

// acknowledge ends r well.
func (c *connection) acknowledge(r *command) {
	b := newBuffer(headRoom)
	b.send, b.last = c.appendHeader(b.raw[:0], r, replyDone, replyNone, 0), true
	c.out.send(b)
}

// refuse ends r with an error.
func (c *connection) refuse(r *command, err error) {
	be := binary.BigEndian
	errno := wireErrno(err)
	b := newBuffer(2 * maxName)
	b.last = true
	if c.mode == simpleReplies {
		b.send = c.appendHeader(b.raw[:0], r, 0, 0, 0)
		be.PutUint32(b.send[4:], uint32(errno))
		c.out.send(b)
		return
	}
	why := err.Error()
	why = why[:min(len(why), maxName)]
	send := c.appendHeader(b.raw[:0], r, replyDone, replyError, 6+len(why))
	send = be.AppendUint16(be.AppendUint32(send, uint32(errno)), uint16(len(why)))
	b.send = append(send, why...)
	c.out.send(b)
}

// sendStatus answers a block status.
func (c *connection) sendStatus(r *command, extents []StatusExtent) {
	be := binary.BigEndian
	if c.mode == extendedHeaders {
		n := 8 + 16*len(extents)
		b := newBuffer(n)
		send := c.appendHeader(b.raw[:0], r, replyDone, replyStatusExt, n)
		send = be.AppendUint32(be.AppendUint32(send, allocationID), uint32(len(extents)))
		for _, e := range extents {
			send = be.AppendUint64(be.AppendUint64(send, uint64(e.Length)), e.Flags)
		}
		b.send, b.last = send, true
		c.out.send(b)
		return
	}
	n := 4 + 8*len(extents)
	b := newBuffer(n)
	send := c.appendHeader(b.raw[:0], r, replyDone, replyStatus, n)
	send = be.AppendUint32(send, allocationID)
	for _, e := range extents {
		send = be.AppendUint32(be.AppendUint32(send, uint32(e.Length)), uint32(e.Flags))
	}
	b.send, b.last = send, true
	c.out.send(b)
}

// wireErrno returns the error that a client is told, one of those that the protocol knows.
func wireErrno(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case errors.Is(err, context.Canceled):
		return syscall.ESHUTDOWN
	case !errors.As(err, &errno):
		return syscall.EIO
	}
	switch errno {
	case syscall.EPERM, syscall.ENOMEM, syscall.EINVAL, syscall.ENOSPC, syscall.EOVERFLOW, syscall.ENOTSUP,
		syscall.ESHUTDOWN:
		return errno
	case syscall.EROFS, syscall.EACCES:
		return syscall.EPERM
	case syscall.EDQUOT, syscall.EFBIG:
		return syscall.ENOSPC
	}
	return syscall.EIO
}
