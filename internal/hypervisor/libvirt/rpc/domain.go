package rpc

import "context"

// Numbers of the calls of libvirt's remote program.
const (
	procOpen               = 1
	procGetVersion         = 4
	procDomainXML          = 14
	procDomainByName       = 23
	procDomainByUUID       = 24
	procDomainResume       = 28
	procDomainSuspend      = 34
	procNetworkXML         = 43
	procNetworkByName      = 46
	procSupportsFeature    = 60
	procAuthList           = 66
	procAuthPolkit         = 70
	procStoragePoolRefresh = 83
	procStoragePoolByName  = 84
	procStoragePoolXML     = 88
	procGetLibVersion      = 157
	procAttachDevice       = 160
	procDetachDevice       = 161
	procDomainBlockInfo    = 194
	procDomainCreate       = 196
	procDomainState        = 212
	procDomainUndefine     = 231
	procDomainDestroy      = 234
	procBlockResize        = 251
	procListDomains        = 273
	procListNetworks       = 283
	procJobStats           = 298
	procEventRegister      = 316
	procEventDeregister    = 317
	procFSFreeze           = 335
	procFSThaw             = 336
	procDomainCapabilities = 342
	procDomainDefine       = 350
	procCheckpointCreate   = 411
	procCheckpointXML      = 412
	procListCheckpoints    = 413
	procCheckpointDelete   = 417
	procAgentTimeout       = 420
	procBackupBegin        = 421
	procBackupXML          = 422
	procAbortJobFlags      = 442
	procAbortJob           = 164

	procMonitorCommand = 1 // of the QEMU program
	procAgentCommand   = 3 // of the QEMU program
)

// XMLFlags choose a form of a domain's XML.
type XMLFlags uint32

// Forms of a domain's XML.
const (
	XMLSecure     XMLFlags = 1 // with passwords
	XMLInactive   XMLFlags = 2 // as it will be at the next start
	XMLMigratable XMLFlags = 8
)

// State is what libvirt says a domain is doing.
type State struct{ State, Reason int32 }

// States of a domain, and reasons that callers decide by.
const (
	StateRunning  = 1
	StateBlocked  = 2
	StatePaused   = 3
	StateShutdown = 4
	StateOff      = 5
	StateCrashed  = 6
	StatePM       = 7

	PausedUser = 1 // reason of StatePaused: someone asked for it

	// Reasons of StateOff. After others the guest may go on as it was: saved, or moved to another
	// host.
	OffShutdown  = 1
	OffDestroyed = 2
	OffCrashed   = 3
)

// Flags of DomainUndefine and DomainDefine.
const (
	UndefineManagedSave = 1
	UndefineSnapshots   = 2
	UndefineNVRAM       = 4
	UndefineKeepNVRAM   = 8
	UndefineCheckpoints = 16
	UndefineTPM         = 32
	DefineValidate      = 1
	StartPaused         = 1
)

// BlockInfo is the size of a disk in bytes.
type BlockInfo struct {
	Capacity   uint64 // what the guest sees
	Allocation uint64 // what the image occupies
	Physical   uint64 // the image's length
}

// Version returns the hypervisor's version as major*1,000,000 + minor*1,000 + micro.
func (c *Client) Version(ctx context.Context) (uint64, error) { return c.number(ctx, procGetVersion) }

// LibVersion returns libvirt's version in the form of Version.
func (c *Client) LibVersion(ctx context.Context) (uint64, error) {
	return c.number(ctx, procGetLibVersion)
}

func (c *Client) number(ctx context.Context, proc int32) (uint64, error) {
	d, err := c.remote(ctx, proc, nil)
	if err != nil {
		return 0, err
	}
	return d.u64(), d.end()
}

// Domains lists all domains, running or not.
func (c *Client) Domains(ctx context.Context) ([]Domain, error) {
	var e encoder
	e.i32(1)
	e.u32(0)
	d, err := c.remote(ctx, procListDomains, e.b)
	if err != nil {
		return nil, err
	}
	var out []Domain
	for range d.count(24) {
		out = append(out, d.domain())
		if d.err != nil {
			return nil, d.err
		}
	}
	return out, d.err
}

