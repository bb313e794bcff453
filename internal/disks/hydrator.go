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
		return fmt.Errorf("host %s can not copy a disk while its machine runs: detach it", h.URI())
	}
	t := hypervisor.HydrationTarget{Disk: d.Attached.As, File: filepath.Join(f.pool.dir, d.Hydration.Final),
		Format: d.Format, Size: d.Size}
	only := hypervisor.Settlement{Targets: []hypervisor.HydrationTarget{t}, StayPaused: true}
	if m.State == hypervisor.Off {
		only.Off = true
		return f.copy(ctx, d, func() error { return able.FinishHydration(ctx, m, only) })
	}
	now, err := able.Hydration(ctx, m, t)
	switch {
	case err != nil:
		return err
	case now.Local:
		return f.switched(ctx, h, m, nil)
	case now.Ready:
		return f.switched(ctx, h, m, func() error { return able.FinishHydration(ctx, m, only) })
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

// switched moves the machine to the copy, records it, and only then lets the machine go on:
// whichever of both images is found after a crash in between holds all that was written.
func (f *filling) switched(ctx context.Context, h Host, m hypervisor.Machine, move func() error) error {
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
	if move != nil {
		if err := move(); err != nil {
			if m.State == hypervisor.Running && !errors.Is(err, hypervisor.ErrStandsStill) {
				err = errors.Join(err, h.Resume(context.WithoutCancel(ctx), m))
			}
			return err
		}
	}
	if err := f.pool.step("hydrate: moved"); err != nil {
		return err
	}
	err = f.pool.localize(d)
	if m.State == hypervisor.Running || move == nil {
		err = errors.Join(err, h.Resume(context.WithoutCancel(ctx), m))
	}
	return err
}

// settle takes note that a machine runs on the image that was to be, which a process that moved it
// there did not live to record.
func (p *Pool) settle(ctx context.Context, h Host, m hypervisor.Machine, d *Disk) error {
	if d.Hydration == nil {
		return nil
	}
	as, _, err := h.Attached(ctx, m, filepath.Join(p.dir, d.Hydration.Final))
	if err != nil || as == "" {
		return err
	}
	return p.localize(d)
}

// makeReachable lets a machine of another user connect to the export.
func (h *Hydration) makeReachable(ctx context.Context, host Host) error {
	o, ok := host.(interface {
		MachineOwner(ctx context.Context) (uid, gid int, err error)
	})
	if !ok {
		return nil
	}
	uid, gid, err := o.MachineOwner(ctx)
	if err != nil || uid < 0 {
		return err
	}
	return os.Chown(h.Socket, uid, gid)
}
