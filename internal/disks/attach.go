package disks

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/nbd"
)

// serialLength is how many bytes of a serial number every kind of disk shows.
const serialLength = 20

// AttachRequest says which machine gets a disk.
type AttachRequest struct {
	Host     Host
	Machine  hypervisor.Machine
	As       string // name in the machine; "" takes a free one
	ReadOnly bool
}

// Attach gives a disk to a machine. When it returns nil the machine has it and the record says so;
// on error the machine does not have it, unless the error is [ErrUnfinished].
//
// Errors that callers decide by: [ErrAttached], [ErrBusy], [ErrUnfinished], [ErrHydrating] if
// nobody serves what the disk stands on, and those of hypervisor.Attacher.
func (p *Pool) Attach(ctx context.Context, name string, req AttachRequest) (*Disk, error) {
	d, unlock, err := p.open(name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := p.attach(ctx, d, req); err != nil {
		return nil, fmt.Errorf("attach disk %s: %w", name, err)
	}
	return d, nil
}

// open locks a disk that nothing is being done to.
func (p *Pool) open(name string) (*Disk, func(), error) {
	if _, err := p.Disk(name); err != nil { // before a lock file is made for nothing
		return nil, nil, err
	}
	unlock, err := p.lockBetween(name)
	if err != nil {
		return nil, nil, err
	}
	d, err := p.durableDisk(name)
	if err == nil && d.Doing != nil {
		err = fmt.Errorf("disk %s: %w: %s", name, ErrUnfinished, d.Doing.What)
	}
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return d, unlock, nil
}

func (p *Pool) attach(ctx context.Context, d *Disk, req AttachRequest) error {
	if d.Attached != nil {
		return fmt.Errorf("%w: %s on %s has it as %s", ErrAttached, d.Attached.VM, d.Attached.Host, d.Attached.As)
	}
	a := hypervisor.Attachment{Name: req.As, File: p.Path(d), Format: d.imageFormat(),
		Serial: d.ID[:min(len(d.ID), serialLength)], ReadOnly: req.ReadOnly}
	if d.Hydration != nil {
		if !p.held(d.Name, hydrateLock) {
			return fmt.Errorf("%w, and nobody serves the snapshot it stands on", ErrHydrating)
		}
		if req.ReadOnly {
			return fmt.Errorf("%w: until then it cannot be attached read-only", ErrHydrating)
		}
		if err := d.Hydration.makeReachable(ctx, req.Host); err != nil {
			return err
		}
		a.Backing = d.Hydration.URI()
	}
	now := p.opts.Now().UTC()
	to := &Attachment{Host: req.Host.URI(), VM: req.Machine.Name, UUID: req.Machine.UUID, As: req.As,
		ReadOnly: req.ReadOnly, Since: now}
	d.Doing = &Doing{What: "attach", Since: now, To: to}
	if err := errors.Join(p.save(d), p.step("attach: recorded")); err != nil {
		return err
	}
	as, err := req.Host.Attach(ctx, req.Machine, a)
	if err != nil {
		return p.notAttached(ctx, d, req, err)
	}
	if err := p.step("attach: attached"); err != nil {
		return err
	}
	to.As = as
	d.Attached, d.Doing = to, nil
	return p.save(d)
}

// URI returns the address of the export that the disk stands on.
func (h *Hydration) URI() string {
	return nbd.URI(&net.UnixAddr{Name: h.Socket, Net: "unix"}, h.Export, false)
}

// imageFormat returns the format of the image as it is now: an overlay while the disk is being
// filled.
func (d *Disk) imageFormat() string {
	if d.Hydration != nil {
		return "qcow2"
	}
	return d.Format
}

// notAttached takes back what the record says if the machine really has not got the disk.
func (p *Pool) notAttached(ctx context.Context, d *Disk, req AttachRequest, why error) error {
	as, _, err := req.Host.Attached(context.WithoutCancel(ctx), req.Machine, p.Path(d))
	if err != nil || as != "" {
		return fmt.Errorf("%w; whether the machine has it now is not certain (%w)", why, ErrUnfinished)
	}
	d.Doing = nil
	return errors.Join(why, p.save(d))
}

// Detach takes a disk from the machine that has it. If it returns [hypervisor.ErrNotReleased] the
// guest was asked and may still let it go; the record then says that it is being detached.
func (p *Pool) Detach(ctx context.Context, name string) (*Disk, error) {
	d, unlock, err := p.open(name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if d.Attached == nil {
		return nil, fmt.Errorf("detach disk %s: %w", name, ErrNotAttached)
	}
	d.Doing = &Doing{What: "detach", Since: p.opts.Now().UTC()}
	err = errors.Join(p.save(d), p.step("detach: recorded"))
	if err == nil {
		err = p.detach(ctx, d)
	}
	if err != nil {
		return nil, fmt.Errorf("detach disk %s: %w", name, err)
	}
	return d, nil
}

// detach does what the record says is being done. It may be called again.
func (p *Pool) detach(ctx context.Context, d *Disk) error {
	h, m, err := p.machineOf(ctx, d.Attached)
	switch {
	case errors.Is(err, hypervisor.ErrNoMachine): // gone, unless a process still has the image
		if err := p.unused(ctx, d); errors.Is(err, diskimage.ErrInUse) {
			return p.stayAttached(d, err)
		}
	case err != nil:
		return p.stayAttached(d, err)
	default:
		if err := p.settle(ctx, h, m, d); err != nil {
			return p.stayAttached(d, err)
		}
		if err := h.Detach(ctx, m, p.Path(d)); err != nil {
			if errors.Is(err, hypervisor.ErrNotReleased) || ctx.Err() != nil {
				return err
			}
			return p.stayAttached(d, err)
		}
	}
	if err := p.step("detach: detached"); err != nil {
		return err
	}
	d.Attached, d.Doing = nil, nil
	return p.save(d)
}

// stayAttached says that nothing is being done any more.
func (p *Pool) stayAttached(d *Disk, why error) error {
	d.Doing = nil
	return errors.Join(why, p.save(d))
}

// machineOf returns the machine of an attachment, hypervisor.ErrNoMachine if it exists no more, or
// ErrHost. A plain QEMU that does not listen any more, while nobody uses the image, has ended.
func (p *Pool) machineOf(ctx context.Context, a *Attachment) (Host, hypervisor.Machine, error) {
	if p.opts.Open == nil {
		return nil, hypervisor.Machine{}, fmt.Errorf("%w: %s", ErrHost, a.Host)
	}
	h, err := p.opts.Open(a.Host)
	if err != nil {
		return nil, hypervisor.Machine{}, fmt.Errorf("%w: %w", ErrHost, err)
	}
	machines, err := h.Machines(ctx)
	if nobodyListens(err) {
		return nil, hypervisor.Machine{}, fmt.Errorf("%w: nobody listens at %s", hypervisor.ErrNoMachine, a.Host)
	}
	if err != nil {
		return nil, hypervisor.Machine{}, fmt.Errorf("%w: %w", ErrHost, err)
	}
	for _, m := range machines {
		if m.UUID == a.UUID && (m.UUID != "" || m.Name == a.VM) {
			return h, m, nil
		}
	}
	return nil, hypervisor.Machine{}, fmt.Errorf("%w: %s on %s", hypervisor.ErrNoMachine, a.VM, a.Host)
}

// unused returns an error if a process uses the image, as QEMU's locks tell.
func (p *Pool) unused(ctx context.Context, d *Disk) error {
	if d.Hydration != nil {
		return nil // opening it needs the export; who made it is known by another lock
	}
	m, err := diskimage.Open(ctx, p.Path(d), diskimage.Options{Format: d.Format})
	if err != nil {
		return err
	}
	return m.Close()
}
