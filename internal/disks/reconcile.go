package disks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// Status is a disk with what looking at its image and its machine says.
type Status struct {
	*Disk
	State   string `json:"state"`             // "ready", "attached", "hydrating", or what is being done: "attach in progress", …
	Problem string `json:"problem,omitempty"` // what does not fit together; "" if nothing
	Fix     string `json:"fix,omitempty"`     // what to do about it
}

// Inspect compares the record of a disk with its image and its machine. It changes nothing.
func (p *Pool) Inspect(ctx context.Context, d *Disk) Status {
	s := Status{Disk: d, State: "ready"}
	reconcile := "holdfast disk reconcile " + d.Name
	switch {
	case d.Doing != nil && p.held(d.Name, workLock):
		s.State = d.Doing.What + " in progress"
		return s
	case d.Doing != nil:
		s.State = d.Doing.What + " unfinished"
		s.Problem, s.Fix = fmt.Sprintf("%s was begun on %s and its process is gone", d.Doing.What,
			d.Doing.Since.Format("2006-01-02 15:04:05")), reconcile
		return s
	case d.Hydration != nil:
		s.State = fmt.Sprintf("hydrating %d%%", d.Hydration.Percent())
		if !p.held(d.Name, hydrateLock) {
			s.Problem, s.Fix = "it is not filled and nobody serves the snapshot it stands on", "holdfast disk hydrate "+
				d.Name
		} else if d.Hydration.Waits != "" {
			s.State += ", waits for room"
			s.Problem, s.Fix = "it can be used, but is not filled further: "+d.Hydration.Waits,
				"free space in the pool: it goes on by itself"
		}
	case d.Attached != nil:
		s.State = "attached"
		if d.Attached.Held != nil {
			s.Problem = "a command that is gone stopped machine " + d.Attached.VM + ", which may stand still"
			s.Fix = reconcile
		}
	}
	if s.Problem == "" {
		s.Problem, s.Fix = p.compare(ctx, d, reconcile)
	}
	return s
}

// compare says what does not fit together, and what to do.
func (p *Pool) compare(ctx context.Context, d *Disk, reconcile string) (problem, fix string) {
	size, err := p.imageSize(ctx, d)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "its image is missing: " + p.Path(d), "bring the image back, or forget the disk: holdfast disk delete " +
			d.Name
	case err != nil:
		return fmt.Sprintf("its image cannot be read: %v", err), "check the image: qemu-img check " + p.Path(d)
	case size != d.Size:
		return fmt.Sprintf("its image has %d bytes, the record says %d", size, d.Size), reconcile
	}
	if d.Attached == nil {
		if err := p.unused(ctx, d); errors.Is(err, diskimage.ErrInUse) {
			return "a process uses its image although no machine is known to have it", "find out who: fuser -v " +
				p.Path(d)
		}
		return "", ""
	}
	h, m, err := p.machineOf(ctx, d.Attached)
	if errors.Is(err, hypervisor.ErrNoMachine) {
		return fmt.Sprintf("machine %s, which had it as %s, is gone", d.Attached.VM, d.Attached.As), reconcile
	}
	if err != nil {
		return "whether its machine has it is not known: " + err.Error(), "see that the host answers"
	}
	as, _, err := h.Attached(ctx, m, p.Path(d))
	switch {
	case err != nil:
		return "whether its machine has it is not known: " + err.Error(), "see that the host answers"
	case as == "":
		return fmt.Sprintf("machine %s has it no more", m.Name), reconcile
	case as != d.Attached.As:
		return fmt.Sprintf("machine %s has it as %s, not as %s", m.Name, as, d.Attached.As), reconcile
	}
	return "", ""
}

// Reconcile finishes or undoes what was begun with a disk and not finished, and makes its record
// say what image and machine show. It returns what it did, in words; nothing if nothing was to be
// done.
func (p *Pool) Reconcile(ctx context.Context, name string) ([]string, error) {
	if _, err := p.Disk(name); err != nil {
		return nil, err
	}
	unlock, err := p.lock(name, workLock)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d, err := p.durableDisk(name)
	if err != nil {
		return nil, err
	}
	did, err := p.reconcile(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("reconcile disk %s: %w", name, err)
	}
	if did == "" {
		return nil, nil
	}
	return []string{did}, nil
}

