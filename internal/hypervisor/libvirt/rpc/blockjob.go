package rpc

import "context"

const (
	procCapabilities     = 7
	procBlockJobAbort    = 237
	procBlockJobInfo     = 238
	procBlockJobSetSpeed = 239
	procBlockCopy        = 345

	typedULLong = 4 // of a typed parameter
)

// Flags of BlockCopy, BlockJobAbort and BlockJobSetSpeed.
const (
	BlockCopyReuseExternal = 2 // the target exists
	BlockCopyTransientJob  = 4 // the job may end with the machine

	BlockJobAbortPivot = 2 // the copy takes the place of the disk

	BlockJobSpeedBytes = 1 // bytes a second, not MiB
)

// BlockJob is the state of a disk's job.
type BlockJob struct {
	Type     int32
	Rate     uint64 // bytes a second; 0 means no limit
	Cur, End uint64 // how far it is, in units of its own
}

// BlockCopy starts to copy a disk to the one that xml describes, at rate bytes a second; 0 means no
// limit.
func (c *Client) BlockCopy(ctx context.Context, dom Domain, disk, xml string, rate uint64, flags uint32) error {
	var e encoder
	e.domain(dom)
	e.str(disk)
	e.str(xml)
	if rate > 0 {
		e.u32(1)
		e.str("bandwidth")
		e.u32(typedULLong)
		e.u64(rate)
	} else {
		e.u32(0)
	}
	e.u32(flags)
	return c.void(ctx, procBlockCopy, e.b)
}

// BlockJobAbort ends the job of a disk.
func (c *Client) BlockJobAbort(ctx context.Context, dom Domain, disk string, flags uint32) error {
	var e encoder
	e.domain(dom)
	e.str(disk)
	e.u32(flags)
	return c.void(ctx, procBlockJobAbort, e.b)
}

// BlockJobInfo returns the job of a disk, and false if it has none.
func (c *Client) BlockJobInfo(ctx context.Context, dom Domain, disk string) (BlockJob, bool, error) {
	var e encoder
	e.domain(dom)
	e.str(disk)
	e.u32(BlockJobSpeedBytes)
	d, err := c.remote(ctx, procBlockJobInfo, e.b)
	if err != nil {
		return BlockJob{}, false, err
	}
	found := d.i32()
	job := BlockJob{Type: d.i32(), Rate: d.u64(), Cur: d.u64(), End: d.u64()}
	return job, found != 0, d.end()
}

// BlockJobSetSpeed limits the job of a disk to rate bytes a second; 0 means no limit.
func (c *Client) BlockJobSetSpeed(ctx context.Context, dom Domain, disk string, rate uint64) error {
	var e encoder
	e.domain(dom)
	e.str(disk)
	e.u64(rate)
	e.u32(BlockJobSpeedBytes)
	return c.void(ctx, procBlockJobSetSpeed, e.b)
}

// Capabilities describes the host, as XML.
func (c *Client) Capabilities(ctx context.Context) (string, error) {
	return c.text(ctx, procCapabilities, nil)
}
