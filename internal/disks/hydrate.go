package disks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

const (
	hydratePause   = 250 * time.Millisecond // between two looks at a copy, or at what others do to the disk
	saveEvery      = 2 * time.Second        // how often the record is told how far it is
	saveCopyEvery  = 5 * time.Second        // how often our own copy is made durable
	lookForRoom    = 3 * time.Second
	reconnectDelay = 60 // seconds that a machine waits for an export that is gone
)

// errAgain says that the disk was changed by somebody, or is being: look again.
var errAgain = errors.New("look again")

// HydrateRequest says how a disk is filled.
type HydrateRequest struct {
	Content PartContent
	// Serve serves the export that the disk's overlay stands on until stop is called.
	Serve    func(ctx context.Context, h *Hydration) (stop func() error, err error)
	Ready    func(d *Disk)           // told once the disk can be used; nil discards
	Progress func(done, total int64) // bytes; nil discards
	Waits    func(why error)         // told when the pool has no room, once for each time; nil discards
}

// CreateOverlay makes a disk that stands on an export of its content: it can be used as soon as
// [Pool.Hydrate] serves that, and depends on nothing once Hydrate has returned nil. On error there
// is none; the error is diskimage.ErrNoSpace if the pool has too little room for what is to be
// copied.
func (p *Pool) CreateOverlay(ctx context.Context, req CreateRequest) (*Disk, error) {
	if err := req.complete(); err != nil {
		return nil, fmt.Errorf("create disk %q: %w", req.Name, err)
	}
	data, err := req.Content.Extents(ctx)
	if err == nil {
		err = p.checkRoom(data.Bytes())
	}
	if err != nil {
		return nil, fmt.Errorf("create disk %s: %w", req.Name, err)
	}
	d, unlock, err := p.begin(req)
	if err != nil {
		return nil, fmt.Errorf("create disk %s: %w", req.Name, err)
	}
	defer unlock()
	d.Hydration = &Hydration{Export: d.Name, Socket: filepath.Join(p.dir, "."+d.ID[:8]+".sock"), Final: d.File,
		Total: data.Bytes()}
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
	err = qcow2.Create(p.Path(d), d.Size,
		qcow2.CreateOptions{BackingFile: "json:" + string(backing), BackingFormat: "raw"})
	if err != nil {
		return err
	}
	return p.fs.SyncDir(p.dir)
}

