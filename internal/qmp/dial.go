package qmp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse reports that the monitor serves another client and therefore not us.
var ErrInUse = errors.New("monitor is in use by another client")

const (
	greetingWait = 3 * time.Second // a free monitor greets within milliseconds
	retryPause   = 20 * time.Millisecond
)

// Dial connects to the QMP socket at path and negotiates capabilities, out-of-band commands among
// them where they are offered. If no greeting comes within 3 s the error is [ErrInUse].
func Dial(ctx context.Context, path string) (*Client, error) {
	c, err := dial(ctx, path, greetingWait)
	if err != nil {
		return nil, fmt.Errorf("connect to QMP socket %s: %w", path, err)
	}
	return c, nil
}

func dial(ctx context.Context, path string, wait time.Duration) (*Client, error) {
	greetCtx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	conn, err := connect(greetCtx, path)
	if err != nil {
		return nil, orInUse(ctx, greetCtx, err)
	}
	sc := bufio.NewScanner(conn)
	sc.Buffer(make([]byte, 0, 64<<10), MaxLine)
	g, err := greet(greetCtx, conn, sc)
	if err != nil {
		conn.Close()
		return nil, orInUse(ctx, greetCtx, err)
	}
	c := &Client{conn: conn, version: g.version, oob: g.oob, peer: PeerPID(conn), done: make(chan struct{}),
		waiting: make(map[uint64]chan message), subs: make(map[*Subscription]bool)}
	go c.read(sc)
	if err := c.negotiate(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// orInUse tells the end of the wait for a greeting from the end of the caller's own context.
func orInUse(ctx, greetCtx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	// the network's clock may be ahead of the context's
	case greetCtx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded):
		return ErrInUse
	}
	return err
}

// connect tries again while the socket's queue is full, as it is when other clients wait there.
func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, err
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func greet(ctx context.Context, conn *net.UnixConn, sc *bufio.Scanner) (*greeting, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if !sc.Scan() {
		err := sc.Err()
		if errors.Is(err, syscall.ECONNRESET) { // QEMU ended with us in its socket's queue
			return nil, fmt.Errorf("%w: %v", ErrClosed, err)
		}
		if err != nil {
			return nil, err
		}
		return nil, ErrClosed
	}
	m, err := decode(sc.Bytes())
	if err != nil {
		return nil, err
	}
	if m.greeting == nil {
		return nil, errors.New("not a QMP socket: no greeting")
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return m.greeting, nil
}

func (c *Client) negotiate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	enable := []string{}
	if c.oob {
		enable = append(enable, "oob")
	}
	return c.Execute(ctx, "qmp_capabilities", map[string]any{"enable": enable}, nil)
}

// PeerPID returns the process that made the socket at the other end, 0 if the kernel does not say
// or it is in no namespace of processes that this one sees.
func PeerPID(conn *net.UnixConn) int {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
