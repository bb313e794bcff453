package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

const (
	meanwhile  = ours + "e" // bitmap of what the guest writes while slices are copied
	window     = ours + "w" // bitmap of the slice that is being copied
	helperNode = ours + "h"

	catchUpRounds = 10       // how often the meanwhile is copied before the instant, at most
	smallEnough   = 64 << 20 // bytes of meanwhile that need no further round
)

// copySlices copies all disks through the scratch that there is, and takes the instant at the end.
func (s *capturing) copySlices(ctx context.Context, need int64) error {
	if s.have < s.capturer.opts.Floor {
		return s.short(min(need, s.capturer.opts.Floor))
	}
	s.rung = point.SlicedPush
	s.reason = fmt.Sprintf("a push needs %d bytes of scratch, there are %d", need, s.have)
	s.plan.Log("copying in slices: %s", s.reason)
	var begin []action
	for _, d := range s.disks {
		begin = append(begin, addBitmap(meanwhile, d.Node, s.plan.Granule, false))
	}
	if err := s.transaction(ctx, begin); err != nil {
		return err
	}
	for _, d := range s.disks {
		if err := s.copyDisk(ctx, d); err != nil {
			return fmt.Errorf("disk %s: %w", d.Name, err)
		}
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	_, err := sweepBitmaps(ctx, s.mon, func(name string) bool { return name == meanwhile })
	return err
}

// copyDisk copies what must be read of d, at no particular instant.
func (s *capturing) copyDisk(ctx context.Context, d *disk) error {
	todo := extent.Set{{Len: d.Size}}
	if d.tracked() {
		var err error
		if todo, err = s.readDirty(ctx, d); err != nil {
			return err
		}
	}
	room := s.room(d)
	length := room
	total, done := todo.Bytes(), int64(0)
	for len(todo) > 0 {
		head, rest := cut(todo, length)
		used, err := s.copyWindow(ctx, d, head)
		if errors.Is(err, capture.ErrScratch) && length > s.plan.Granule {
			length = max(s.plan.Granule, length/2/s.plan.Granule*s.plan.Granule)
			continue
		}
		if err != nil {
			return err
		}
		todo = rest
		done += head.Bytes()
		s.plan.Progress(done, total)
		if used < s.have/4 && length < d.Size {
			length *= 2
		} else if used > s.have/2 {
			length = max(room, length/2/s.plan.Granule*s.plan.Granule)
		}
		if _, err := s.catchUp(ctx, s.have/4); err != nil {
			return err
		}
	}
	return nil
}

// room returns how many bytes of d surely fit into the scratch.
func (s *capturing) room(d *disk) int64 {
	n := roundUp(s.have, s.plan.Granule)
	for n > s.plan.Granule && s.needFor(d, n) > s.have {
		n -= max(s.plan.Granule, n/16/s.plan.Granule*s.plan.Granule)
	}
	return n
}

// cut splits a set after n bytes.
func cut(set extent.Set, n int64) (head, rest extent.Set) {
	for i, e := range set {
		if e.Len >= n {
			head = head.Append(extent.Extent{Off: e.Off, Len: n})
			rest = extent.Set{{Off: e.Off + n, Len: e.Len - n}}
			if e.Len == n {
				rest = nil
			}
			return head, append(rest, set[i+1:]...)
		}
		head = head.Append(e)
		n -= e.Len
	}
	return head, nil
}

// copyWindow copies the parts of d in set and returns how much scratch that took.
func (s *capturing) copyWindow(ctx context.Context, d *disk, set extent.Set) (used int64, err error) {
	if err := s.setWindow(ctx, d, set); err != nil {
		return 0, err
	}
	c := &diskCopy{disk: d, bitmap: window, mode: "never", need: min(s.have, s.needFor(d, set.Bytes()))}
	err = s.copyOut(ctx, []*diskCopy{c}, s.transaction)
	if err == nil || errors.Is(err, capture.ErrScratch) {
		if removeErr := removeBitmap(ctx, s.mon, d.Node, window); removeErr != nil {
			return 0, removeErr
		}
	}
	return c.used, err
}

// setWindow gives d's node a bitmap that marks set. QEMU has no command for that; it merges bitmaps
// that an image brings.
func (s *capturing) setWindow(ctx context.Context, d *disk, set extent.Set) error {
	bits := qcow2.Bitmap{Name: "w", Granularity: s.plan.Granule, Set: set}
	img, err := s.newImage(d, helperNode, os.O_RDONLY,
		qcow2.CreateOptions{ClusterSize: int(s.plan.Granule), Bitmaps: []qcow2.Bitmap{bits}})
	if err != nil {
		return err
	}
	if err := s.addImage(ctx, img, true); err != nil {
		return err
	}
	a := addBitmap(window, d.Node, s.plan.Granule, false).Data
	a["disabled"] = true
	if err := run(ctx, s.mon, "block-dirty-bitmap-add", a, nil); err != nil {
		return err
	}
	if err := s.merge(ctx, d.Node, window, helperNode, "w"); err != nil {
		return err
	}
	return s.removeImage(ctx, img)
}

func (s *capturing) merge(ctx context.Context, node, into, fromNode, from string) error {
	bitmaps := []args{{"node": fromNode, "name": from}}
	return run(ctx, s.mon, "block-dirty-bitmap-merge", args{"node": node, "target": into, "bitmaps": bitmaps}, nil)
}

// readDirty returns what the trusted bitmap of d marks. QEMU stores it into an image for us.
func (s *capturing) readDirty(ctx context.Context, d *disk) (extent.Set, error) {
	img, err := s.newImage(d, helperNode, os.O_RDWR, qcow2.CreateOptions{ClusterSize: int(s.plan.Granule)})
	if err != nil {
		return nil, err
	}
	if err := s.addImage(ctx, img, false); err != nil {
		return nil, err
	}
	a := addBitmap("w", helperNode, s.plan.Granule, true).Data
	a["disabled"] = true
	if err := run(ctx, s.mon, "block-dirty-bitmap-add", a, nil); err != nil {
		return nil, err
	}
	if err := s.merge(ctx, helperNode, "w", d.Node, d.plan.LastBitmap); err != nil {
		return nil, err
	}
	if err := s.removeImage(ctx, img); err != nil {
		return nil, err
	}
	q, err := qcow2.Open(img.path())
	if err != nil {
		return nil, fmt.Errorf("read the record of changes: %w", err)
	}
	defer q.Close()
	set, err := q.ReadBitmap("w")
	if err != nil {
		return nil, fmt.Errorf("read the record of changes: %w", err)
	}
	return set.Align(s.plan.Granule, d.Size), nil
}

// meanwhileBytes asks how much of every disk was written since it was last asked to be copied.
func (s *capturing) meanwhileBytes(ctx context.Context) (dirty []int64, need int64, err error) {
	nodes, err := queryNodes(ctx, s.mon)
	if err != nil {
		return nil, 0, err
	}
	for _, d := range s.disks {
		n := nodes[d.Node]
		if n == nil || n.bitmap(meanwhile) == nil {
			return nil, 0, fmt.Errorf("disk %s: the record of what was written meanwhile is gone", d.Name)
		}
		if n.Image.VirtualSize != d.Size {
			return nil, 0, fmt.Errorf("disk %s: it was resized while it was copied", d.Name)
		}
		count := n.bitmap(meanwhile).Count
		dirty = append(dirty, count)
		need += s.needFor(d, count)
	}
	return dirty, need, nil
}

// catchUp copies what was written meanwhile if that is more than limit bytes, and says whether it
// was.
func (s *capturing) catchUp(ctx context.Context, limit int64) (copied bool, err error) {
	dirty, _, err := s.meanwhileBytes(ctx)
	if err != nil {
		return false, err
	}
	var sum int64
	for _, n := range dirty {
		sum += n
	}
	if sum <= limit {
		return false, nil
	}
	for i, d := range s.disks {
		if dirty[i] == 0 {
			continue
		}
		need := s.needFor(d, dirty[i])
		if need > s.have {
			return false, fmt.Errorf("the guest writes faster than the scratch takes in: %w", s.short(need))
		}
		c := &diskCopy{disk: d, bitmap: meanwhile, mode: "on-success", need: need}
		if err := s.copyOut(ctx, []*diskCopy{c}, s.transaction); err != nil {
			return false, err
		}
	}
	return true, nil
}

// settle catches up until little is left, and takes the instant.
func (s *capturing) settle(ctx context.Context) error {
	limit := min(s.have/4, smallEnough)
	for range catchUpRounds {
		copied, err := s.catchUp(ctx, limit)
		if err != nil {
			return err
		}
		if !copied {
			break
		}
	}
	dirty, need, err := s.meanwhileBytes(ctx)
	if err != nil {
		return err
	}
	if need > s.have {
		return fmt.Errorf("the guest writes faster than the scratch takes in: %w", s.short(need))
	}
	var copies []*diskCopy
	for i, d := range s.disks {
		copies = append(copies, &diskCopy{disk: d, bitmap: meanwhile, mode: "never", need: s.needFor(d, dirty[i])})
	}
	return s.copyOut(ctx, copies, s.takeInstant)
}
