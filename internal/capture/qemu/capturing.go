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
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// capturing is one capture. Only deliver uses several goroutines.
type capturing struct {
	capturer *Capturer
	plan     capture.Plan
	hooks    capture.Hooks
	sink     capture.Sink
	state    *stateFile

	mon    monitor
	byName bool // QEMU opens images by name: it drops descriptor sets only while its machine runs
	owner  int  // user that QEMU runs as
	disks  []*disk
	images []*image // made and not yet closed
	have   int64    // bytes of scratch that may be used
	soft   bool     // QEMU gives up the backup, not the guest's write, when the scratch fails

	instant time.Time
	rung    point.Rung
	reason  string
}

// disk is one disk of a capture.
type disk struct {
	hypervisor.Disk
	plan    capture.DiskPlan
	bitmaps []bitmap

	reason     string // why the last bitmap is not trusted; "" if it is
	dirty      int64  // bytes that the last bitmap marks, if trusted
	alone      bool   // what the image has not allocated is zeros
	tracking   bool   // the new epoch can be recorded
	persistent bool   // and stored in the image
	read       int64  // bytes handed to the sink
}

func (d *disk) tracked() bool { return d.reason == "" }

func (s *capturing) capture(ctx context.Context, m hypervisor.Machine) (*capture.Result, error) {
	if err := s.prepare(ctx, m); err != nil {
		return nil, err
	}
	if err := s.copyAll(ctx); err != nil {
		return nil, err
	}
	if err := s.state.captured(); err != nil { // from here on the vault may commit the point
		return nil, err
	}
	res := &capture.Result{Rung: s.rung, Reason: s.reason, Instant: s.instant, DropOlder: s.dropOlder,
		DropNew: s.dropNew}
	for _, d := range s.disks {
		r := capture.DiskResult{Name: d.Name, Size: d.Size, Read: d.read, Tracked: d.tracked(), Reason: d.reason}
		if d.tracking {
			r.Bitmap = s.epoch()
		}
		res.Disks = append(res.Disks, r)
	}
	return res, nil
}

func (s *capturing) epoch() string { return capture.BitmapName(s.plan.Vault, s.plan.Epoch) }

// copyAll pushes everything at once if it fits, in slices otherwise.
func (s *capturing) copyAll(ctx context.Context) error {
	s.rung = point.Push
	var need int64
	for _, d := range s.disks {
		need += s.need(d)
	}
	if need > s.have {
		return s.copySlices(ctx, need)
	}
	err := s.push(ctx)
	var short *capture.NeedScratch
	if errors.As(err, &short) {
		s.plan.Log("%v: going on in slices", err)
		return s.copySlices(ctx, short.Need)
	}
	return err
}

// push copies all disks in one instant.
func (s *capturing) push(ctx context.Context) error {
	var copies []*diskCopy
	for _, d := range s.disks {
		c := &diskCopy{disk: d, need: s.need(d), whole: !d.tracked()}
		if d.tracked() {
			c.bitmap, c.mode = d.plan.LastBitmap, "never"
		}
		copies = append(copies, c)
	}
	return s.copyOut(ctx, copies, s.takeInstant)
}

// prepare does all that is slow, cleans what an earlier capture left, and decides which records of
// changes to trust.
func (s *capturing) prepare(ctx context.Context, m hypervisor.Machine) error {
	var err error
	if s.mon, err = s.capturer.open(ctx); err != nil {
		return err
	}
	if err := s.findProcess(ctx); err != nil {
		return err
	}
	if s.have, err = measureScratch(s.plan.Scratch); err != nil {
		return err
	}
	committed := slices.Clone(s.plan.Keep)
	for _, d := range s.plan.Disks {
		committed = append(committed, d.LastBitmap)
	}
	done, err := s.state.recover(ctx, s.mon, s.plan.Vault, committed)
	if err != nil {
		return fmt.Errorf("clean up after an earlier capture: %w", err)
	}
	if len(done) > 0 { // what was cleaned up may have hidden the disks' own nodes
		s.plan.Log("cleaned up after an earlier capture: %s", strings.Join(done, ", "))
		if m, err = s.capturer.machine(ctx, m.Name); err != nil {
			return err
		}
	}
	if err := s.state.begin(s.plan); err != nil {
		return err
	}
	if s.soft, err = breaksSnapshot(ctx, s.mon); err != nil {
		return err
	}
	if err := s.findDisks(ctx, m); err != nil {
		return err
	}
	for _, d := range s.disks {
		if err := s.prepareBitmaps(ctx, d); err != nil {
			return fmt.Errorf("disk %s: %w", d.Name, err)
		}
	}
	return nil
}

// findProcess asks what decides how QEMU can be given files.
func (s *capturing) findProcess(ctx context.Context) error {
	var status struct{ Running bool }
	if err := run(ctx, s.mon, "query-status", nil, &status); err != nil {
		return err
	}
	s.byName = !status.Running
	if st, err := os.Stat(fmt.Sprintf("/proc/%d", s.mon.PeerPID())); err == nil {
		s.owner = int(st.Sys().(*syscall.Stat_t).Uid)
	}
	return nil
}