func (p *Pool) reconcile(ctx context.Context, d *Disk) (string, error) {
	if d.Doing == nil {
		return p.believe(ctx, d)
	}
	switch d.Doing.What {
	case "create":
		return p.reconcileCreate(ctx, d)
	case "attach":
		return p.reconcileAttach(ctx, d)
	case "detach":
		vm := d.Attached.name()
		return "finished detaching it from " + vm, p.detach(ctx, d)
	case "resize":
		size := d.Doing.Size
		return fmt.Sprintf("finished making it %d bytes large", size), p.resize(ctx, d)
	case "delete":
		return "finished deleting it", errors.Join(p.undoCreate(d), p.opts.Changed(ctx))
	}
	return "", fmt.Errorf("its record says that %q was begun, which this program does not know", d.Doing.What)
}

func (a *Attachment) name() string {
	if a == nil {
		return "its machine"
	}
	return a.VM
}

// reconcileCreate finishes a disk whose image is complete, which is when it has its name and, as an
// overlay, its header, and removes any other.
func (p *Pool) reconcileCreate(ctx context.Context, d *Disk) (string, error) {
	size, err := p.imageSize(ctx, d)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EIO) {
		return "", err // it may be complete
	}
	if err != nil || size != d.Size {
		return "removed what there was of a disk that was never complete", errors.Join(p.undoCreate(d),
			p.opts.Changed(ctx))
	}
	if err := errors.Join(syncFile(p.Path(d)), p.fs.SyncDir(p.dir)); err != nil {
		return "", err
	}
	d.Doing = nil
	return "finished creating it", errors.Join(p.save(d), p.opts.Changed(ctx))
}

func (p *Pool) reconcileAttach(ctx context.Context, d *Disk) (string, error) {
	to := d.Doing.To
	as, err := p.attachedAs(ctx, d, to)
	if err != nil {
		return "", err
	}
	d.Doing = nil
	if as == "" {
		return "machine " + to.VM + " has not got it: it is detached", p.save(d)
	}
	to.As = as
	d.Attached = to
	return fmt.Sprintf("machine %s has it as %s: it is attached", to.VM, as), p.save(d)
}

// attachedAs returns the name under which a machine has the disk, "" if it does not have it.
func (p *Pool) attachedAs(ctx context.Context, d *Disk, to *Attachment) (string, error) {
	h, m, err := p.machineOf(ctx, to)
	if errors.Is(err, hypervisor.ErrNoMachine) {
		if err := p.unused(ctx, d); errors.Is(err, diskimage.ErrInUse) {
			return "", err
		}
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if err := p.settle(ctx, h, m, d); err != nil {
		return "", err
	}
	as, _, err := h.Attached(ctx, m, p.Path(d))
	return as, err
}

// believe makes the record say what image and machine show.
func (p *Pool) believe(ctx context.Context, d *Disk) (string, error) {
	did := ""
	if d.Attached != nil {
		held := d.Attached.Held != nil
		as, err := p.attachedAs(ctx, d, d.Attached)
		if held && d.Attached.Held == nil {
			did = "let machine " + d.Attached.VM + " go on, which a command that is gone had stopped"
		}
		switch {
		case err != nil:
			return "", err
		case as == "":
			did = "machine " + d.Attached.VM + " has it no more: it is detached"
			d.Attached = nil
		case as != d.Attached.As:
			did = fmt.Sprintf("machine %s has it as %s", d.Attached.VM, as)
			d.Attached.As = as
		}
	}
	size, err := p.imageSize(ctx, d)
	if err != nil {
		return "", err
	}
	if left, err := p.dropOverlay(d); err != nil {
		return "", err
	} else if left && did == "" {
		did = "removed what it stood on until it was filled"
	}
	if size != d.Size {
		did = fmt.Sprintf("its image has %d bytes, and now the record too", size)
		d.Size = size
	}
	if did == "" {
		return "", nil
	}
	return did, p.save(d)
}
