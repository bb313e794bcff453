package libvirt

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
)

const (
	pivotPause = 50 * time.Millisecond // between two looks at a copy that takes the place of its disk
	// that a machine may stand still for its move: guests wait half a minute and more for a disk
	moveTime   = 40 * time.Second
	settleTime = 30 * time.Second // that libvirtd may take for what follows
)

var errNotReady = errors.New("its copy is not ready")

// FinishHydration implements [hypervisor.Hydrator].
func (h *Host) FinishHydration(ctx context.Context, m hypervisor.Machine, s hypervisor.Settlement) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := h.finishHydration(ctx, m, s); err != nil {
		return fmt.Errorf("move %s to its local disks: %w", m.Name, err)
	}
	return nil
}

func (h *Host) finishHydration(ctx context.Context, m hypervisor.Machine, s hypervisor.Settlement) error {
	l, err := h.look(ctx, m)
	switch {
	case err != nil:
		return err
	case l.off() && s.Off:
		return l.settle(ctx, s.Targets)
	case l.off():
		return hypervisor.ErrOff
	case s.Off:
		return errors.New("the machine runs")
	}
	ours, local, failed := h.pivotStill(ctx, m, l, s)
	// whatever has taken too long, it is to go on
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	if err := l.settle(ctx, local); err != nil {
		failed = errors.Join(failed, standsStill(err))
	}
	if ours && !s.StayPaused && !errors.Is(failed, hypervisor.ErrStandsStill) {
		failed = errors.Join(failed, standsStill(l.goOn(ctx)))
	}
	return failed
}

func standsStill(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", hypervisor.ErrStandsStill, err)
}

// goOn lets a machine run that was suspended. One that ended meanwhile needs nothing.
func (l look) goOn(ctx context.Context) error {
	err := l.c.DomainResume(ctx, l.dom)
	if err == nil {
		return nil
	}
	if state, stateErr := l.c.DomainState(ctx, l.dom); stateErr == nil && state.State != rpc.StatePaused {
		return nil
	}
	return err
}

// hold has the machine stand still and reports whether that is because of us, this attempt or the
// one before.
func (l look) hold(ctx context.Context, s hypervisor.Settlement) (ours bool, err error) {
	if l.state.State == rpc.StatePaused {
		return l.heldBy(s.Held), nil
	}
	mark := Mark(l.dom)
	if err := s.Noted(mark); err != nil {
		return false, err
	}
	if err := l.c.DomainSuspend(ctx, l.dom); err != nil {
		return true, standsStill(err)
	}
	return true, s.Noted(mark.Standing())
}

// heldBy reports whether a machine that is paused may be let go on: what was noted has paused it,
// or it waits for a disk, which it gets.
func (l look) heldBy(held *pause.Mark) bool {
	switch l.state.Reason {
	case pausedIOError:
		return true
	case rpc.PausedUser:
		return held != nil && held.Holds(Mark(l.dom)) == nil
	}
	return false
}

// GoOn implements [hypervisor.Hydrator].
func (h *Host) GoOn(ctx context.Context, m hypervisor.Machine, held pause.Mark) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l, err := h.look(ctx, m)
	if err == nil && l.state.State == rpc.StatePaused && l.heldBy(&held) {
		err = l.goOn(ctx)
	}
	if err != nil {
		return fmt.Errorf("let %s go on: %w", m.Name, err)
	}
	return nil
}

// pivotStill suspends the machine and has its copies, once nothing is left to copy, take the place
// of the overlays. It returns whether the machine stands still because of us, and the disks that
// are on their targets then.
func (h *Host) pivotStill(ctx context.Context, m hypervisor.Machine, l look, s hypervisor.Settlement) (ours bool,
	local []hypervisor.HydrationTarget, failed error) {
	ctx, cancel := context.WithTimeout(ctx, moveTime)
	defer cancel()
	if l.state.State != rpc.StatePaused {
		if err := h.allReady(ctx, m, s.Targets); err != nil {
			return false, nil, err
		}
	}
	ours, err := l.hold(ctx, s)
	if err != nil {
		return ours, nil, err
	}
	drained := hypervisor.Drain(ctx, h, m, s.Targets)
	for _, t := range s.Targets {
		done, err := h.pivot(ctx, m, t, drained == nil)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("disk %s: %w", t.Disk, err))
		}
		if done {
			local = append(local, t)
		}
	}
	return ours, local, errors.Join(drained, failed)
}

