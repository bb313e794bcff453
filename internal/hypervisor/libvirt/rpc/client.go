// Package rpc speaks libvirt's remote protocol to libvirtd over a unix socket.
//
// A [Client] is one connection. Its methods are safe for concurrent use, each is one call to
// libvirtd and ends with its context; a call whose context ended may still have happened. What
// libvirt refuses is an [*Error], a connection that ended is [ErrClosed]. What libvirtd sends is
// checked against size limits before memory is taken for it.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
)

// Client is a connection to libvirtd, opened on one driver.
type Client struct{ conn *conn }

// Domain is libvirt's handle of a machine.
type Domain struct {
	Name string
	UUID [16]byte
	ID   int32 // -1 if it is off
}

// Network is libvirt's handle of a virtual network.
type Network struct {
	Name string
	UUID [16]byte
}

// featureKeepalive asks libvirtd for keepalive messages.
const featureKeepalive = 10

// Dial connects to the libvirtd that listens on socket, and opens driver, such as qemu:///system.
func Dial(ctx context.Context, socket, driver string) (*Client, error) {
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("connect to libvirtd at %s: %w: neither root nor in the socket's group (usually "+
			"libvirt)", socket, fs.ErrPermission)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("connect to libvirtd, which is not installed or not running: %s: %w", socket,
			fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("connect to libvirtd at %s: %w", socket, err)
	}
	c := &Client{conn: newConn(nc)}
	if err := c.open(ctx, driver); err != nil {
		c.conn.close()
		return nil, fmt.Errorf("open %s at %s: %w", driver, socket, err)
	}
	return c, nil
}

func (c *Client) open(ctx context.Context, driver string) error {
	if err := c.authenticate(ctx); err != nil {
		return err
	}
	var e encoder
	e.i32(featureKeepalive)
	if _, err := c.remote(ctx, procSupportsFeature, e.b); err != nil {
		return err
	}
	e = encoder{}
	e.optional(driver)
	e.u32(0)
	_, err := c.remote(ctx, procOpen, e.b)
	return err
}

func (c *Client) authenticate(ctx context.Context) error {
	d, err := c.remote(ctx, procAuthList, nil)
	if err != nil {
		return err
	}
	const none, polkit = 0, 2
	kinds := map[uint32]bool{}
	for range d.count(4) {
		kinds[d.u32()] = true
	}
	switch {
	case d.err != nil:
		return d.err
	case len(kinds) == 0 || kinds[none]:
		return nil
	case kinds[polkit]:
		if _, err := c.remote(ctx, procAuthPolkit, nil); err != nil {
			return fmt.Errorf("polkit authentication: %w", err)
		}
		return nil
	}
	return errors.New("libvirtd wants SASL authentication, which is not supported on a local socket")
}

// Close ends the connection. Calls under way return [ErrClosed].
func (c *Client) Close() error {
	c.conn.close()
	return nil
}

// Closed is closed when the connection has ended.
func (c *Client) Closed() <-chan struct{} { return c.conn.done }

func (c *Client) remote(ctx context.Context, proc int32, args []byte) (*decoder, error) {
	body, err := c.conn.call(ctx, programRemote, proc, args, nil)
	return &decoder{b: body}, err
}

func (c *Client) qemu(ctx context.Context, proc int32, args []byte) (*decoder, error) {
	body, err := c.conn.call(ctx, programQEMU, proc, args, nil)
	return &decoder{b: body}, err
}

// text makes a call whose result is one string.
func (c *Client) text(ctx context.Context, proc int32, args []byte) (string, error) {
	d, err := c.remote(ctx, proc, args)
	if err != nil {
		return "", err
	}
	return d.str(), d.end()
}
