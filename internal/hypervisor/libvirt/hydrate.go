package libvirt

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

var (
	_ hypervisor.Hydrator = (*Host)(nil)
	_ hypervisor.Remover  = (*Host)(nil)
)

const (
	pausedIOError = 5                        // libvirt's reason of a paused domain
	notRoot       = "Need a root block node" // what QEMU says of a node that has another above it
)

// errFilter is what becomes of a disk whose copy failed just while QEMU was stopping the machine:
// QEMU loses count of the references to the copy's filter (bdrv_next, seen with 7.2.22).
var errFilter = errors.New("QEMU has kept what a copy that failed had put above the disk, and copies it no more " +
	"before the machine has been shut down; that is when it is copied")

// look is what there is to know of a machine whose disks are copied.
type look struct {
	c     *rpc.Client
	dom   rpc.Domain
	state rpc.State
	live  *etree.Element // the definition in force; that of the next start if the machine is off
}

func (h *Host) look(ctx context.Context, m hypervisor.Machine) (look, error) {
	c, dom, err := h.Domain(ctx, m.Name)
	if err != nil {
		return look{}, err
	}
	if uuid := formatUUID(dom.UUID); m.UUID != "" && uuid != m.UUID {
		return look{}, fmt.Errorf("%w: %s at %s has UUID %s, not %s", hypervisor.ErrNoMachine, m.Name, h.uri, uuid,
			m.UUID)
	}
	l := look{c: c, dom: dom}
	if l.state, err = c.DomainState(ctx, dom); err != nil {
		return l, err
	}
	text, err := c.DomainXML(ctx, dom, 0)
	if err == nil {
		l.live, err = parse(text)
	}
	return l, err
}

func (l look) off() bool { return l.state.State == rpc.StateOff || l.state.State == rpc.StateCrashed }

// disk returns the element of a disk that is on the overlay of t, or on t itself.
func (l look) disk(t hypervisor.HydrationTarget) (el *etree.Element, local bool, err error) {
	el = diskElement(l.live, t.Disk)
	if el == nil {
		return nil, false, errors.New("the machine has no such disk any more")
	}
	switch file := sourceOf(el); file {
	case t.File:
		return el, true, nil
	case t.Overlay():
		return el, false, nil
	default:
		return nil, false, fmt.Errorf("the disk is %s", file)
	}
}

// Hydrate implements [hypervisor.Hydrator]. A copy under libvirt ends when it meets an error; it is
// begun anew then.
func (h *Host) Hydrate(ctx context.Context, m hypervisor.Machine, t hypervisor.HydrationTarget, rate int64) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := h.hydrate(ctx, m, t, rate); err != nil {
		return fmt.Errorf("copy disk %s of %s to %s: %w", t.Disk, m.Name, t.File, err)
	}
	return nil
}

func (h *Host) hydrate(ctx context.Context, m hypervisor.Machine, t hypervisor.HydrationTarget, rate int64) error {
	l, err := h.look(ctx, m)
	if err != nil {
		return err
	}
	if l.off() {
		return errors.New("the machine is off")
	}
	el, local, err := l.disk(t)
	if err != nil || local {
		return err
	}
	if _, found, err := l.c.BlockJobInfo(ctx, l.dom, t.Disk); err != nil || found || copies(el) {
		return err
	}
	xml, err := targetXML(el, t)
	if err != nil {
		return err
	}
	return whyNot(l.c.BlockCopy(ctx, l.dom, t.Disk, xml, uint64(rate),
		rpc.BlockCopyReuseExternal|rpc.BlockCopyTransientJob))
}

// whyNot says what an error of a copy that does not begin means.
func whyNot(err error) error {
	if e := (*rpc.Error)(nil); errors.As(err, &e) && strings.Contains(e.Message, notRoot) {
		return fmt.Errorf("%w (%w)", errFilter, err)
	}
	return err
}

