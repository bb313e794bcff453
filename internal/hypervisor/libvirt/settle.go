package libvirt

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// pivotPause is how long to wait between two looks at a copy that takes the place of its disk.
const pivotPause = 5 * time.Millisecond

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
	if err != nil {
		return err
	}
	if l.off() {
		return l.settle(ctx, s.Targets)
	}
	if l.state.State != rpc.StatePaused {
		if err := l.c.DomainSuspend(ctx, l.dom); err != nil {
			return err
		}
	}
	local, failed := h.pivotAll(ctx, m, s.Targets)
	if err := l.settle(ctx, local); err != nil {
		return errors.Join(failed, err) // it stays stopped: what the guest wrote now would be lost if QEMU died
	}
	if s.StayPaused {
		return failed
	}
	return errors.Join(failed, l.c.DomainResume(ctx, l.dom))
}

// pivotAll has all copies take the place of the overlays and returns those that did.
func (h *Host) pivotAll(ctx context.Context, m hypervisor.Machine, targets []hypervisor.HydrationTarget) (local []hypervisor.HydrationTarget, failed error) {
	for _, t := range targets {
		done, err := h.pivot(ctx, m, t)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("disk %s: %w", t.Disk, err))
		}
		if done {
			local = append(local, t)
		}
	}
	return local, failed
}

// pivot has a copy take the place of its disk, unless it has, and reports whether the machine is on the target.
func (h *Host) pivot(ctx context.Context, m hypervisor.Machine, t hypervisor.HydrationTarget) (bool, error) {
	l, err := h.look(ctx, m)
	if err != nil {
		return false, err
	}
	now, err := l.hydration(ctx, t)
	if err != nil || now.Local {
		return now.Local, err
	}
	if !now.Ready {
		return false, errors.New("its copy is not ready")
	}
	pivotErr := l.c.BlockJobAbort(ctx, l.dom, t.Disk, rpc.BlockJobAbortPivot)
	for {
		if l, err = h.look(ctx, m); err != nil {
			return false, errors.Join(pivotErr, err)
		}
		_, local, err := l.disk(t)
		if err != nil || local || pivotErr != nil {
			return local, errors.Join(pivotErr, err)
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
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
