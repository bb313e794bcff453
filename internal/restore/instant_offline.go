package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// errTurnedOn reports that the machine was started while its disks were being copied.
var errTurnedOn = errors.New("the machine was turned on meanwhile")

const (
	copyBlock  = 1 << 20                // bytes read and written at once
	pausedLook = 200 * time.Millisecond // between two looks whether to go on
)

// offline copies the disks of a machine that is off. A disk that has never been written comes
// straight from the point, and the machine may be started meanwhile; one that has keeps the machine
// from starting until it is done.
func (h *hydration) offline(ctx context.Context) error {
	if err := h.noteEnd(ctx); err != nil || h.st.Step != InstantHydrating {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		h.watchOffline(ctx, cancel)
	}()
	err := h.copyOffline(ctx)
	cancel(nil)
	<-watched
	if cause := context.Cause(ctx); errors.Is(cause, errTurnedOn) && err != nil {
		return nil // its disks are copied while it runs
	}
	return err
}

// noteEnd sees what the definition says of a machine that is off, and that it ended by itself if it
// did.
func (h *hydration) noteEnd(ctx context.Context) error {
	local, err := h.host.Settled(ctx, h.machine(), h.settlement())
	if err != nil {
		return err
	}
	all := true
	for n := range h.st.Disks {
		h.st.Disks[n].Local = local[h.st.Disks[n].Disk]
		all = all && h.st.Disks[n].Local
	}
	if all {
		return h.enter(InstantCleaning)
	}
	if h.st.Started && !h.st.Ended {
		h.st.Ended = true
		h.opts.Log("%s has ended; its disks are copied as they are", h.name)
		return h.saveState()
	}
	return nil
}

// watchOffline breaks the copying off when the machine is started or to be abandoned.
func (h *hydration) watchOffline(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(h.opts.Tick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, on, err := h.find(ctx); err == nil && on {
			cancel(errTurnedOn)
		}
		if wish, err := h.wish(); err == nil && wish.Abandon {
			cancel(errTurnedOn) // what is to be done is seen by the one who asked for this
		}
		if err := h.export.over(); err != nil {
			cancel(err)
		}
	}
}

// copyOffline copies all disks that are not local and then has the definition name the copies. From
// the last look at an overlay to the end its lock keeps the machine from starting.
func (h *hydration) copyOffline(ctx context.Context) error {
	var held []io.Closer
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for n := range h.st.Disks {
		d := &h.st.Disks[n]
		if d.Local {
			continue
		}
		lock, err := h.copyDisk(ctx, d)
		if err != nil {
			return fmt.Errorf("copy disk %s of %s, which is off: %w", d.Disk, h.name, err)
		}
		held = append(held, lock)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	settlement := hypervisor.Settlement{StorageDir: h.dir, Off: true}
	for _, d := range h.st.Disks {
		if !d.Local {
			settlement.Targets = append(settlement.Targets, d.HydrationTarget)
		}
	}
	if _, on, err := h.find(ctx); err != nil || on {
		return err
	}
	if err := h.host.FinishHydration(ctx, h.machine(), settlement); err != nil {
		return err
	}
	for n := range h.st.Disks {
		h.st.Disks[n].Local = true
	}
	return h.enter(InstantCleaning)
}

// copyDisk copies a disk and returns its overlay, open: nobody can write to it.
func (h *hydration) copyDisk(ctx context.Context, d *InstantDisk) (io.Closer, error) {
	if err := errors.Join(removeIfThere(d.File), removeHalfWritten(d.File)); err != nil {
		return nil, err
	}
	before, err := overlayData(d.Overlay())
	if err != nil {
		return nil, err
	}
	if len(before) > 0 {
		return h.copyOverlay(ctx, d)
	}
	if err := h.copyFromPoint(ctx, d); err != nil {
		return nil, err
	}
	held, err := diskimage.Hold(d.Overlay())
	if err != nil {
		return nil, err
	}
	if after, err := overlayData(d.Overlay()); err != nil || len(after) > 0 {
		return nil, errors.Join(err, errors.New("the machine has run meanwhile"), held.Close())
	}
	return held, nil
}

// copyOverlay copies what a machine has written with all that is below it, and returns the overlay,
// open.
func (h *hydration) copyOverlay(ctx context.Context, d *InstantDisk) (io.Closer, error) {
	img, err := diskimage.Open(ctx, d.Overlay(), diskimage.Options{Format: "qcow2"})
	if err != nil {
		return nil, err
	}
	if err := h.copyImage(ctx, img, d); err != nil {
		return nil, errors.Join(err, img.Close())
	}
	return img, nil
}

// overlayData returns what a machine has written to an overlay, zeros too.
func overlayData(path string) (extent.Set, error) {
	img, err := qcow2.Open(path)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	data, zero, err := img.Map()
	return extent.Of(append(data, zero...)...), err
}

// copyFromPoint restores a disk that no machine has written to.
func (h *hydration) copyFromPoint(ctx context.Context, d *InstantDisk) error {
	stored, err := h.st.Point.Disk(d.Disk)
	if err != nil {
		return err
	}
	return writeDisk(ctx, h.v, *stored, target{path: d.File, format: d.Format}, h.paced(ctx, d))
}

// paced reports progress, and holds up the copy as the wishes of others ask.
func (h *hydration) paced(ctx context.Context, d *InstantDisk) func(string, int64, int64) {
	var mu sync.Mutex
	var told int64
	due := time.Now()
	return func(_ string, done, total int64) {
		h.opts.Progress("copy "+d.Disk, done, total)
		mu.Lock()
		defer mu.Unlock()
		more := max(done-told, 0)
		told += more
		for {
			wish, err := h.wish()
			if err == nil && !wish.Paused {
				if wish.Rate > 0 {
					took := time.Duration(float64(more) / float64(wish.Rate) * float64(time.Second))
					due = later(due, time.Now().Add(-time.Second)).Add(took)
				}
				wait(ctx, time.Until(due))
				return
			}
			if wait(ctx, pausedLook); ctx.Err() != nil {
				return
			}
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// copyImage copies an overlay with all that is below it.
func (h *hydration) copyImage(ctx context.Context, img *diskimage.Image, d *InstantDisk) error {
	data, err := img.Extents(ctx)
	if err != nil {
		return err
	}
	w, err := diskimage.Create(d.File, d.Size, d.Format, data, false)
	if err != nil {
		return err
	}
	if err := h.copyExtents(ctx, w, img, data, d); err != nil {
		return errors.Join(err, w.Abort())
	}
	return w.Commit()
}

func (h *hydration) copyExtents(ctx context.Context, w io.WriterAt, r io.ReaderAt, data extent.Set,
	d *InstantDisk) error {
	buf := make([]byte, copyBlock)
	done, total := int64(0), data.Bytes()
	paced := h.paced(ctx, d)
	for _, e := range data {
		for off := e.Off; off < e.End(); {
			if err := ctx.Err(); err != nil {
				return err
			}
			p := buf[:min(copyBlock, e.End()-off)]
			if n, err := r.ReadAt(p, off); n < len(p) {
				return fmt.Errorf("read at offset %d: %w", off, err)
			}
			if _, err := w.WriteAt(p, off); err != nil {
				return err
			}
			off += int64(len(p))
			done += int64(len(p))
			paced("", done, total)
		}
	}
	return nil
}
