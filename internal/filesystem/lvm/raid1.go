package lvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// raidSuper is what the kernel's dm-raid keeps in each leg's metadata volume.
type raidSuper struct {
	position uint32
	events   uint64
	failed   uint64 // a bit for each leg
	rebuilt  uint64 // sectors of this leg that are in step; all ones when it is whole
}

// raid1 reads one leg: the first that is there, in step, and knows of the last event. While the
// legs are compared for the first time, or after a crash, the kernel itself reads the first one.
func (b *builder) raid1(e *lvEntry, s segment, depth int) ([]run, error) {
	legs := s.raw.list("raids")
	n := len(legs) / 2
	if n < 1 || n > 64 {
		return nil, fmt.Errorf("%w: volume %s has %d legs", filesystem.ErrCorrupt, e.name, n)
	}
	supers := make([]*raidSuper, n)
	var newest *raidSuper
	var firstErr error
	for i := range n {
		super, err := b.raidSuper(legs[2*i], uint32(i), depth)
		if err != nil {
			if !errors.Is(err, ErrMissing) && !errors.Is(err, filesystem.ErrCorrupt) &&
				!errors.Is(err, filesystem.ErrUnsupported) {
				return nil, err
			}
			firstErr = errors.Join(firstErr, err)
			continue
		}
		supers[i] = super
		if newest == nil || super.events > newest.events {
			newest = super
		}
	}
	if newest == nil {
		return nil, fmt.Errorf("no leg of RAID 1 volume %s can be read: %w", e.name, firstErr)
	}
	for i, super := range supers {
		// Legs are told of an event one after the other: one that is a single event behind saw all
		// that was written.
		if super == nil || newest.failed&(1<<i) != 0 || super.rebuilt != math.MaxUint64 || super.events+
			1 < newest.events {
			continue
		}
		name, _ := legs[2*i+1].(string)
		lv := b.m.lvs[name]
		if lv == nil {
			return nil, fmt.Errorf("%w: leg %q of volume %s does not exist", filesystem.ErrCorrupt, name, e.name)
		}
		runs, err := b.runs(lv, 0, s.count*b.m.extent, depth+1)
		if err == nil {
			return runs, nil
		}
		firstErr = errors.Join(firstErr, err)
	}
	return nil, fmt.Errorf("no leg of RAID 1 volume %s is in step: %w", e.name,
		errors.Join(filesystem.ErrUnsupported, firstErr))
}

func (b *builder) raidSuper(name any, position uint32, depth int) (*raidSuper, error) {
	text, _ := name.(string)
	v, err := b.reader(text, depth)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, sectorSize)
	if _, err := v.ReadAt(raw, 0); err != nil {
		return nil, fmt.Errorf("read the superblock in %s: %w", text, err)
	}
	le := binary.LittleEndian
	if string(raw[:4]) != "DmRd" {
		return nil, fmt.Errorf("%w: %s holds no superblock: the volume was never in use", filesystem.ErrUnsupported,
			text)
	}
	s := &raidSuper{position: le.Uint32(raw[12:]), events: le.Uint64(raw[16:]), failed: le.Uint64(raw[24:]),
		rebuilt: le.Uint64(raw[32:])}
	if s.position != position {
		return nil, fmt.Errorf("%w: %s says that it is leg %d, not %d", filesystem.ErrCorrupt, text, s.position,
			position)
	}
	return s, nil
}
