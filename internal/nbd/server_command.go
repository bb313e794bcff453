package nbd

import (
	"errors"
	"fmt"
)

const (
	pieceBytes   = 1 << 20  // of a long read that is answered in several chunks
	sparseRead   = 32 << 10 // reads from that on are looked at for holes
	leastHole    = 4 << 10  // worth a chunk of its own
	maxExtents   = 16 << 10 // in one answer
	maxQuestions = 4096     // of the backend, for one answer
)

// perform performs r, and then what else there is to do.
func (c *connection) perform(r *command) {
	for ok := true; ok; r, ok = <-c.work {
		answered := false
		err := c.guarded(r.name(), func() (err error) {
			answered, err = c.execute(r)
			return err
		})
		if r.payload != nil {
			c.discard(r.payload)
		}
		switch {
		case err != nil:
			c.report(r, err)
			c.refuse(r, err)
		case !answered:
			c.acknowledge(r)
		}
	}
}

// report logs an error that is not the client's doing.
func (c *connection) report(r *command, err error) {
	var refused *Error
	if c.ctx.Err() == nil && !errors.As(err, &refused) {
		c.log.Warn("NBD request", "export", c.export.Name, "command", r.name(), "off", r.off, "len", r.len, "err", err)
	}
}

// execute performs r, which check has passed, and reports whether it has been answered.
func (c *connection) execute(r *command) (answered bool, err error) {
	off, n := int64(r.off), int64(r.len)
	switch r.cmd {
	case cmdRead:
		return true, c.read(r, off, n)
	case cmdBlockStatus:
		return true, c.blockStatus(r)
	case cmdCache:
		return false, c.cache(off, n)
	case cmdWrite:
		if n > 0 {
			err = c.writable.WriteAt(c.ctx, r.payload.data(int(n)), off)
		}
	case cmdTrim:
		if n > 0 {
			err = c.writable.Trim(c.ctx, off, n)
		}
	case cmdWriteZeroes:
		if n > 0 {
			err = c.writable.WriteZeroes(c.ctx, off, n, r.flags&cmdFlagNoHole == 0)
		}
	}
	durable := r.cmd == cmdFlush || r.flags&cmdFlagFUA != 0 && rules[r.cmd].writes
	if err == nil && durable && c.writable != nil {
		err = c.writable.Flush(c.ctx)
	}
	return false, err
}

// read answers with the bytes, in one chunk or in several.
func (c *connection) read(r *command, off, n int64) error {
	switch {
	case n == 0:
		c.acknowledge(r)
		return nil
	case c.mode == simpleReplies || r.flags&cmdFlagDF != 0 || n < sparseRead:
		return c.readPiece(r, off, n, true)
	}
	parts, err := c.parts(off, n)
	if err != nil {
		return err
	}
	for i, p := range parts {
		last := i == len(parts)-1
		if p.Flags != 0 {
			c.sendHole(r, p.Off, p.Len, last)
			continue
		}
		for p.Len > 0 {
			n := min(p.Len, pieceBytes)
			if err := c.readPiece(r, p.Off, n, last && n == p.Len); err != nil {
				return err
			}
			p.Off, p.Len = p.Off+n, p.Len-n
		}
	}
	return nil
}

func (c *connection) readPiece(r *command, off, n int64, last bool) (err error) {
	b, err := c.granted(int(n))
	if err != nil {
		return err
	}
	sent := false
	defer func() { // also if the backend panics
		if !sent {
			c.discard(b)
		}
	}()
	if err := c.export.Backend.ReadAt(c.ctx, b.data(int(n)), off); err != nil {
		return err
	}
	sent = true
	c.sendData(r, b, off, int(n), last)
	return nil
}

// parts splits a read into data, without flags, and holes that are worth it.
func (c *connection) parts(off, n int64) ([]Range, error) {
	var list []Range
	for end := off + n; off < end; {
		extents, err := c.statusOnce(off, end-off)
		if err != nil {
			return nil, err
		}
		for _, e := range extents {
			flags := e.Flags & AllocationZero
			if e.Length < leastHole {
				flags = 0
			}
			if last := len(list) - 1; last >= 0 && list[last].Flags == flags {
				list[last].Len += e.Length
			} else {
				list = append(list, Range{Off: off, Len: e.Length, Flags: flags})
			}
			off += e.Length
		}
	}
	return list, nil
}

// statusOnce asks the backend and returns what it says of the n bytes at off, or of fewer.
func (c *connection) statusOnce(off, n int64) ([]StatusExtent, error) {
	extents, err := c.export.Backend.Status(c.ctx, off, n)
	if err != nil {
		return nil, err
	}
	for i, e := range extents {
		if e.Length <= 0 {
			return nil, fmt.Errorf("block status at %d: an extent of %d bytes", off, e.Length)
		}
		if e.Length >= n {
			extents = append(extents[:i:i], StatusExtent{Length: n, Flags: e.Flags})
			break
		}
		n -= e.Length
	}
	if len(extents) == 0 {
		return nil, fmt.Errorf("block status at %d: no extents", off)
	}
	return extents, nil
}

// blockStatus answers with merged extents of base:allocation.
func (c *connection) blockStatus(r *command) error {
	if r.contexts != nil {
		if err := c.takeContexts(r); err != nil {
			return err
		}
	}
	off, end := int64(r.off), int64(r.off+r.len)
	limit := maxExtents
	if r.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	var list []StatusExtent
	for range maxQuestions {
		extents, err := c.statusOnce(off, end-off)
		if err != nil {
			return err
		}
		for _, e := range extents {
			e.Flags &= AllocationHole | AllocationZero
			switch last := len(list) - 1; {
			case last >= 0 && list[last].Flags == e.Flags:
				list[last].Length += e.Length
			case len(list) == limit:
				c.sendStatus(r, list)
				return nil
			default:
				list = append(list, e)
			}
			off += e.Length
		}
		if off == end {
			break
		}
	}
	c.sendStatus(r, list)
	return nil
}

// cache reads what is not a hole, so that the backend has it at hand.
func (c *connection) cache(off, n int64) error {
	for end := off + n; off < end; {
		length := min(end-off, maxPayload)
		parts, err := c.parts(off, length)
		if err != nil {
			return err
		}
		for _, p := range parts {
			if p.Flags == 0 {
				err = c.cachePart(p.Off, p.Len)
			}
			if err != nil {
				return err
			}
		}
		off += length
	}
	return nil
}

func (c *connection) cachePart(off, n int64) error {
	b, err := c.granted(int(min(n, pieceBytes)))
	if err != nil {
		return err
	}
	defer c.discard(b)
	for n > 0 {
		length := min(n, pieceBytes)
		if err := c.export.Backend.ReadAt(c.ctx, b.data(int(length)), off); err != nil {
			return err
		}
		off, n = off+length, n-length
	}
	return nil
}