// Hydrate serves what a disk stands on and copies it to the pool, until the disk depends on
// nothing. Meanwhile it can be used, attached and detached by other processes. A disk that is
// attached to a running machine is copied by its hypervisor, any other by us. It may be called
// again after an error or a crash, and goes on where the copy came to: that of a hypervisor goes on
// by itself as long as the machine runs, and begins anew when it was begun by another. Where the
// pool has no room it waits, while the disk can be used. A disk that depends on nothing is left
// alone.
func (p *Pool) Hydrate(ctx context.Context, name string, req HydrateRequest) (*Disk, error) {
	d, err := p.durableDisk(name)
	if err == nil && d.Hydration == nil {
		if d.Attached != nil && d.Attached.Held != nil {
			if _, err := p.Reconcile(ctx, name); err != nil {
				return nil, err
			}
		}
		_, err = p.dropOverlay(d)
		return d, err
	}
	if err != nil {
		return nil, err
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
	if req.Waits == nil {
		req.Waits = func(error) {}
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

	waits   bool // for room
	resumed bool // the copy of a hypervisor, which had stopped
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
		pause := hydratePause
		switch err := f.try(ctx, d); {
		case err == nil:
			f.waits = false
			continue
		case errors.Is(err, diskimage.ErrNoSpace):
			f.wait(err)
			pause = f.pool.roomPause
		case !errors.Is(err, errAgain) && !errors.Is(err, ErrBusy):
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// try fills a disk as its record says that it can be. errAgain is to look again later.
func (f *filling) try(ctx context.Context, d *Disk) error {
	switch {
	case d.Doing != nil && f.pool.held(f.name, workLock):
		return errAgain
	case d.Doing != nil:
		return fmt.Errorf("%w: %s", ErrUnfinished, d.Doing.What)
	case d.Attached != nil:
		return f.attached(ctx, d)
	}
	return f.copy(ctx, d, nil)
}

// wait says that there is no room.
func (f *filling) wait(why error) {
	if !f.waits {
		f.req.Waits(why)
	}
	f.waits = true
	f.pool.change(f.name, func(d *Disk) error { // that it waits matters to nobody but people
		if d.Hydration != nil {
			d.Hydration.Waits = why.Error()
		}
		return nil
	})
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
			d.Hydration.Done, d.Hydration.Total, d.Hydration.Waits = done, total, ""
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

// copy fills a disk that no machine runs with: with its content, while it may be used, and then,
// locked, with what was written to its overlay. settle is called before the record names the copy;
// nil does nothing.
func (f *filling) copy(ctx context.Context, d *Disk, settle func() error) error {
	p := f.pool
	if err := f.fetch(ctx, d); err != nil {
		return err
	}
	if err := p.step("hydrate: copied"); err != nil {
		return err
	}
	unlock, err := p.lock(f.name, workLock)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := p.durableDisk(f.name)
	if err != nil {
		return err
	}
	if now.Doing != nil || (now.Attached == nil) != (d.Attached == nil) {
		return errAgain
	}
	return f.settleCopy(ctx, now, settle)
}

// settleCopy has the disk be its copy, once that has what was written to the overlay too. The lock
// on the overlay keeps every machine from using it meanwhile.
func (f *filling) settleCopy(ctx context.Context, d *Disk, settle func() error) error {
	overlay, err := diskimage.Hold(f.pool.Path(d))
	if errors.Is(err, diskimage.ErrInUse) && d.Attached != nil {
		return errAgain // its machine was started
	}
	if err != nil {
		return err
	}
	defer overlay.Close()
	if err := f.pool.mergeOverlay(ctx, d); err != nil {
		return err
	}
	if err := f.pool.step("hydrate: merged"); err != nil {
		return err
	}
	if settle != nil {
		if err := settle(); err != nil {
			return err
		}
	}
	return f.pool.localize(d)
}

// mergeOverlay writes what a disk's overlay holds over its copy. The overlay keeps it, so that this
// can be done again. The caller holds the overlay.
func (p *Pool) mergeOverlay(ctx context.Context, d *Disk) error {
	written, err := overlayWritten(p.Path(d))
	if err != nil || !written {
		return err
	}
	type node struct {
		Driver   string `json:"driver"`
		Filename string `json:"filename,omitempty"`
		Locking  string `json:"locking,omitempty"`
		File     *node  `json:"file,omitempty"`
		Backing  *node  `json:"backing,omitempty"`
	}
	final := filepath.Join(p.dir, d.Hydration.Final)
	top, err := json.Marshal(node{
		Driver: "qcow2", File: &node{Driver: "file", Filename: p.Path(d), Locking: "off"},
		Backing: &node{Driver: d.Format, File: &node{Driver: "file", Filename: final}},
	})
	if err != nil {
		return err
	}
	if err := runTool(ctx, "qemu-img", "commit", "-q", "-d", "json:"+string(top)); err != nil {
		return noSpace(err)
	}
	return syncFile(final)
}

// noSpace adds diskimage.ErrNoSpace to what a tool says when a file system is full.
func noSpace(err error) error {
	if err != nil && strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		return fmt.Errorf("%w: %w", diskimage.ErrNoSpace, err)
	}
	return err
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// localize makes the record name the image that depends on nothing, and removes the overlay. The
// caller has the lock.
func (p *Pool) localize(d *Disk) error {
	overlay := p.Path(d)
	if err := p.step("hydrate: complete"); err != nil {
		return err
	}
	// Whoever gave the image its name may have been killed before that was durable.
	if err := p.fs.SyncDir(p.dir); err != nil {
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

// dropOverlay removes the overlay of a disk that depends on nothing any more, where a process that
// was killed left it, and reports whether there was one.
func (p *Pool) dropOverlay(d *Disk) (bool, error) {
	overlay := p.Path(d) + hypervisor.OverlaySuffix
	if _, err := os.Lstat(overlay); err != nil || d.Hydration != nil {
		return false, nil
	}
	return true, errors.Join(removeFile(overlay), p.fs.SyncDir(p.dir))
}