func (s *capturing) findDisks(ctx context.Context, m hypervisor.Machine) error {
	nodes, err := queryNodes(ctx, s.mon)
	if err != nil {
		return err
	}
	for _, p := range s.plan.Disks {
		d := &disk{plan: p}
		for _, have := range m.Disks {
			if have.Name == p.Name {
				d.Disk = have
			}
		}
		n := nodes[d.Node]
		if n == nil {
			return fmt.Errorf("disk %s: the machine has no such disk", p.Name)
		}
		d.bitmaps, d.alone = n.Bitmaps, n.standsAlone()
		d.reason = doubt(n, d.Size, p, s.plan.Granule)
		if b := n.bitmap(p.LastBitmap); b != nil {
			d.dirty = b.Count
		}
		s.disks = append(s.disks, d)
	}
	return nil
}

// doubt returns why the record of changes since the last point may not be trusted, "" if it may.
func doubt(n *node, size int64, p capture.DiskPlan, granule int64) string {
	if p.LastBitmap == "" {
		return capture.WholeFirst
	}
	b := n.bitmap(p.LastBitmap)
	switch {
	case b == nil:
		return capture.WholeLost
	case b.Inconsistent:
		return capture.WholeUnclean
	case b.Busy:
		return capture.WholeInUse
	case !b.Recording:
		return capture.WholeStopped
	case b.Granularity != granule:
		return fmt.Sprintf(capture.WholeGranularity, b.Granularity, granule)
	case size != p.LastSize:
		return fmt.Sprintf(capture.WholeResized, p.LastSize, size)
	}
	return ""
}

// stray reports whether b is of no use. A capture that counts from no bitmap cannot tell; it must
// not take the record of changes from the next one, should it fail.
func stray(b bitmap, p capture.DiskPlan, vault string, keep []string) bool {
	if b.Busy || !strings.HasPrefix(b.Name, capture.BitmapPrefix(vault)) ||
		slices.Contains(keep, b.Name) && !b.Inconsistent {
		return false
	}
	return b.Inconsistent || p.LastBitmap != "" && b.Name != p.LastBitmap
}

// prepareBitmaps removes our bitmaps that are of no use and finds out how the new epoch can be
// recorded. A bitmap that QEMU refuses must not be found out while the guest holds its writes.
func (s *capturing) prepareBitmaps(ctx context.Context, d *disk) error {
	if s.plan.NoEpoch {
		return nil
	}
	for _, b := range d.bitmaps {
		if !stray(b, d.plan, s.plan.Vault, s.plan.Keep) {
			continue
		}
		s.plan.Log("disk %s: removing bitmap %s", d.Name, b.Name)
		if err := removeBitmap(ctx, s.mon, d.Node, b.Name); err != nil {
			return err
		}
	}
	for _, persistent := range []bool{true, false} {
		if persistent && !d.Persistent {
			continue
		}
		err := s.tryBitmap(ctx, d, persistent)
		if err == nil {
			d.tracking, d.persistent = true, persistent
			return nil
		}
		if !qmp.Refused(err) {
			return err
		}
		s.plan.Log("disk %s: changes cannot be recorded (persistent: %t): %v", d.Name, persistent, err)
	}
	return nil
}

func (s *capturing) tryBitmap(ctx context.Context, d *disk, persistent bool) error {
	a := addBitmap(s.epoch(), d.Node, s.plan.Granule, persistent).Data
	a["disabled"] = true
	if err := run(ctx, s.mon, "block-dirty-bitmap-add", a, nil); err != nil {
		return err
	}
	return removeBitmap(ctx, s.mon, d.Node, s.epoch())
}

// takeInstant is the transaction at the point in time, with the hooks around it and the new epoch
// begun in it.
func (s *capturing) takeInstant(ctx context.Context, actions []action) error {
	for _, d := range s.disks {
		if d.tracking {
			actions = append(actions, addBitmap(s.epoch(), d.Node, s.plan.Granule, d.persistent))
		}
	}
	if s.hooks.Quiesce != nil {
		if err := s.hooks.Quiesce(ctx); err != nil {
			return fmt.Errorf("quiesce: %w", err)
		}
	}
	s.instant = time.Now().UTC()
	err := s.transaction(ctx, actions)
	if err == nil && s.hooks.Frozen != nil {
		if err = s.hooks.Frozen(ctx); err != nil {
			err = fmt.Errorf("read the machine's files: %w", err)
		}
	}
	if s.hooks.Thaw != nil {
		if thawErr := s.hooks.Thaw(context.WithoutCancel(ctx)); thawErr != nil {
			err = errors.Join(err, fmt.Errorf("thaw: %w", thawErr))
		}
	}
	return err
}

func (s *capturing) transaction(ctx context.Context, actions []action) error {
	if err := run(ctx, s.mon, "transaction", args{"actions": actions}, nil); err != nil {
		return fmt.Errorf("take the instant: %w", err)
	}
	return nil
}
