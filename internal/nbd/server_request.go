package nbd

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"syscall"
)

const (
	inlineRead = 32 << 10 // reads shorter than that are answered at once if the backend can
	batchBytes = 128 << 10
)

// command is one request, as a client sends it.
type command struct {
	flags    uint16
	cmd      uint16
	cookie   uint64
	off, len uint64
	payload  *buffer // of a write
	contexts []byte  // of a block status that names its contexts
}

// payloadBytes returns how many bytes follow the header.
func (r *command) payloadBytes(m mode) uint64 {
	if r.cmd == cmdWrite || m == extendedHeaders && r.flags&cmdFlagPayloadLen != 0 {
		return r.len
	}
	return 0
}

// transmit reads requests and has them performed, until the client or the server ends that.
func (c *connection) transmit() error {
	for {
		r, err := c.nextCommand()
		if err != nil {
			return c.ended(err)
		}
		if r.cmd == cmdDisconnect {
			if err := c.flushBatch(); err != nil {
				return err
			}
			return errGoodbye
		}
		if ok, err := c.answeredAtOnce(&r); ok || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		if err := c.dispatch(r); err != nil {
			return c.ended(err)
		}
	}
}

// nextCommand reads a request without its payload. Before it waits, the answers that are ready go
// out.
func (c *connection) nextCommand() (r command, err error) {
	n := requestBytes
	if c.mode == extendedHeaders {
		n = requestExtBytes
	}
	if c.in.Buffered() < n {
		if err := c.awaitBytes(n); err != nil {
			return r, err
		}
	}
	b, err := c.in.Peek(n)
	if err != nil {
		return r, err
	}
	be := binary.BigEndian
	r = command{flags: be.Uint16(b[4:]), cmd: be.Uint16(b[6:]), cookie: be.Uint64(b[8:]), off: be.Uint64(b[16:])}
	wanted := uint32(magicRequest)
	if c.mode == extendedHeaders {
		wanted, r.len = magicRequestExt, be.Uint64(b[24:])
	} else {
		r.len = uint64(be.Uint32(b[24:]))
	}
	if magic := be.Uint32(b); magic != wanted {
		return r, violated("not a request: %#x", magic)
	}
	_, err = c.in.Discard(n)
	return r, err
}

