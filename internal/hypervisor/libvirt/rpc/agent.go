package rpc

import (
	"context"
	"time"
)

// FSFreeze makes the guest flush and hold its file systems, all if mounts is empty. It returns how
// many.
func (c *Client) FSFreeze(ctx context.Context, dom Domain, mounts []string) (int, error) {
	return c.freeze(ctx, procFSFreeze, dom, mounts)
}

// FSThaw releases the guest's file systems. It returns how many.
func (c *Client) FSThaw(ctx context.Context, dom Domain) (int, error) {
	return c.freeze(ctx, procFSThaw, dom, nil)
}

func (c *Client) freeze(ctx context.Context, proc int32, dom Domain, mounts []string) (int, error) {
	var e encoder
	e.domain(dom)
	e.u32(uint32(len(mounts)))
	for _, m := range mounts {
		e.str(m)
	}
	e.u32(0)
	d, err := c.remote(ctx, proc, e.b)
	if err != nil {
		return 0, err
	}
	return int(d.i32()), d.end()
}

// SetAgentTimeout bounds how long libvirt's own agent calls wait; without it they wait for ever.
func (c *Client) SetAgentTimeout(ctx context.Context, dom Domain, t time.Duration) error {
	var e encoder
	e.domain(dom)
	e.i32(seconds(t))
	e.u32(0)
	return c.void(ctx, procAgentTimeout, e.b)
}

// AgentCommand passes one JSON command to the guest agent and returns its JSON reply. libvirt gives
// up after t, in whole seconds.
func (c *Client) AgentCommand(ctx context.Context, dom Domain, command string, t time.Duration) (string, error) {
	var e encoder
	e.domain(dom)
	e.str(command)
	e.i32(seconds(t))
	e.u32(0)
	d, err := c.qemu(ctx, procAgentCommand, e.b)
	if err != nil {
		return "", err
	}
	return d.optional(), d.end()
}

// seconds rounds up and is at least 1: smaller numbers mean something else to libvirt.
func seconds(t time.Duration) int32 {
	return int32(max(1, min((t+time.Second-1)/time.Second, 1<<20)))
}

// MonitorCommand runs a QMP command, or with hmp a command of the human monitor. libvirt marks the
// domain as tainted.
func (c *Client) MonitorCommand(ctx context.Context, dom Domain, command string, hmp bool) (string, error) {
	var e encoder
	e.domain(dom)
	e.str(command)
	e.flag(hmp)
	d, err := c.qemu(ctx, procMonitorCommand, e.b)
	if err != nil {
		return "", err
	}
	return d.str(), d.end()
}
