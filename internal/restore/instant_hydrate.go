package restore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

const (
	progressEvery = 3 * time.Second // between two notes of the progress
	// closeEnough is how much may be left to copy, in bytes, when the machine is stopped for the
	// move; patience is for one that writes so much that it never comes to that.
	closeEnough = 16 << 20
	patience    = 20 * time.Second
)

// hydration is the loop that copies the disks of a machine.
type hydration struct {
	*instant
	export *instantExport
	rates  map[string]int64 // that the copies were told to keep to
	ready  time.Time        // since when all copies are
}

// hydrate returns when all disks can be moved to, when they are local, or when the machine is to be
// abandoned. Trouble with the host is waited out: the machine needs the export.
func (i *instant) hydrate(ctx context.Context, export *instantExport) error {
	if err := i.startIfDue(ctx); err != nil {
		return err
	}
	i.opts.Started(i.result())
	h := &hydration{instant: i, export: export, rates: map[string]int64{}}
	tick := time.NewTicker(i.opts.Tick)
	defer tick.Stop()
	for {
		before := i.st.Step
		err := h.look(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if i.st.Step != before {
			return err
		}
		i.trouble(err)
		if err := h.noteProgress(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-export.ended:
			return export.over()
		case <-tick.C:
		}
	}
}

// startIfDue starts a machine that was asked to run and does not, unless it was seen to end by
// itself.
func (i *instant) startIfDue(ctx context.Context) error {
	if !i.st.Start || i.st.Ended {
		return nil
	}
	_, on, err := i.find(ctx)
	if err != nil {
		return err
	}
	if !on {
		if err := i.standsHere(ctx); err != nil {
			return i.stayOff(err)
		}
		if err := i.host.Start(ctx, i.machine(), i.dir); err != nil {
			if i.begun && !i.st.Started {
				return i.neverStarted(err)
			}
			return err
		}
	}
	if i.st.Started {
		return nil
	}
	i.st.Started = true
	return i.saveState()
}

// stayOff leaves a machine off that would not run. Its disks are copied all the same.
func (i *instant) stayOff(why error) error {
	i.opts.Log("%v; it stays off, and its disks are copied", why)
	i.st.Ended = true
	return i.saveState()
}

// neverStarted takes everything back: the machine has not written anything yet.
func (i *instant) neverStarted(cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	if err := i.enter(InstantAbandoning); err != nil {
		return errors.Join(cause, err)
	}
	if err := i.removeAll(ctx); err != nil {
		return errors.Join(cause, err)
	}
	return errors.Join(cause, i.forget())
}

// find returns the machine and whether it is on.
func (i *instant) find(ctx context.Context) (m hypervisor.Machine, on bool, err error) {
	machines, err := i.host.Machines(ctx)
	if nobodyThere(err) && i.st.Point.Definition.Kind == point.ForQEMU {
		return i.machine(), false, nil
	}
	if err != nil {
		return m, false, err
	}
	for _, m := range machines {
		if m.Name == i.name {
			return m, m.State == hypervisor.Running || m.State == hypervisor.Paused ||
				m.State == hypervisor.Crashed && i.st.Point.Definition.Kind == point.ForQEMU, nil
		}
	}
	return m, false, fmt.Errorf("%w: %s", hypervisor.ErrNoMachine, i.name)
}

// look does what is to be done now.
func (h *hydration) look(ctx context.Context) error {
	wish, err := h.wish()
	if err != nil {
		return err
	}
	if wish.Abandon {
		return h.enter(InstantAbandoning)
	}
	_, on, err := h.find(ctx)
	if err != nil {
		return err
	}
	if !on {
		return h.offline(ctx)
	}
	h.st.Ended = false
	if _, err := h.host.Continue(ctx, h.machine()); err != nil {
		return err
	}
	all, left := true, int64(0)
	var failed error
	for n := range h.st.Disks {
		now, err := h.lookAtDisk(ctx, &h.st.Disks[n], wish)
		failed = errors.Join(failed, err)
		all = all && err == nil && (now.Ready || now.Local)
		left += now.Total - now.Done
	}
	if failed != nil || !all || wish.Paused {
		h.ready = time.Time{}
		return failed
	}
	return h.allReady(ctx, left)
}

// lookAtDisk sees to it that a disk is being copied.
func (h *hydration) lookAtDisk(ctx context.Context, d *InstantDisk, wish InstantWish) (hypervisor.Hydration, error) {
	rate := wish.Rate
	if wish.Paused {
		rate = hypervisor.StillRate
	}
	now, err := h.host.Hydration(ctx, h.machine(), d.HydrationTarget)
	switch {
	case err != nil:
		return now, err
	case now.Local:
		d.Local = true
		return now, nil
	case !now.Running:
		if err := makeTarget(d.HydrationTarget); err != nil {
			return now, fmt.Errorf("make the image for disk %s: %w", d.Disk, err)
		}
		h.rates[d.Disk] = rate
		return now, h.host.Hydrate(ctx, h.machine(), d.HydrationTarget, rate)
	case now.Err != nil: // it goes on, or meets the error again
		return now, errors.Join(fmt.Errorf("disk %s: %w", d.Disk, now.Err),
			h.host.Hydrate(ctx, h.machine(), d.HydrationTarget, rate))
	}
	if told, ok := h.rates[d.Disk]; !ok || told != rate {
		if err := h.host.HydrationRate(ctx, h.machine(), d.HydrationTarget, rate); err != nil {
			return now, err
		}
		h.rates[d.Disk] = rate
	}
	if now.Total > 0 {
		d.Done, d.Total = now.Done, now.Total
	}
	h.opts.Progress("copy "+d.Disk, now.Done, now.Total)
	return now, nil
}

// allReady goes on to the move once little is left to copy, for the machine stands still while that
// is done.
func (h *hydration) allReady(ctx context.Context, left int64) error {
	now := h.opts.Now()
	if h.ready.IsZero() {
		h.ready = now
		for _, d := range h.st.Disks {
			h.rates[d.Disk] = 0
			if err := h.host.HydrationRate(ctx, h.machine(), d.HydrationTarget, 0); err != nil {
				return err
			}
		}
	}
	if left > closeEnough && now.Sub(h.ready) < patience {
		return nil
	}
	return h.enter(InstantSwitching)
}

func (h *hydration) noteProgress() error {
	now := h.opts.Now()
	if now.Sub(h.progress) < progressEvery {
		return nil
	}
	h.progress = now
	return h.saveState()
}
