package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// watchPause is how often the scratch is looked at while jobs run. QEMU writes no more than some
// 100 MiB in that time, which the tenth of the file system that is never planned for takes in.
const watchPause = 50 * time.Millisecond

// waitJobs waits until every copy's job has ended well. It ends early if a job fails, QEMU goes
// away, or the scratch threatens to overflow; then jobs may still run.
func (s *capturing) waitJobs(ctx context.Context, copies []*diskCopy) error {
	events := s.mon.Subscribe()
	defer events.Close()
	for {
		jobs, err := queryJobs(ctx, s.mon)
		if err != nil {
			return fmt.Errorf("wait for the copy into scratch: %w", err)
		}
		ended, err := s.look(copies, jobs)
		if err != nil || ended {
			return err
		}
		if err := s.watch(copies); err != nil {
			return err
		}
		if err := waitEvent(ctx, events); err != nil {
			return fmt.Errorf("wait for the copy into scratch: %w", err)
		}
	}
}

// look reports whether all jobs have ended well.
func (s *capturing) look(copies []*diskCopy, jobs map[string]job) (ended bool, err error) {
	var done, total int64
	ended = true
	for _, c := range copies {
		j, ok := jobs[c.job()]
		switch {
		case !ok:
			return false, fmt.Errorf("disk %s: the copy into scratch was cancelled by somebody else", c.disk.Name)
		case j.Error != "":
			return false, s.jobError(c, j.Error)
		case j.Status != concluded:
			ended = false
		}
		done, total = done+j.Progress, total+j.Total
	}
	s.plan.Progress(done, total)
	return ended, nil
}

// jobError tells a full scratch from other failures.
func (s *capturing) jobError(c *diskCopy, text string) error {
	if used, err := c.image.size(); err == nil && used >= c.need {
		return fmt.Errorf("disk %s: copy into scratch: %s: %w", c.disk.Name, text, s.short(used+s.plan.Granule))
	}
	return fmt.Errorf("disk %s: copy into scratch: %s", c.disk.Name, text)
}

func (s *capturing) short(need int64) error {
	return &capture.NeedScratch{Dir: s.plan.Scratch.Dir, Need: need, Have: s.have}
}

// watch looks at the space that the images take.
func (s *capturing) watch(copies []*diskCopy) error {
	var used, beyond int64
	for _, c := range copies {
		n, err := c.image.size()
		if err != nil {
			return err
		}
		used += n
		beyond += max(0, n-c.image.reserved)
	}
	if used > s.have {
		return s.short(used + used/4)
	}
	if beyond == 0 {
		return nil
	}
	free, err := freeBytes(s.plan.Scratch.Dir)
	if err != nil {
		return err
	}
	if free < leastFree {
		return s.short(used + leastFree)
	}
	return nil
}

// waitEvent waits until a job changes, or for watchPause.
func waitEvent(ctx context.Context, events *qmp.Subscription) error {
	short, cancel := context.WithTimeout(ctx, watchPause)
	defer cancel()
	for {
		ev, err := events.Next(short)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			return nil
		case err != nil:
			return err
		case ev.Name == "JOB_STATUS_CHANGE":
			return nil
		}
	}
}
