package nbd

import (
	"context"
	"fmt"
	"io"
	"syscall"
)

const longestZero = 1 << 30 // one request of trim or zeros with extended headers: so that it ends in time

// checkRange reports a range outside the export as the server would.
func (c *Client) checkRange(op string, off, n int64) error {
	if off < 0 || n < 0 || off > c.export.size-n {
		return &Error{Op: op, Off: off, Len: n, Errno: syscall.EINVAL,
			Message: fmt.Sprintf("the export has %d bytes", c.export.size)}
	}
	return nil
}

// ReadAt reads len(p) bytes at off, as io.ReaderAt says.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if off >= c.export.size && off >= 0 {
		return 0, io.EOF
	}
	var end error
	if left := c.export.size - off; off >= 0 && int64(len(p)) > left {
		p, end = p[:left], io.EOF
	}
	if err := c.Read(context.Background(), p, off); err != nil {
		return 0, err
	}
	return len(p), end
}

// Read fills p from off on, in as many requests as the server's limit asks for. On error p holds
// nothing of use. When Read returns, p is not touched any more.
func (c *Client) Read(ctx context.Context, p []byte, off int64) error {
	if err := c.checkRange("read", off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(int64(len(p)), c.export.maxBlock)
		var err error
		if mask := c.export.minBlock - 1; (off|n)&mask != 0 {
			n = min(n, c.export.maxBlock-off&mask)
			err = c.readUnaligned(ctx, p[:n], off)
		} else {
			err = c.do(ctx, &request{cmd: cmdRead, off: off, len: n, dst: p[:n]})
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readUnaligned reads whole blocks around p.
func (c *Client) readUnaligned(ctx context.Context, p []byte, off int64) error {
	block := c.export.minBlock
	from := off &^ (block - 1)
	end := min((off+int64(len(p))+block-1)&^(block-1), c.export.size)
	buf := make([]byte, end-from)
	if err := c.do(ctx, &request{cmd: cmdRead, off: from, len: end - from, dst: buf}); err != nil {
		return err
	}
	copy(p, buf[off-from:])
	return nil
}

// WriteAt writes p at off. It is durable after Flush. Offset and length must be multiples of
// BlockSize.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	return c.Write(context.Background(), p, off)
}

// Write is WriteAt with a context. It returns how many bytes the server has taken. When it returns,
// p is not read any more.
func (c *Client) Write(ctx context.Context, p []byte, off int64) (int, error) {
	if err := c.checkWrite("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		n := min(len(p)-done, int(c.export.maxBlock))
		r := &request{cmd: cmdWrite, off: off + int64(done), len: int64(n), payload: p[done : done+n]}
		if err := c.do(ctx, r); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

func (c *Client) checkWrite(op string, off, n int64) error {
	if c.export.flags&ReadOnly != 0 {
		return &Error{Op: op, Off: off, Len: n, Errno: syscall.EROFS, Message: "the export is read-only"}
	}
	if (off|n)&(c.export.minBlock-1) != 0 {
		return &Error{Op: op, Off: off, Len: n, Errno: syscall.EINVAL,
			Message: fmt.Sprintf("not in blocks of %d bytes", c.export.minBlock)}
	}
	return c.checkRange(op, off, n)
}

// WriteZeroes makes n bytes at off zeros. With keep they stay allocated, without the server may
// make a hole. A server without the command is syscall.ENOTSUP.
func (c *Client) WriteZeroes(ctx context.Context, off, n int64, keep bool) error {
	flags := uint16(0)
	if keep {
		flags = cmdFlagNoHole
	}
	return c.ranged(ctx, SendZeroes, request{cmd: cmdWriteZeroes, flags: flags, off: off, len: n})
}

// Trim says that n bytes at off are of no more use. A server without the command is
// syscall.ENOTSUP.
func (c *Client) Trim(ctx context.Context, off, n int64) error {
	return c.ranged(ctx, SendTrim, request{cmd: cmdTrim, off: off, len: n})
}

// ranged does a request without data, in pieces that the server takes.
func (c *Client) ranged(ctx context.Context, need Flags, r request) error {
	op := cmdNames[r.cmd]
	if err := c.checkWrite(op, r.off, r.len); err != nil {
		return err
	}
	if c.export.flags&need == 0 {
		return &Error{Op: op, Off: r.off, Len: r.len, Errno: syscall.ENOTSUP, Message: "not offered by the server"}
	}
	longest := c.export.maxBlock
	if c.export.extended {
		longest = longestZero
	}
	for end := r.off + r.len; r.off < end; r.off += r.len {
		r.len = min(end-r.off, longest)
		piece := r
		if err := c.do(ctx, &piece); err != nil {
			return err
		}
	}
	return nil
}

// Flush makes every write that has returned durable. A server that does not offer it has nothing to
// flush.
func (c *Client) Flush(ctx context.Context) error {
	if c.export.flags&SendFlush == 0 {
		return nil
	}
	return c.do(ctx, &request{cmd: cmdFlush})
}
