package disks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

const (
	hydratePause   = 250 * time.Millisecond // between two looks at a copy, or at what others do to the disk
	saveEvery      = 2 * time.Second        // how often the record is told how far it is
	reconnectDelay = 60                     // seconds that a machine waits for an export that is gone
)

// errAgain says that the disk was changed by somebody, or is being: look again.
var errAgain = errors.New("look again")

// HydrateRequest says how a disk is filled.
type HydrateRequest struct {
	Content Content
	// Serve serves the export that the disk's overlay stands on until stop is called.
	Serve    func(ctx context.Context, h *Hydration) (stop func() error, err error)
	Ready    func(d *Disk)           // told once the disk can be used; nil discards
	Progress func(done, total int64) // bytes; nil discards
}

// CreateOverlay makes a disk that stands on an export of its content: it can be used as soon as [Pool.Hydrate] serves that, and depends on nothing once
// Hydrate has returned nil.
func (p *Pool) CreateOverlay(ctx context.Context, req CreateRequest) (*Disk, error) {
	if err := req.complete(); err != nil {
		return nil, fmt.Errorf("create disk %q: %w", req.Name, err)
	}
	data, err := req.Content.Extents(ctx)
	if err != nil {
		return nil, fmt.Errorf("create disk %s: %w", req.Name, err)
	}
	d, unlock, err := p.begin(req)
	if err != nil {
		return nil, fmt.Errorf("create disk %s: %w", req.Name, err)
	}
	defer unlock()
	d.Hydration = &Hydration{Export: d.Name, Socket: filepath.Join(p.dir, "."+d.ID[:8]+".sock"), Final: d.File, Total: data.Bytes()}
	d.File += hypervisor.OverlaySuffix
	if err = errors.Join(p.save(d), p.step("create: recorded")); err == nil {
		err = p.makeOverlay(d)
	}
	if err == nil {
		err = p.step("create: written")
	}
	if err == nil {
		d.Doing = nil
		err = p.save(d)
	}
	if err != nil {
		if !errors.Is(err, errCrash) {
			err = errors.Join(err, p.undoCreate(d))
		}
		return nil, fmt.Errorf("create disk %s: %w", req.Name, err)
	}
	return d, nil
}

func (p *Pool) makeOverlay(d *Disk) error {
	type address struct {
		Type string `json:"type"`
		Path string `json:"path"`
	}
	type nbd struct {
		Driver         string  `json:"driver"`
		Export         string  `json:"export"`
		Server         address `json:"server"`
		ReconnectDelay int     `json:"reconnect-delay"`
		OpenTimeout    int     `json:"open-timeout"`
	}
	backing, err := json.Marshal(struct {
		Driver string `json:"driver"`
		File   nbd    `json:"file"`
	}{"raw", nbd{"nbd", d.Hydration.Export, address{"unix", d.Hydration.Socket}, reconnectDelay, reconnectDelay}})
	if err != nil {
		return err
	}
	err = qcow2.Create(p.Path(d), d.Size, qcow2.CreateOptions{BackingFile: "json:" + string(backing), BackingFormat: "raw"})
	if err != nil {
		return err
	}
	return p.fs.SyncDir(p.dir)
}

// Hydrate serves what a disk stands on and copies it to the pool, until the disk depends on nothing. Meanwhile it can be used, attached and detached by other
// processes. A disk that is attached to a running machine is copied by its hypervisor, any other by us. It may be called again after an error or
// a crash, and begins the copy anew. A disk that depends on nothing is left alone.
func (p *Pool) Hydrate(ctx context.Context, name string, req HydrateRequest) (*Disk, error) {
	d, err := p.Disk(name)
	if err != nil || d.Hydration == nil {
		return d, err
	}
	unlock, err := p.lock(name, hydrateLock)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if req.Progress == nil {
		req.Progress = func(int64, int64) {}
	}
	stop, err := req.Serve(ctx, d.Hydration)
	if err != nil {
		return nil, fmt.Errorf("serve what disk %s stands on: %w", name, err)
	}
	f := &filling{pool: p, req: req, name: name}
	err = f.run(ctx)
	if err = errors.Join(err, stop()); err != nil {
		return nil, fmt.Errorf("fill disk %s: %w", name, err)
	}
	d, err = p.Disk(name)
	return d, errors.Join(err, p.opts.Changed(ctx))
}

// filling is one Hydrate.
type filling struct {
	pool *Pool
	req  HydrateRequest
	name string

	telling sync.Mutex // guards saved
	saved   time.Time  // when the record was last told how far it is
}

func (f *filling) run(ctx context.Context) error {
	for told := false; ; told = true {
		d, err := f.pool.Disk(f.name)
		if err != nil || d.Hydration == nil {
			return err
		}
		if !told && f.req.Ready != nil {
			f.req.Ready(d)
		}
		switch {
		case d.Doing != nil && f.pool.held(f.name, workLock):
			err = errAgain
		case d.Doing != nil:
			return fmt.Errorf("%w: %s", ErrUnfinished, d.Doing.What)
		case d.Attached != nil:
			err = f.attached(ctx, d)
		default:
			err = f.copy(ctx, d, nil)
		}
		if err != nil && !errors.Is(err, errAgain) && !errors.Is(err, ErrBusy) {
			return err
		}
		if err == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(hydratePause):
		}
	}
}