// DomainByName looks a domain up; a missing one is an Error of code [NoDomain].
func (c *Client) DomainByName(ctx context.Context, name string) (Domain, error) {
	var e encoder
	e.str(name)
	return c.domainOf(ctx, procDomainByName, e.b)
}

// DomainByUUID looks a domain up; a missing one is an Error of code [NoDomain].
func (c *Client) DomainByUUID(ctx context.Context, uuid [16]byte) (Domain, error) {
	var e encoder
	e.fixed(uuid[:])
	return c.domainOf(ctx, procDomainByUUID, e.b)
}

func (c *Client) domainOf(ctx context.Context, proc int32, args []byte) (Domain, error) {
	d, err := c.remote(ctx, proc, args)
	if err != nil {
		return Domain{}, err
	}
	return d.domain(), d.end()
}

// DomainXML returns a domain's definition.
func (c *Client) DomainXML(ctx context.Context, dom Domain, flags XMLFlags) (string, error) {
	return c.text(ctx, procDomainXML, domainFlags(dom, uint32(flags)))
}

// DomainState returns what a domain is doing and why.
func (c *Client) DomainState(ctx context.Context, dom Domain) (State, error) {
	d, err := c.remote(ctx, procDomainState, domainFlags(dom, 0))
	if err != nil {
		return State{}, err
	}
	return State{State: d.i32(), Reason: d.i32()}, d.end()
}

// DomainDefine makes a domain of its XML, or changes the one of the same UUID and name.
func (c *Client) DomainDefine(ctx context.Context, xml string, flags uint32) (Domain, error) {
	var e encoder
	e.str(xml)
	e.u32(flags)
	return c.domainOf(ctx, procDomainDefine, e.b)
}

// DomainCreate starts a domain.
func (c *Client) DomainCreate(ctx context.Context, dom Domain, flags uint32) (Domain, error) {
	return c.domainOf(ctx, procDomainCreate, domainFlags(dom, flags))
}

// DomainDestroy ends a domain's process at once.
func (c *Client) DomainDestroy(ctx context.Context, dom Domain) error {
	return c.void(ctx, procDomainDestroy, domainFlags(dom, 0))
}

// DomainUndefine forgets a domain's definition.
func (c *Client) DomainUndefine(ctx context.Context, dom Domain, flags uint32) error {
	return c.void(ctx, procDomainUndefine, domainFlags(dom, flags))
}

// DomainSuspend stops a domain's processors and waits for its disks.
func (c *Client) DomainSuspend(ctx context.Context, dom Domain) error {
	var e encoder
	e.domain(dom)
	return c.void(ctx, procDomainSuspend, e.b)
}

// DomainResume lets a domain's processors go on.
func (c *Client) DomainResume(ctx context.Context, dom Domain) error {
	var e encoder
	e.domain(dom)
	return c.void(ctx, procDomainResume, e.b)
}

// DomainBlockInfo returns the size of a disk, named by its target or its path.
func (c *Client) DomainBlockInfo(ctx context.Context, dom Domain, disk string) (BlockInfo, error) {
	var e encoder
	e.domain(dom)
	e.str(disk)
	e.u32(0)
	d, err := c.remote(ctx, procDomainBlockInfo, e.b)
	if err != nil {
		return BlockInfo{}, err
	}
	return BlockInfo{Allocation: d.u64(), Capacity: d.u64(), Physical: d.u64()}, d.end()
}

// DomainCapabilities says what a machine type of an architecture can have here. Any argument may be
// "".
func (c *Client) DomainCapabilities(ctx context.Context, emulator, arch, machine, virt string) (string, error) {
	var e encoder
	for _, s := range []string{emulator, arch, machine, virt} {
		e.optional(s)
	}
	e.u32(0)
	return c.text(ctx, procDomainCapabilities, e.b)
}

func domainFlags(dom Domain, flags uint32) []byte {
	var e encoder
	e.domain(dom)
	e.u32(flags)
	return e.b
}

func (c *Client) void(ctx context.Context, proc int32, args []byte) error {
	_, err := c.remote(ctx, proc, args)
	return err
}
