package rpc

import "context"

// Affect says what a change of a domain's devices is made to.
type Affect uint32

// What a change is made to; they can be combined.
const (
	AffectLive   Affect = 1 // the running machine
	AffectConfig Affect = 2 // its definition
)

const blockResizeBytes = 1

// AttachDevice gives a domain the device that xml describes.
func (c *Client) AttachDevice(ctx context.Context, dom Domain, xml string, affect Affect) error {
	return c.void(ctx, procAttachDevice, deviceArgs(dom, xml, affect))
}

// DetachDevice takes the device that xml describes from a domain. A running guest is only asked: it
// lets the device go later, or never.
func (c *Client) DetachDevice(ctx context.Context, dom Domain, xml string, affect Affect) error {
	return c.void(ctx, procDetachDevice, deviceArgs(dom, xml, affect))
}

// BlockResize makes a disk of a running domain size bytes large.
func (c *Client) BlockResize(ctx context.Context, dom Domain, disk string, size uint64) error {
	var e encoder
	e.domain(dom)
	e.str(disk)
	e.u64(size)
	e.u32(blockResizeBytes)
	return c.void(ctx, procBlockResize, e.b)
}

func deviceArgs(dom Domain, xml string, affect Affect) []byte {
	var e encoder
	e.domain(dom)
	e.str(xml)
	e.u32(uint32(affect))
	return e.b
}