// tell says how far it is, to the caller and now and then to the record. Several goroutines may.
func (f *filling) tell(done, total int64) {
	f.req.Progress(done, total)
	if !f.telling.TryLock() {
		return // another is at it
	}
	defer f.telling.Unlock()
	if time.Since(f.saved) < saveEvery {
		return
	}
	f.saved = time.Now()
	f.pool.change(f.name, func(d *Disk) error { // how far it is matters to nobody but people
		if d.Hydration != nil {
			d.Hydration.Done, d.Hydration.Total = done, total
		}
		return nil
	})
}

// change changes a record that nobody works on.
func (p *Pool) change(name string, do func(d *Disk) error) error {
	unlock, err := p.lock(name, workLock)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := p.Disk(name)
	if err == nil {
		err = do(d)
	}
	if err != nil {
		return err
	}
	return p.save(d)
}

// overlayWritten reports whether anybody has written to an overlay.
func overlayWritten(path string) (bool, error) {
	img, err := qcow2.Open(path)
	if err != nil {
		return false, err
	}
	defer img.Close()
	data, zero, err := img.Map()
	return len(data)+len(zero) > 0, err
}

// copy fills a disk that no machine runs with. While nobody has written to it, it is filled from its content, and may be attached meanwhile; else from the
// overlay, locked. settle is called before the record names the copy; nil does nothing.
func (f *filling) copy(ctx context.Context, d *Disk, settle func() error) error {
	p := f.pool
	written, err := overlayWritten(p.Path(d))
	if err != nil {
		return err
	}
	final := filepath.Join(p.dir, d.Hydration.Final)
	if err := errors.Join(removeFile(final), p.dropUnfinished(d.Hydration.Final)); err != nil {
		return err
	}
	if !written {
		if err := f.write(ctx, d, f.req.Content); err != nil {
			return err
		}
	}
	if err := p.step("hydrate: copied"); err != nil {
		return err
	}
	unlock, err := p.lock(f.name, workLock)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := p.Disk(f.name)
	if err != nil {
		return err
	}
	if now.Doing != nil || (now.Attached == nil) != (d.Attached == nil) {
		return errAgain
	}
	return f.settleCopy(ctx, now, written, settle)
}

// settleCopy has the disk be its copy, if that is what the overlay shows. The lock on the overlay keeps every machine from using it meanwhile.
func (f *filling) settleCopy(ctx context.Context, d *Disk, written bool, settle func() error) error {
	overlay, err := diskimage.Open(ctx, f.pool.Path(d), diskimage.Options{Format: "qcow2"})
	if err != nil {
		return err
	}
	defer overlay.Close()
	after, err := overlayWritten(f.pool.Path(d))
	if err != nil {
		return err
	}
	if after {
		if !written {
			if err := removeFile(filepath.Join(f.pool.dir, d.Hydration.Final)); err != nil {
				return err
			}
		}
		if err := f.write(ctx, d, ImageContent(overlay)); err != nil {
			return err
		}
	}
	if settle != nil {
		if err := settle(); err != nil {
			return err
		}
	}
	return f.pool.localize(d)
}

// write makes the image to be.
func (f *filling) write(ctx context.Context, d *Disk, from Content) error {
	data, err := from.Extents(ctx)
	if err != nil {
		return err
	}
	t, err := diskimage.Create(filepath.Join(f.pool.dir, d.Hydration.Final), d.Size, d.Format, data, false)
	if err != nil {
		return err
	}
	var sum counter
	err = from.Restore(ctx, t, func(more int64) { f.tell(sum.add(more), data.Bytes()) })
	if err != nil {
		return errors.Join(err, t.Abort())
	}
	return t.Commit()
}

// localize makes the record name the image that depends on nothing, and removes the overlay. The caller has the lock.
func (p *Pool) localize(d *Disk) error {
	overlay := p.Path(d)
	if err := p.step("hydrate: complete"); err != nil {
		return err
	}
	d.File, d.Hydration = d.Hydration.Final, nil
	if err := errors.Join(p.save(d), p.step("hydrate: recorded")); err != nil {
		return err
	}
	if err := removeFile(overlay); err != nil {
		return err
	}
	return p.fs.SyncDir(p.dir)
}

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
	t := hypervisor.HydrationTarget{Disk: d.Attached.As, File: filepath.Join(f.pool.dir, d.Hydration.Final), Format: d.Format, Size: d.Size}
	only := hypervisor.Settlement{Targets: []hypervisor.HydrationTarget{t}, StayPaused: true}
	if m.State == hypervisor.Off {
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
	case now.Err != nil:
		return now.Err
	case !now.Running:
		return errors.Join(f.begin(ctx, able, m, t), errAgain)
	}
	f.tell(now.Done, now.Total)
	return errAgain
}

// begin lets a machine that waits for the export go on, and starts the copy.
func (f *filling) begin(ctx context.Context, h hypervisor.Hydrator, m hypervisor.Machine, t hypervisor.HydrationTarget) error {
	if err := h.Continue(ctx, m); err != nil {
		return err
	}
	if err := errors.Join(removeFile(t.File), f.pool.dropUnfinished(filepath.Base(t.File))); err != nil {
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
	return f.pool.step("hydrate: begun")
}

// switched moves the machine to the copy, records it, and only then lets the machine go on: whichever of both images is found after a crash in between holds
// all that was written.
func (f *filling) switched(ctx context.Context, h Host, m hypervisor.Machine, move func() error) error {
	unlock, err := f.pool.lock(f.name, workLock)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := f.pool.Disk(f.name)
	if err != nil {
		return err
	}
	if d.Doing != nil || d.Attached == nil {
		return errAgain
	}
	if move != nil {
		if err := move(); err != nil {
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

// settle takes note that a machine runs on the image that was to be, which a process that moved it there did not live to record.
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
