package disks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
)

// attached fills a disk that a machine has.
func (f *filling) attached(ctx context.Context, d *Disk) error {
	h, m, err := f.pool.machineOf(ctx, d.Attached)
	if errors.Is(err, hypervisor.ErrNoMachine) {
		_, err = f.pool.Reconcile(ctx, f.name)
		return errors.Join(errAgain, err)
	}
	if err != nil {
		return err
	}
	if c, ok := h.(io.Closer); ok {
		defer c.Close() // others want to speak to the machine too; it is opened again when it is used again
	}
	able, ok := h.(hypervisor.Hydrator)
	if !ok {
		return fmt.Errorf("host %s cannot copy a disk while its machine runs: detach it", h.URI())
	}
	t := hypervisor.HydrationTarget{Disk: d.Attached.As, File: filepath.Join(f.pool.dir, d.Hydration.Final),
		Format: d.Format, Size: d.Size}
	if m.State == hypervisor.Off {
		only := hypervisor.Settlement{Targets: []hypervisor.HydrationTarget{t}, Off: true}
		return f.copy(ctx, d, func() error { return able.FinishHydration(ctx, m, only) })
	}
	now, err := able.Hydration(ctx, m, t)
	switch {
	case err != nil:
		return err
	case now.Local:
		return f.switched(ctx, able, m, nil)
	case now.Ready:
		return f.switched(ctx, able, m, &t)
	case !now.Running && now.Err != nil && f.resumed:
		return now.Err
	case !now.Running:
		f.resumed = now.Err != nil
		return f.begin(ctx, able, m, t)
	case now.Err != nil:
		return f.resume(ctx, able, m, t, now.Err)
	}
	f.resumed, f.waits = false, false
	f.tell(now.Done, now.Total)
	return errAgain
}

// resume lets a copy go on that stopped on an error, once: what it stands on may have been gone. A
// copy that has no room is tried again and again.
func (f *filling) resume(ctx context.Context, h hypervisor.Hydrator, m hypervisor.Machine, t hypervisor.HydrationTarget,
	why error) error {
	full := errors.Is(why, hypervisor.ErrNoRoom)
	if f.resumed && !full {
		return why
	}
	f.resumed = true
	_, err := h.Continue(ctx, m)
	if err := errors.Join(err, h.Hydrate(ctx, m, t, 0)); err != nil {
		return err
	}
	if full {
		return fmt.Errorf("%w in %s: %w", diskimage.ErrNoSpace, f.pool.dir, why)
	}
	return errAgain
}

// begin lets a machine that waits for the export go on, and starts the copy. It returns errAgain
// where that succeeds.
func (f *filling) begin(ctx context.Context, h hypervisor.Hydrator, m hypervisor.Machine,
	t hypervisor.HydrationTarget) error {
	if _, err := h.Continue(ctx, m); err != nil {
		return err
	}
	d, err := f.pool.Disk(f.name)
	if err != nil || d.Hydration == nil {
		return errors.Join(errAgain, err)
	}
	if err := f.pool.dropCopy(d); err != nil {
		return err
	}
	data, err := f.req.Content.Extents(ctx)
	if err == nil {
		err = f.pool.freeFor(data.Bytes(), 0)
	}
	if err != nil {
		return err
	}
	w, err := diskimage.Create(t.File, t.Size, t.Format, extent.Set{}, false)
	if err != nil {
		return err
	}
	if err := w.Commit(); err != nil {
		return err
	}
	if err := h.Hydrate(ctx, m, t, 0); err != nil {
		return err
	}
	if err := f.pool.step("hydrate: begun"); err != nil {
		return err
	}
	return errAgain
}

// switched moves the machine to the copy, unless it is there, records that, and only then lets the
// machine go on if we had stopped it: whichever of both images is found after a crash in between
// holds all that was written.
func (f *filling) switched(ctx context.Context, h hypervisor.Hydrator, m hypervisor.Machine,
	to *hypervisor.HydrationTarget) error {
	unlock, err := f.pool.lock(f.name, workLock)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := f.pool.durableDisk(f.name)
	if err != nil {
		return err
	}
	if d.Doing != nil || d.Attached == nil {
		return errAgain
	}
	if to != nil {
		err := h.FinishHydration(ctx, m, f.pool.settlement(d, *to))
		if err != nil && !errors.Is(err, hypervisor.ErrStandsStill) {
			err = errors.Join(err, f.pool.letGo(context.WithoutCancel(ctx), h, m, d))
		}
		if err != nil {
			return err
		}
	}
	if err := f.pool.step("hydrate: moved"); err != nil {
		return err
	}
	err = f.pool.localize(d)
	if errors.Is(err, errCrash) {
		return err
	}
	return errors.Join(err, f.pool.letGo(context.WithoutCancel(ctx), h, m, d))
}

// settlement is of one disk, and leaves the machine standing still, which the record says.
func (p *Pool) settlement(d *Disk, t hypervisor.HydrationTarget) hypervisor.Settlement {
	return hypervisor.Settlement{Targets: []hypervisor.HydrationTarget{t}, StayPaused: true, Held: d.Attached.Held,
		Note: func(m pause.Mark) error {
			d.Attached.Held = &m
			return errors.Join(p.save(d), p.step("hydrate: held"))
		}}
}

// letGo lets the machine go on if the record says that it was stopped.
func (p *Pool) letGo(ctx context.Context, h any, m hypervisor.Machine, d *Disk) error {
	if d.Attached == nil || d.Attached.Held == nil {
		return nil
	}
	able, ok := h.(hypervisor.Hydrator)
	if !ok {
		return fmt.Errorf("its host cannot let machine %s go on", m.Name)
	}
	if err := able.GoOn(ctx, m, *d.Attached.Held); err != nil {
		return err
	}
	d.Attached.Held = nil
	return p.save(d)
}

// settle takes note that a machine runs on the image that was to be, which a process that moved it
// there did not live to record, and lets it go on if that has stopped it.
func (p *Pool) settle(ctx context.Context, h Host, m hypervisor.Machine, d *Disk) error {
	if d.Hydration != nil {
		as, _, err := h.Attached(ctx, m, filepath.Join(p.dir, d.Hydration.Final))
		if err != nil || as == "" {
			return err
		}
		if err := p.localize(d); err != nil {
			return err
		}
	}
	return p.letGo(ctx, h, m, d)
}

// makeReachable lets a machine of another user connect to the export.
func (h *Hydration) makeReachable(ctx context.Context, host Host) error {
	o, ok := host.(hypervisor.Owner)
	if !ok {
		return nil
	}
	uid, gid, err := o.MachineOwner(ctx)
	if err != nil || uid < 0 {
		return err
	}
	return os.Chown(h.Socket, uid, gid)
}
