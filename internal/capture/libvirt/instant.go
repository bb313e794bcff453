package libvirt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// suspendedTimeout bounds what happens while the machine is suspended.
const suspendedTimeout = 10 * time.Second

// transactionsDrainAll is the first QEMU whose disks without an iothread can write between two
// actions of a transaction.
const transactionsDrainAll = 8_001_000

// instant takes the instant: all disks at one moment, and the checkpoint that counts from it.
func (s *capturing) instant(ctx context.Context, hooks capture.Hooks) error {
	if err := s.rung.prepare(ctx, s); err != nil {
		return err
	}
	if hooks.Quiesce != nil {
		if err := hooks.Quiesce(ctx); err != nil {
			return fmt.Errorf("quiesce: %w", err)
		}
	}
	err := s.take(ctx)
	if err == nil && hooks.Frozen != nil {
		err = hooks.Frozen(ctx)
	}
	if hooks.Thaw != nil {
		thaw, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if errThaw := hooks.Thaw(thaw); errThaw != nil {
			err = errors.Join(err, fmt.Errorf("thaw: %w", errThaw))
		}
	}
	return err
}

// instantTries is how often the instant is tried if the machine had to be resumed in the middle of
// it: on a very busy host a try can take too long.
const instantTries = 2

// take begins the job. Where a record of changes turns out to be broken only then, or cannot be
// had without holding the machine still for too long, it reads whole disks instead, for which the
// machine need not be held still.
func (s *capturing) take(ctx context.Context) error {
	err := s.beginJob(ctx)
	if leftBitmaps(err) {
		s.plan.Log("a libvirtd that was killed left bitmaps of a backup: they are removed")
		if err := s.dropJobBitmaps(ctx); err != nil {
			return err
		}
		err = s.retake(ctx)
	}
	for try := 1; errors.Is(err, errWoken) && try < instantTries; try++ {
		s.plan.Log("the instant took too long, and the machine was resumed: it is taken again")
		err = s.retake(ctx)
	}
	switch {
	case err == nil || s.since() == "":
		return err
	case errors.Is(err, errWoken):
		s.plan.Log("the instant took too long again: all is read, for which the machine need not be held still")
		s.wholeDisks(fmt.Sprintf(capture.WholeBusy, maxSuspended))
		return s.retake(ctx)
	case aboutBitmaps(err):
		return s.takeWhole(ctx, err)
	}
	return err
}

// jobBitmap begins the names of the bitmaps that libvirt makes of a job's checkpoint, one for each
// disk.
const jobBitmap = "backup-"

// leftBitmaps reports whether libvirt failed to make the bitmaps of a job because they are there,
// of a job that nobody knows any more.
func leftBitmaps(err error) bool {
	var e *rpc.Error
	return errors.As(err, &e) && strings.Contains(e.Message, "Bitmap already exists: "+jobBitmap)
}

func (s *capturing) dropJobBitmaps(ctx context.Context) error {
	for _, d := range s.disks {
		if err := dropBitmap(ctx, s.client, s.dom, jobBitmap+d.Name); err != nil {
			return err
		}
	}
	return nil
}

// takeWhole begins the job without the record of changes that could not be read.
func (s *capturing) takeWhole(ctx context.Context, why error) error {
	s.plan.Log("the changes since %s cannot be read (%v): all is read", s.since(), why)
	if err := dropCheckpoint(ctx, s.client, s.dom, s.since()); err != nil {
		return fmt.Errorf("drop the broken record of changes: %w", err)
	}
	s.wholeDisks(fmt.Sprintf(capture.WholeUnusable, why))
	if err := s.removeScratch(); err != nil {
		return err
	}
	if err := s.rung.prepare(ctx, s); err != nil {
		return err
	}
	return s.beginJob(ctx)
}

// wholeDisks gives up all records of changes.
func (s *capturing) wholeDisks(why string) {
	for _, d := range s.disks {
		if d.since != "" {
			d.whole(why)
		}
	}
}

// retake undoes an instant that may be none, and takes another.
func (s *capturing) retake(ctx context.Context) error {
	s.rung.close()
	if err := s.recoverOwn(ctx); err != nil {
		return fmt.Errorf("undo an instant that took too long: %w", err)
	}
	if err := s.rung.prepare(ctx, s); err != nil {
		return err
	}
	return s.beginJob(ctx)
}

// aboutBitmaps reports whether libvirt refused because of a checkpoint or its bitmaps.
func aboutBitmaps(err error) bool {
	var e *rpc.Error
	if !errors.As(err, &e) {
		return false
	}
	text := strings.ToLower(e.Message)
	return e.Code == rpc.CheckpointInconsistent || e.Code == rpc.NoCheckpoint ||
		strings.Contains(text, "bitmap") || strings.Contains(text, "checkpoint")
}

// beginJob starts job and checkpoint. libvirt copies the list of changed blocks before it stops the
// disks from being written, so the machine is suspended meanwhile where a write could fall between.
// It is resumed before beginJob returns, come what may.
func (s *capturing) beginJob(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.state.note(func(r *record) {
		r.Job = true
		if s.tracks() {
			r.Checkpoint = s.checkpoint()
		}
	}); err != nil {
		return err
	}
	// Once something may be suspended it is finished, not cancelled.
	held, cancel := context.WithTimeout(context.WithoutCancel(ctx), suspendedTimeout)
	defer cancel()
	suspend, err := s.mustSuspend(held)
	if err != nil {
		return err
	}
	var watch *watcher // nil while the machine runs, or stands still by somebody else
	if suspend {
		if watch, err = s.suspend(held); err != nil {
			return err
		}
	}
	s.taken = time.Now().UTC()
	err = s.client.BackupBegin(held, s.dom, s.rung.backupXML(s), checkpointXML(s), rpc.BackupReuseExternal)
	if err != nil {
		err = fmt.Errorf("begin the backup job: %w", err)
	}
	if watch != nil {
		err = errors.Join(err, s.resume(watch))
	}
	return err
}

// mustSuspend reports whether a guest write could fall between libvirt's reading of the bitmaps and
// the instant.
func (s *capturing) mustSuspend(ctx context.Context) (bool, error) {
	if s.since() == "" {
		return false, nil
	}
	racy := s.qemu >= transactionsDrainAll
	for _, d := range s.disks {
		racy = racy || d.since != "" && d.IOThread
	}
	if !racy {
		return false, nil
	}
	st, err := s.client.DomainState(ctx, s.dom)
	if err != nil {
		return false, fmt.Errorf("ask for its state: %w", err)
	}
	return runs(st), nil
}