// targetXML describes the target with the disk's own settings.
func targetXML(el *etree.Element, t hypervisor.HydrationTarget) (string, error) {
	disk := etree.NewElement("disk")
	disk.CreateAttr("type", "file")
	driver := disk.CreateElement("driver")
	driver.CreateAttr("name", "qemu")
	driver.CreateAttr("type", t.Format)
	for _, key := range []string{"cache", "io", "detect_zeroes"} {
		if v := attr(el, "driver", key); v != "" {
			driver.CreateAttr(key, v)
		}
	}
	driver.CreateAttr("discard", "unmap")
	disk.CreateElement("source").CreateAttr("file", t.File)
	disk.CreateElement("backingStore")
	doc := etree.NewDocument()
	doc.SetRoot(disk)
	return doc.WriteToString()
}

// Hydration implements [hypervisor.Hydrator].
func (h *Host) Hydration(ctx context.Context, m hypervisor.Machine, t hypervisor.HydrationTarget) (hypervisor.Hydration,
	error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l, err := h.look(ctx, m)
	var out hypervisor.Hydration
	if err == nil {
		out, err = l.hydration(ctx, t)
	}
	if err != nil {
		return out, fmt.Errorf("look at the copy of disk %s of %s: %w", t.Disk, m.Name, err)
	}
	return out, nil
}

func (l look) hydration(ctx context.Context, t hypervisor.HydrationTarget) (hypervisor.Hydration, error) {
	el, local, err := l.disk(t)
	if err != nil || local || l.off() {
		return hypervisor.Hydration{Local: local && !l.off()}, err
	}
	job, found, err := l.c.BlockJobInfo(ctx, l.dom, t.Disk)
	if err != nil || !found && !copies(el) {
		return hypervisor.Hydration{}, err
	}
	return hypervisor.Hydration{
		Running: true, Ready: attr(el, "mirror", "ready") == "yes" || pivots(el), Done: int64(job.Cur),
		Total: int64(job.End),
	}, nil
}

// copies reports whether libvirt knows of a copy of a disk. QEMU's job ends before libvirt has seen
// what came of it: until then the target may be the disk.
func copies(el *etree.Element) bool { return el.SelectElement("mirror") != nil }

// pivots reports whether the copy of a disk was told to take its place.
func pivots(el *etree.Element) bool { return attr(el, "mirror", "ready") == "pivot" }

// HydrationRate implements [hypervisor.Hydrator].
func (h *Host) HydrationRate(ctx context.Context, m hypervisor.Machine, t hypervisor.HydrationTarget,
	rate int64) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l, err := h.look(ctx, m)
	if err == nil && !l.off() {
		var found bool
		if _, found, err = l.c.BlockJobInfo(ctx, l.dom, t.Disk); err == nil && found {
			err = l.c.BlockJobSetSpeed(ctx, l.dom, t.Disk, uint64(rate))
		}
	}
	if err != nil {
		return fmt.Errorf("limit the copy of disk %s of %s: %w", t.Disk, m.Name, err)
	}
	return nil
}

// Continue implements [hypervisor.Hydrator].
func (h *Host) Continue(ctx context.Context, m hypervisor.Machine) (paused bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l, err := h.look(ctx, m)
	waits := l.state == rpc.State{State: rpc.StatePaused, Reason: pausedIOError}
	if err == nil && waits {
		err = l.c.DomainResume(ctx, l.dom)
	}
	if err != nil {
		return false, fmt.Errorf("let %s continue: %w", m.Name, err)
	}
	return l.state.State == rpc.StatePaused && !waits, nil
}

// Start implements [hypervisor.Hydrator].
func (h *Host) Start(ctx context.Context, m hypervisor.Machine, _ string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l, err := h.look(ctx, m)
	if err == nil && l.off() {
		_, err = l.c.DomainCreate(ctx, l.dom, 0)
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", m.Name, err)
	}
	return nil
}

// Remove implements [hypervisor.Remover].
func (h *Host) Remove(ctx context.Context, m hypervisor.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l, err := h.look(ctx, m)
	if err == nil && !l.off() {
		err = l.c.DomainDestroy(ctx, l.dom)
	}
	if err == nil {
		err = l.c.DomainUndefine(ctx, l.dom, rpc.UndefineManagedSave|rpc.UndefineSnapshots|rpc.UndefineCheckpoints|
			rpc.UndefineKeepNVRAM)
	}
	if err != nil {
		return fmt.Errorf("remove machine %s: %w", m.Name, err)
	}
	return nil
}
