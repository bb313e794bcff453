package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// dropOlder drops the older epochs of the vault from the captured disks, except for those that
// other points count from.
func (s *capturing) dropOlder(ctx context.Context) error {
	if s.plan.NoEpoch {
		return s.state.finish()
	}
	err := s.removeBitmaps(ctx, func(name string) bool {
		return strings.HasPrefix(name, capture.BitmapPrefix(s.plan.Vault)) && name != s.epoch() &&
			!slices.Contains(s.plan.Keep, name)
	})
	if err != nil && !machineOff(err) { // the next capture drops them
		err = fmt.Errorf("drop older records of changes of machine %s: %w", s.plan.Machine, err)
		return errors.Join(err, s.state.finish())
	}
	return s.state.finish()
}

// dropNew drops the epoch that this capture began. If it cannot, the state file is left to say
// that the capture is unfinished.
func (s *capturing) dropNew(ctx context.Context) error {
	err := s.removeBitmaps(ctx, func(name string) bool { return name == s.epoch() })
	if err != nil && !machineOff(err) {
		err = fmt.Errorf("drop the record of changes of machine %s: %w", s.plan.Machine, err)
		return errors.Join(err, s.state.release())
	}
	return s.state.finish()
}

func (s *capturing) removeBitmaps(ctx context.Context, match func(name string) bool) error {
	mon, err := s.reopen(ctx)
	if err != nil {
		return err
	}
	nodes, err := queryNodes(ctx, mon)
	if err != nil {
		return err
	}
	for _, d := range s.disks {
		n := nodes[d.Node]
		if n == nil {
			continue // unplugged meanwhile
		}
		for _, b := range n.Bitmaps {
			if !match(b.Name) {
				continue
			}
			if err := removeBitmap(ctx, mon, d.Node, b.Name); err != nil {
				return fmt.Errorf("disk %s: %w", d.Name, err)
			}
		}
	}
	return nil
}

// machineOff reports whether err says that no QEMU is there to clean up in.
func machineOff(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// reopen returns a monitor that answers. While QEMU is ending its socket still takes connections,
// which are not greeted or closed.
func (s *capturing) reopen(ctx context.Context) (monitor, error) {
	for {
		mon, err := s.capturer.open(ctx)
		if err == nil {
			err = run(ctx, mon, "query-status", nil, nil)
		}
		if !errors.Is(err, qmp.ErrClosed) && !errors.Is(err, qmp.ErrInUse) {
			return mon, err
		}
		select {
		case <-time.After(sweepPause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// cleanUp removes what a failed capture left. The older epoch is not touched.
func (s *capturing) cleanUp(ctx context.Context) error {
	defer s.closeImages()
	mon, err := s.reopen(ctx)
	if err != nil && !machineOff(err) {
		return errors.Join(err, s.state.release())
	}
	if err != nil {
		mon = nil
	}
	if _, err := s.state.recover(ctx, mon, s.plan.Vault, nil); err != nil {
		return errors.Join(err, s.state.release())
	}
	return errors.Join(s.emptyImages(), s.state.finish())
}

// Reconcile implements [capture.Capturer]. It returns [capture.ErrBusy] while a capture of the
// machine runs.
func (c *Capturer) Reconcile(ctx context.Context, machine, vault string, keep []string) ([]string, error) {
	done, err := c.reconcile(ctx, machine, vault, keep)
	if err != nil {
		return done, fmt.Errorf("clean up after captures of machine %s: %w", machine, err)
	}
	return done, nil
}

func (c *Capturer) reconcile(ctx context.Context, machine, vault string, keep []string) ([]string, error) {
	m, err := c.machine(ctx, machine)
	if err != nil {
		return nil, err
	}
	state, err := lockState(c.opts.StateDir, m)
	if err != nil {
		return nil, err
	}
	done, err := c.reconcileLocked(ctx, m, state, vault, keep)
	if err != nil {
		return done, errors.Join(err, state.release())
	}
	return done, state.finish()
}

func (c *Capturer) reconcileLocked(ctx context.Context, m hypervisor.Machine, state *stateFile, vault string,
	keep []string) ([]string, error) {
	mon, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	done, err := state.recover(ctx, mon, vault, keep)
	if err != nil || vault == "" {
		return done, err
	}
	more, err := sweepBitmaps(ctx, mon, func(name string) bool {
		return strings.HasPrefix(name, capture.BitmapPrefix(vault)) && !slices.Contains(keep, name)
	})
	return append(done, more...), err
}
