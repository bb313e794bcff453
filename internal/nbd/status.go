package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
)

// StatusExtent says that the next Length bytes have the Flags, whose meaning is that of the meta
// context.
type StatusExtent struct {
	Length int64
	Flags  uint64
}

// Range is a part of the export with the Flags of a meta context.
type Range struct {
	Off, Len int64
	Flags    uint64
}

// statusLimit is the longest range of one question without extended headers: a multiple of any
// block size.
const statusLimit = 1<<32 - 64<<10

// BlockStatus returns what the meta context says of the bytes from off on: at least one extent,
// perhaps fewer than length bytes in all, never more. A context that was not asked for in Dial, or
// that the server does not offer, is ErrNoContext.
func (c *Client) BlockStatus(ctx context.Context, metaContext string, off, length int64) ([]StatusExtent, error) {
	id, ok := c.export.contexts[metaContext]
	if !ok {
		return nil, fmt.Errorf("NBD block status at %d: %w: %q", off, ErrNoContext, metaContext)
	}
	if err := c.checkRange("block status", off, length); err != nil || length == 0 {
		return nil, err
	}
	from := off &^ (c.export.minBlock - 1)
	end := min((off+length+c.export.minBlock-1)&^(c.export.minBlock-1), c.export.size)
	if !c.export.extended {
		end = min(end, from+statusLimit)
	}
	r := &request{cmd: cmdBlockStatus, off: from, len: end - from, context: id}
	if err := c.do(ctx, r); err != nil {
		return nil, err
	}
	list := clip(r.reply.status, off-from, length)
	if len(list) == 0 {
		return nil, violated("block status of part of a block at %d", from)
	}
	return list, nil
}

// clip drops the first skip bytes of list and all after length more.
func clip(list []StatusExtent, skip, length int64) []StatusExtent {
	var out []StatusExtent
	for _, e := range list {
		cut := min(skip, e.Length)
		skip -= cut
		if n := min(e.Length-cut, length); n > 0 {
			out, length = append(out, StatusExtent{n, e.Flags}), length-n
		}
	}
	return out
}

// Extents goes through the whole export and yields maximal ranges of equal flags. After an error it
// ends.
func (c *Client) Extents(ctx context.Context, metaContext string) iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) {
		var run Range
		for at := int64(0); at < c.export.size; {
			list, err := c.BlockStatus(ctx, metaContext, at, c.export.size-at)
			if err != nil {
				yield(Range{}, err)
				return
			}
			for _, e := range list {
				if run.Len > 0 && e.Flags != run.Flags {
					if !yield(run, nil) {
						return
					}
					run.Len = 0
				}
				if run.Len == 0 {
					run = Range{Off: at, Flags: e.Flags}
				}
				run.Len += e.Length
				at += e.Length
			}
		}
		if run.Len > 0 {
			yield(run, nil)
		}
	}
}

// statusChunk reads what one context says.
func (c *Client) statusChunk(r *request, h replyHeader) error {
	b, err := c.payload(h.len)
	if err != nil {
		return err
	}
	list, id, err := decodeStatus(b, h.kind == replyStatusExt, r.len)
	if err != nil || id != r.context {
		return err
	}
	if r.reply.status != nil {
		return violated("block status at %d answered twice", r.off)
	}
	r.reply.status = list
	return nil
}

// decodeStatus decodes the payload of a block status chunk. Only the last extent may lead beyond
// limit, and is cut there.
func decodeStatus(b []byte, ext bool, limit int64) (list []StatusExtent, id uint32, err error) {
	be := binary.BigEndian
	head, size := 4, 8
	if ext {
		head, size = 8, 16
	}
	n := (len(b) - head) / size
	if n < 1 || len(b) != head+n*size || ext && uint64(be.Uint32(b[4:])) != uint64(n) {
		return nil, 0, violated("block status of %d bytes", len(b))
	}
	list = make([]StatusExtent, 0, n)
	for at := head; at < len(b); at += size {
		length, flags := uint64(be.Uint32(b[at:])), uint64(be.Uint32(b[at+4:]))
		if ext {
			length, flags = be.Uint64(b[at:]), be.Uint64(b[at+8:])
		}
		if length == 0 || limit == 0 {
			return nil, 0, violated("block status with an extent of %d bytes, %d before the end", length, limit)
		}
		keep := int64(min(length, uint64(limit)))
		list, limit = append(list, StatusExtent{keep, flags}), limit-keep
	}
	return list, be.Uint32(b), nil
}