// awaitBytes waits for a request to begin, and then for the n bytes of its header.
func (c *connection) awaitBytes(n int) error {
	if err := c.flushBatch(); err != nil {
		return err
	}
	if c.in.Buffered() == 0 {
		if c.opts.IdleTimeout > 0 {
			if err := c.deadline(c.opts.IdleTimeout); err != nil {
				return err
			}
		}
		if _, err := c.in.Peek(1); err != nil {
			return err
		}
	}
	if c.in.Buffered() >= n {
		return nil
	}
	return c.hurry(func() error {
		_, err := c.in.Peek(n)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
}

// hurry reads the rest of something that has begun.
func (c *connection) hurry(read func() error) error {
	if err := c.deadline(c.opts.StallTimeout); err != nil {
		return err
	}
	if err := read(); err != nil {
		return err
	}
	return c.deadline(0)
}

// answeredAtOnce answers a short read of bytes that the backend has at hand, into the batch.
func (c *connection) answeredAtOnce(r *command) (bool, error) {
	if c.try == nil || r.cmd != cmdRead || r.flags != 0 || r.len == 0 || r.len >= inlineRead || c.draining.Load() ||
		r.off > uint64(c.size) || r.len > uint64(c.size)-r.off || (r.off|r.len)&uint64(c.export.MinBlock-1) != 0 {
		return false, nil
	}
	if c.batch == nil {
		c.batch = make([]byte, 0, batchBytes)
	}
	if len(c.batch)+headRoom+int(r.len) > cap(c.batch) {
		if err := c.flushBatch(); err != nil {
			return false, err
		}
	}
	before := len(c.batch)
	c.batch = c.appendReadHeader(c.batch, r, replyDone, int64(r.off), int(r.len))
	from := len(c.batch)
	c.batch = c.batch[:from+int(r.len)]
	ok := false
	err := c.guarded("read", func() error {
		ok = c.try.TryReadAt(c.batch[from:], int64(r.off))
		return nil
	})
	if !ok || err != nil {
		c.batch = c.batch[:before] // the ordinary way reports what is wrong
		return false, nil
	}
	return true, nil
}

func (c *connection) flushBatch() error {
	if len(c.batch) == 0 {
		return nil
	}
	err := c.out.write(c.batch)
	c.batch = c.batch[:0]
	return err
}

// dispatch reads the payload of r and hands r to a worker, or refuses it.
func (c *connection) dispatch(r command) error {
	if err := c.flushBatch(); err != nil {
		return err
	}
	if err := c.takeSlot(); err != nil {
		return err
	}
	wrong := c.check(&r)
	if err := c.takePayload(&r, wrong != nil); err != nil {
		return err // the slot is of no more use
	}
	if wrong != nil {
		c.refuse(&r, wrong)
		return nil
	}
	select {
	case c.work <- &r:
	default:
		c.workers.Go(func() { c.perform(&r) })
	}
	return nil
}

// takePayload reads what follows the header of r, or throws it away.
func (c *connection) takePayload(r *command, unwanted bool) error {
	n := r.payloadBytes(c.mode)
	if n > maxPayload {
		return violated("%s with %d bytes", cmdNames[r.cmd], n)
	}
	if n == 0 {
		return nil
	}
	read := func() (err error) {
		_, err = c.in.Discard(int(n))
		return err
	}
	switch {
	case unwanted:
	case r.cmd == cmdWrite:
		b, err := c.granted(int(n))
		if err != nil {
			return err
		}
		r.payload = b
		read = func() error { return c.readFull(b.data(int(n))) }
	default:
		r.contexts = make([]byte, n) // check has bounded it
		read = func() error { return c.readFull(r.contexts) }
	}
	var err error
	if uint64(c.in.Buffered()) >= n {
		err = read()
	} else {
		err = c.hurry(read)
	}
	if err != nil && r.payload != nil {
		c.discard(r.payload)
	}
	return err
}

func (c *connection) readFull(p []byte) error {
	_, err := io.ReadFull(c.in, p)
	return err
}

// rule says what is allowed of a command.
type rule struct {
	flags  uint16        // that it may have, beside FUA
	writes bool          // and is refused with EPERM where nothing may be written
	beyond syscall.Errno // for a range outside the export
}

var rules = map[uint16]rule{
	cmdRead:        {flags: cmdFlagDF, beyond: syscall.EINVAL},
	cmdWrite:       {flags: cmdFlagPayloadLen, writes: true, beyond: syscall.ENOSPC},
	cmdFlush:       {},
	cmdTrim:        {writes: true, beyond: syscall.EINVAL},
	cmdCache:       {beyond: syscall.EINVAL},
	cmdWriteZeroes: {flags: cmdFlagNoHole | cmdFlagFastZero, writes: true, beyond: syscall.ENOSPC},
	cmdBlockStatus: {flags: cmdFlagReqOne | cmdFlagPayloadLen, beyond: syscall.EINVAL},
}

// check returns why r is refused, if it is. Of a block status with a payload, takeContexts checks
// the rest.
func (c *connection) check(r *command) error {
	rule, known := rules[r.cmd]
	errno, why := syscall.EINVAL, ""
	switch {
	case !known:
		why = "unknown command"
	case c.draining.Load() && r.cmd != cmdFlush:
		errno, why = syscall.ESHUTDOWN, "the server is shutting down"
	case rule.writes && c.writable == nil:
		errno, why = syscall.EPERM, "the export is read-only"
	case r.flags&^(rule.flags|cmdFlagFUA) != 0:
		why = fmt.Sprintf("unknown flags %#x", r.flags)
	case r.flags&cmdFlagPayloadLen != 0 && c.mode != extendedHeaders:
		why = "extended headers are not agreed on"
	case r.flags&cmdFlagDF != 0 && c.flags&SendDF == 0, r.flags&cmdFlagFastZero != 0 && c.flags&SendFastZero == 0:
		why = "a flag that was not offered"
	case r.cmd == cmdFlush:
		return nil
	case r.cmd == cmdBlockStatus && r.flags&cmdFlagPayloadLen != 0:
		return c.checkContexts(r)
	default:
		return c.checkRange(r, rule.beyond)
	}
	return &Error{Op: r.name(), Off: int64(r.off), Len: int64(r.len), Errno: errno, Message: why}
}

// checkRange refuses what is outside the export, not aligned, or too long.
func (c *connection) checkRange(r *command, beyond syscall.Errno) error {
	errno, why := syscall.EINVAL, ""
	switch {
	case r.off > uint64(c.size) || r.len > uint64(c.size)-r.off:
		errno, why = beyond, fmt.Sprintf("the export has %d bytes", c.size)
	case (r.off|r.len)&uint64(c.export.MinBlock-1) != 0:
		why = fmt.Sprintf("not in blocks of %d bytes", c.export.MinBlock)
	case (r.cmd == cmdRead || r.cmd == cmdWrite) && r.len > maxPayload:
		why = fmt.Sprintf("longer than %d bytes", maxPayload)
	case r.cmd == cmdBlockStatus && !c.allocation:
		why = "no meta context was selected"
	case r.cmd == cmdBlockStatus && r.len == 0:
		why = "a range of no bytes"
	default:
		return nil
	}
	return &Error{Op: r.name(), Off: int64(r.off), Len: int64(r.len), Errno: errno, Message: why}
}

const maxContexts = 64 // that a block status may name

// checkContexts bounds a payload of an effect length and contexts.
func (c *connection) checkContexts(r *command) error {
	if r.len < 12 || r.len > 8+4*maxContexts || r.len%4 != 0 {
		return &Error{Op: r.name(), Off: int64(r.off), Len: int64(r.len), Errno: syscall.EINVAL,
			Message: "payload of a wrong length"}
	}
	return nil
}

// takeContexts replaces the length of r by the one in its payload.
func (c *connection) takeContexts(r *command) error {
	be := binary.BigEndian
	b := r.contexts
	r.len = be.Uint64(b)
	var ids []uint32
	for b = b[8:]; len(b) > 0; b = b[4:] {
		id := be.Uint32(b)
		if id != allocationID || slices.Contains(ids, id) {
			return &Error{Op: r.name(), Off: int64(r.off), Len: int64(r.len), Errno: syscall.EINVAL,
				Message: "contexts that were not selected"}
		}
		ids = append(ids, id)
	}
	return c.checkRange(r, syscall.EINVAL)
}

func (r *command) name() string {
	if name, ok := cmdNames[r.cmd]; ok {
		return name
	}
	return fmt.Sprintf("command %d", r.cmd)
}
