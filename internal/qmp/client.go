package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed reports that the connection is gone: QEMU ended, or closed it, or Close was called.
var ErrClosed = errors.New("QEMU closed its monitor")

// Client is one connection to a QEMU. Its methods are safe for concurrent use.
type Client struct {
	conn    *net.UnixConn
	version Version
	oob     bool
	peer    int // process that listens

	write sync.Mutex // one command at a time on the wire

	done chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	lastID  uint64
	waiting map[uint64]chan message
	subs    map[*Subscription]bool
	err     error // why the reader ended
}

// Version is that of the QEMU at the other end.
func (c *Client) Version() Version { return c.version }

// PeerPID is the process that made the socket: QEMU itself, unless something made the socket for
// it. With -daemonize that is the process that still runs, since QEMU listens after it has forked
// only its last child; 0 if unknown.
func (c *Client) PeerPID() int { return c.peer }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection. Commands that wait return ErrClosed. It may be called more than once.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Execute runs a command with args, which may be nil, and decodes its answer into result, which may
// be nil. A refusal is an [*Error]. When ctx ends first QEMU may still carry the command out.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	return c.run(ctx, "execute", command, args, result, nil)
}

// ExecuteOOB runs a command out of band: QEMU answers even while its main loop hangs. Where the
// QEMU does not offer it, it is an ordinary command. Only few commands may run so; see QEMU's
// schema.
func (c *Client) ExecuteOOB(ctx context.Context, command string, args, result any) error {
	key := "execute"
	if c.oob {
		key = "exec-oob"
	}
	return c.run(ctx, key, command, args, result, nil)
}

// AddFD hands QEMU a duplicate of f as a new file descriptor set and returns its number:
// /dev/fdset/N names the file in blockdev-add. QEMU drops the set when nobody uses it and this
// connection has ended, or on remove-fd. The label is shown by query-fdsets as "opaque".
func (c *Client) AddFD(ctx context.Context, f *os.File, label string) (set int, err error) {
	var got struct {
		Set int `json:"fdset-id"`
	}
	err = c.run(ctx, "execute", "add-fd", map[string]any{"opaque": label}, &got, f)
	return got.Set, err
}

// GetFD hands QEMU a duplicate of f under a name, for commands that take a descriptor by name.
func (c *Client) GetFD(ctx context.Context, name string, f *os.File) error {
	return c.run(ctx, "execute", "getfd", map[string]any{"fdname": name}, nil, f)
}

func (c *Client) run(ctx context.Context, key, command string, args, result any, f *os.File) error {
	id, answer := c.register()
	defer c.forget(id)
	req := map[string]any{key: command, "id": id}
	if args != nil {
		req["arguments"] = args
	}
	line, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("%s: encode arguments: %w", command, err)
	}
	if err := c.send(ctx, append(line, '\n'), f); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	select {
	case m := <-answer:
		return finish(command, m, result)
	case <-c.done:
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, ctx.Err())
	}
	select { // the answer may have come just before the end
	case m := <-answer:
		return finish(command, m, result)
	default:
		return fmt.Errorf("%s: %w", command, c.cause())
	}
}

func finish(command string, m message, result any) error {
	if m.err != nil {
		return fmt.Errorf("%s: %w", command, m.err)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.result, result); err != nil {
		return fmt.Errorf("%s: decode answer: %w", command, err)
	}
	return nil
}

func (c *Client) register() (uint64, chan message) {
	answer := make(chan message, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID++
	c.waiting[c.lastID] = answer
	return c.lastID, answer
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// send writes one line, with f attached if it is not nil. A line that could be written only in part
// ends the connection, for nothing after it would be understood.
func (c *Client) send(ctx context.Context, line []byte, f *os.File) error {
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	c.write.Lock()
	defer c.write.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.conn.SetWriteDeadline(time.Unix(1, 0)) })
	n, _, err := c.conn.WriteMsgUnix(line, rights, nil)
	if err == nil && n < len(line) {
		_, err = c.conn.Write(line[n:])
	}
	if !stop() && err == nil {
		return c.conn.SetWriteDeadline(time.Time{})
	}
	if err == nil {
		return nil
	}
	c.conn.Close()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %v", ErrClosed, err)
}

// read runs until the connection ends and hands out what comes.
func (c *Client) read(sc *bufio.Scanner) {
	err := error(nil)
	for err == nil && sc.Scan() {
		var m message
		if m, err = decode(sc.Bytes()); err == nil {
			c.dispatch(m)
		}
	}
	if err == nil {
		err = sc.Err()
	}
	c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = ErrClosed
	if err != nil && !errors.Is(err, net.ErrClosed) {
		c.err = fmt.Errorf("%w: %v", ErrClosed, err)
	}
	for s := range c.subs {
		s.end()
	}
	close(c.done)
}

func (c *Client) dispatch(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.event != nil {
		for s := range c.subs {
			s.put(*m.event)
		}
		return
	}
	if answer := c.waiting[m.id]; answer != nil {
		delete(c.waiting, m.id)
		answer <- m
	}
}

func (c *Client) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}
