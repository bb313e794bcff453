package guest

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

var (
	// ErrSilent reports that the channel to the agent is there, but nothing answers on it.
	ErrSilent = errors.New(reasonSilent)
	// ErrInUse reports that another program is connected to the agent's socket, which takes one
	// client at a time.
	ErrInUse = errors.New(reasonInUse)
	// ErrGone reports that the machine of the agent does not run: its QEMU has ended, and with it
	// whatever its guest held.
	ErrGone = errors.New("no QEMU serves it")
	// ErrProtocol reports an answer that is not the guest agent protocol.
	ErrProtocol = errors.New("not an answer of a guest agent")
)

const (
	maxReply    = 8 << 20         // bytes of one answer
	maxSync     = 1 << 10         // bytes of the answer to a sync
	syncTimeout = 3 * time.Second // an agent that lives answers a sync at once
	delimiter   = 0xFF            // no byte of JSON text
)

// Error is what the guest agent answered instead of a result.
type Error struct {
	Class string `json:"class"` // GenericError, CommandNotFound, …
	Desc  string `json:"desc"`  // in the agent's words
}

func (e *Error) Error() string { return "guest agent: " + e.Desc }

// Disabled reports whether the agent does not know the command or does not allow it, always or
// while the guest is held.
func (e *Error) Disabled() bool { return e.Class == "CommandNotFound" }

// Conn is a connection to a guest agent. Its methods are safe for concurrent use; commands run one
// after another.
type Conn struct {
	mu     chan struct{} // holds one token while nobody talks
	nc     net.Conn
	r      *bufio.Reader
	path   string
	synced bool // the next answer belongs to the next command

	closeOnce sync.Once
	closeErr  error
}

var _ hypervisor.Agent = (*Conn)(nil)

// DialUnix connects to the agent's unix socket at path and checks that an agent answers there, for
// three seconds at most. Without a socket, or one that nobody serves, the error is
// [hypervisor.ErrNoAgent]; it is also that and [ErrSilent] if nothing answers, and that and
// [ErrInUse] if another client holds the socket.
func DialUnix(ctx context.Context, path string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, dialError(path, err)
	}
	c := newConn(nc, path)
	if err := c.sync(ctx); err != nil {
		c.Close()
		if errors.Is(err, context.Canceled) {
			return nil, fmt.Errorf("open guest agent %s: %w", path, err)
		}
		return nil, fmt.Errorf("open guest agent %s: %w: %w", path, hypervisor.ErrNoAgent, err)
	}
	return c, nil
}

func dialError(path string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("open guest agent %s: %w: %w: %w", path, hypervisor.ErrNoAgent, ErrGone, err)
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, context.DeadlineExceeded) && hasClient(path):
		return fmt.Errorf("open guest agent %s: %w: %w", path, hypervisor.ErrNoAgent, ErrInUse)
	}
	return fmt.Errorf("open guest agent %s: %w", path, err)
}

func newConn(nc net.Conn, path string) *Conn {
	c := &Conn{mu: make(chan struct{}, 1), nc: nc, r: bufio.NewReaderSize(nc, 64<<10), path: path}
	c.mu <- struct{}{}
	return c
}

// Close ends the connection; a command in progress fails.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() { c.closeErr = c.nc.Close() })
	return c.closeErr
}

// Command runs one command and returns its result as JSON; args may be nil. An error the guest
// answered is an [*Error]; if no answer came before ctx ended, the error is ctx's, and [ErrSilent]
// too if not even a sync was answered. The connection stays usable after both: late answers are
// recognised and dropped.
func (c *Conn) Command(ctx context.Context, name string, args any) ([]byte, error) {
	if err := c.lock(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer c.unlock()
	if !c.synced {
		if err := c.sync(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	req, err := encode(name, args)
	if err != nil {
		return nil, fmt.Errorf("%s: encode arguments: %w", name, err)
	}
	c.synced = false
	var result json.RawMessage
	err = c.within(ctx, func() error {
		if _, err := c.nc.Write(req); err != nil {
			return err
		}
		line, err := readLine(c.r, maxReply)
		if err != nil {
			return err
		}
		result, err = parseReply(line)
		return err
	})
	var answered *Error
	c.synced = err == nil || errors.As(err, &answered)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return result, nil
}

func (c *Conn) lock(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-c.mu:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Conn) unlock() { c.mu <- struct{}{} }

// within runs one exchange that ends when ctx does, with ctx's error.
func (c *Conn) within(ctx context.Context, exchange func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.nc.SetDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := exchange()
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the agent's channel was closed: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// sync throws away whatever was said before, on both sides: the delimiter byte ends any half-read
// request in the agent's parser, and the agent puts one before its answer, which carries our random
// number.
func (c *Conn) sync(ctx context.Context) error {
	id := randomID()
	req, err := encode("guest-sync-delimited", map[string]int64{"id": id})
	if err != nil {
		return err
	}
	err = c.within(ctx, func() error {
		if _, err := c.nc.Write(append([]byte{delimiter}, req...)); err != nil {
			return err
		}
		return awaitSync(c.r, id)
	})
	switch {
	case err == nil:
		c.synced = true
	case ctx.Err() != nil && notAccepted(c.nc):
		return fmt.Errorf("%w: %w", ErrInUse, ctx.Err())
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ErrSilent, ctx.Err())
	}
	return err
}

func randomID() int64 {
	var b [8]byte
	rand.Read(b[:])
	return int64(binary.LittleEndian.Uint64(b[:]) >> 1) // positive: an agent answers the number it read
}

func encode(name string, args any) ([]byte, error) {
	req, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{name, args})
	return append(req, '\n'), err
}