// allReady returns an error if a copy has failed: a machine is not stopped for it, which QEMU can
// take badly (see errFilter).
func (h *Host) allReady(ctx context.Context, m hypervisor.Machine, targets []hypervisor.HydrationTarget) error {
	for _, t := range targets {
		now, err := h.Hydration(ctx, m, t)
		if err == nil && !now.Local && !now.Ready {
			err = fmt.Errorf("disk %s: %w", t.Disk, errNotReady)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pivot has a copy take the place of its disk if tell is set or it was told before, unless it has,
// and reports whether the machine is on the target.
func (h *Host) pivot(ctx context.Context, m hypervisor.Machine, t hypervisor.HydrationTarget, tell bool) (bool, error) {
	l, err := h.look(ctx, m)
	if err != nil {
		return false, err
	}
	el, local, err := l.disk(t)
	if err != nil || local || l.off() || !tell && !pivots(el) {
		return local, err
	}
	now, err := l.hydration(ctx, t)
	if err != nil || !now.Ready {
		return false, errors.Join(err, errNotReady)
	}
	if !pivots(el) {
		err = l.c.BlockJobAbort(ctx, l.dom, t.Disk, rpc.BlockJobAbortPivot)
		if err != nil && ctx.Err() == nil {
			done, lookErr := h.pivoted(ctx, m, t)
			if done {
				return true, nil
			}
			return false, errors.Join(err, lookErr)
		}
	}
	return h.pivoted(ctx, m, t)
}

// pivoted waits until a copy has taken the place of its disk, or has failed, and reports which. As
// long as that is not known the machine cannot go on: what it wrote would be in the image that the
// definition does not name.
func (h *Host) pivoted(ctx context.Context, m hypervisor.Machine, t hypervisor.HydrationTarget) (bool, error) {
	for {
		l, err := h.look(ctx, m)
		if err != nil {
			return false, standsStill(err)
		}
		el, local, err := l.disk(t)
		switch {
		case err != nil || local:
			return local, err
		case !pivots(el):
			return false, errors.New("its copy could not take the disk's place")
		}
		select {
		case <-ctx.Done():
			return false, standsStill(fmt.Errorf("its copy does not end: %w", ctx.Err()))
		case <-time.After(pivotPause):
		}
	}
}

// settle changes the definition of the next start.
func (l look) settle(ctx context.Context, targets []hypervisor.HydrationTarget) error {
	dom, err := l.inactive(ctx)
	if err != nil {
		return err
	}
	changed, err := settleDisks(dom, targets)
	if err != nil || !changed {
		return err
	}
	doc := etree.NewDocument()
	doc.SetRoot(dom)
	xml, err := doc.WriteToString()
	if err != nil {
		return err
	}
	_, err = l.c.DomainDefine(ctx, xml, 0)
	return err
}

func (l look) inactive(ctx context.Context) (*etree.Element, error) {
	text, err := l.c.DomainXML(ctx, l.dom, rpc.XMLInactive|rpc.XMLSecure)
	if err != nil {
		return nil, err
	}
	return parse(text)
}

// Settled implements [hypervisor.Hydrator].
func (h *Host) Settled(ctx context.Context, m hypervisor.Machine, s hypervisor.Settlement) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l, err := h.look(ctx, m)
	var dom *etree.Element
	if err == nil {
		dom, err = l.inactive(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("look at the definition of %s: %w", m.Name, err)
	}
	out := map[string]bool{}
	for _, t := range s.Targets {
		el := diskElement(dom, t.Disk)
		out[t.Disk] = el != nil && sourceOf(el) == t.File
	}
	return out, nil
}
