package qemu

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// diskCopy is one disk, or what a bitmap marks of it, copied into a scratch image by one backup
// job.
type diskCopy struct {
	disk   *disk
	bitmap string // "" copies everything
	mode   string // bitmap-mode
	need   int64  // bytes of scratch to reserve
	whole  bool
	index  int
	image  *image
	used   int64 // bytes of scratch that it took in the end
}

func (c *diskCopy) job() string { return fmt.Sprint(ours, "j", c.index) }

// copyOut runs the copies: scratch images, then take with the actions that begin the jobs, then the
// jobs, and when nothing of them is in QEMU any more, the sink. When it returns nil or an error of
// the scratch, QEMU has nothing of them left.
func (s *capturing) copyOut(ctx context.Context, copies []*diskCopy, take func(context.Context, []action) error) error {
	var actions []action
	for i, c := range copies {
		c.index = i
		img, err := s.addScratch(ctx, c)
		if err != nil {
			return fmt.Errorf("disk %s: %w", c.disk.Name, s.unlessShort(ctx, err))
		}
		c.image = img
		actions = append(actions, s.backup(c))
	}
	if err := take(ctx, actions); err != nil {
		return err
	}
	if err := s.waitJobs(ctx, copies); err != nil {
		return s.unlessShort(ctx, err)
	}
	for _, c := range copies {
		if err := s.finish(ctx, c); err != nil {
			return fmt.Errorf("disk %s: %w", c.disk.Name, err)
		}
	}
	if err := s.deliver(ctx, copies); err != nil {
		return err
	}
	return s.emptyImages()
}

// unlessShort passes err on; if it says that scratch was short, so that another way will be tried,
// it first removes everything from QEMU.
func (s *capturing) unlessShort(ctx context.Context, err error) error {
	if !errors.Is(err, capture.ErrScratch) {
		return err
	}
	if _, sweepErr := sweepJobs(ctx, s.mon); sweepErr != nil {
		return fmt.Errorf("%v; clean up after it: %w", err, sweepErr)
	}
	for _, d := range s.disks { // the epoch of an instant that was given up
		if d.tracking {
			if dropErr := dropEpoch(ctx, s.mon, d.Node, s.epoch()); dropErr != nil {
				return fmt.Errorf("%v; clean up after it: %w", err, dropErr)
			}
		}
	}
	if closeErr := s.emptyImages(); closeErr != nil {
		return closeErr
	}
	return err
}

func (s *capturing) backup(c *diskCopy) action {
	a := args{"job-id": c.job(), "device": c.disk.Node, "target": c.image.node, "sync": "full", "auto-dismiss": false,
		"filter-node-name": fmt.Sprint(ours, "f", c.index)}
	switch {
	case c.bitmap != "":
		a["sync"], a["bitmap"], a["bitmap-mode"] = "bitmap", c.bitmap, c.mode
	case c.disk.alone: // else QEMU walks through what was never allocated, and writes zeros for it
		a["sync"] = "top"
	}
	if s.soft {
		a["on-cbw-error"] = "break-snapshot"
	}
	return action{"blockdev-backup", a}
}

// finish removes the ended job and its scratch node from QEMU.
func (s *capturing) finish(ctx context.Context, c *diskCopy) error {
	if err := run(ctx, s.mon, "job-dismiss", args{"id": c.job()}, nil); err != nil {
		return err
	}
	var err error
	if c.used, err = c.image.size(); err != nil {
		return err
	}
	return s.removeImage(ctx, c.image)
}

// deliver hands the images to the sink, two at a time.
func (s *capturing) deliver(ctx context.Context, copies []*diskCopy) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for _, c := range copies {
		g.Go(func() error {
			if err := s.deliverOne(ctx, c); err != nil {
				return fmt.Errorf("disk %s: %w", c.disk.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (s *capturing) deliverOne(ctx context.Context, c *diskCopy) error {
	img, err := qcow2.Open(c.image.path())
	if err != nil {
		return fmt.Errorf("open scratch image: %w", err)
	}
	defer img.Close()
	if c.image.key != nil {
		img.Unlock(c.image.key.volume.Cipher)
	}
	data, zero, err := img.Map()
	if err != nil {
		return fmt.Errorf("read map of scratch image: %w", err)
	}
	if c.whole {
		zero = extent.Set{{Len: c.disk.Size}}.Subtract(data)
	}
	atomic.AddInt64(&c.disk.read, data.Bytes())
	if !c.whole && len(data) == 0 && len(zero) == 0 {
		return nil
	}
	return s.sink(ctx, capture.Read{Disk: c.disk.Name, Size: c.disk.Size, Data: data, Zero: zero, Whole: c.whole,
		Source: img})
}
