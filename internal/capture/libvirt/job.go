package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// pollEvery is how often a job is looked at, in addition to waiting for the event of its end.
const pollEvery = 200 * time.Millisecond

// errNoJob reports that the job is gone and libvirt does not say how it ended.
var errNoJob = errors.New("the backup job is gone")

// awaitJob waits until the capture's job has ended, and returns why if not well. watch is called
// now and then; its error ends the job.
func (s *capturing) awaitJob(ctx context.Context, events <-chan rpc.Event, watch func() error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.client.Closed():
			return rpc.ErrClosed
		case ev := <-events:
			if ev.Kind == rpc.JobCompleted && ev.Params.Uint("operation") == rpc.OperationBackup {
				return s.ended(ctx)
			}
		case <-tick.C:
			running, err := s.jobRuns(ctx)
			if err != nil {
				return err
			}
			if !running {
				return s.ended(ctx)
			}
			if err := watch(); err != nil {
				return err
			}
		}
	}
}

func (s *capturing) jobRuns(ctx context.Context) (bool, error) {
	kind, stats, err := s.client.JobStats(ctx, s.dom, 0)
	if err != nil {
		return false, fmt.Errorf("look at the backup job: %w", err)
	}
	s.plan.Progress(int64(stats.Uint("disk_processed")), int64(stats.Uint("disk_total")))
	return kind == rpc.JobBounded || kind == rpc.JobUnbounded, nil
}

// ended returns nil if the last job did what it should.
func (s *capturing) ended(ctx context.Context) error {
	kind, stats, err := s.client.JobStats(ctx, s.dom, rpc.StatsCompleted|rpc.StatsKeepCompleted)
	if err != nil {
		return fmt.Errorf("ask how the backup job ended: %w", err)
	}
	if kind == rpc.JobDone && stats.Uint("operation") == rpc.OperationBackup {
		if ok, told := stats["success"].(bool); ok || !told {
			total := int64(stats.Uint("disk_total"))
			s.plan.Progress(total, total)
			if err := s.closed(ctx); err != nil {
				return err
			}
			return s.state.note(func(r *record) { r.Job = false })
		}
	}
	if why := stats.String("errmsg"); why != "" {
		return fmt.Errorf("the backup job ended with an error: %s", why)
	}
	if kind == rpc.JobNone {
		return errNoJob
	}
	return errors.New("the backup job did not end well")
}

// closed waits until QEMU has closed the scratch images. libvirt says that the job has ended before
// it has QEMU do so, and only then are the tables of an image in the file.
func (s *capturing) closed(ctx context.Context) error {
	// libvirt closes the images within the same job on the machine that told of the end: what needs
	// a job of its own comes after.
	if _, err := s.client.DomainBlockInfo(ctx, s.dom, s.disks[0].Name); err != nil {
		return fmt.Errorf("wait until QEMU has closed the scratch images: %w", err)
	}
	tick := time.NewTicker(pollEvery / 20)
	defer tick.Stop()
	for _, d := range s.disks {
		for {
			open, err := lockedByQEMU(d.scratch)
			if err != nil {
				return fmt.Errorf("wait until QEMU has closed the scratch image of %s: %w", d.Name, err)
			}
			if !open {
				break
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-s.client.Closed():
				return rpc.ErrClosed
			case <-tick.C:
			}
		}
	}
	return nil
}

// lockedByQEMU reports whether a QEMU has an image open: it then holds locks on some of the bytes
// 100 to 299.
func lockedByQEMU(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 200}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, nil // a file system without locks
	}
	return lock.Type != unix.F_UNLCK, nil
}
