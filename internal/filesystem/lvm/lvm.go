// Package lvm reads LVM2: which physical volumes there are, what their groups hold, and the bytes
// of logical volumes.
//
// A [Reader] looks for a physical volume on a disk or partition; [Assemble] puts all that were
// found, of all disks, together. Of a group's copies of metadata the newest whole one counts.
// Linear, striped, mirrored and RAID 1 volumes are read; of the others each says what it is, in an
// error that is filesystem.ErrUnsupported. A volume that needs a physical volume which is not there
// says so, and the others are readable. Metadata is not trusted: it is bounded before it is parsed,
// and references end.
//
// All offsets and sizes are bytes.
package lvm

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// ErrMissing reports that a physical volume is on none of the disks.
var ErrMissing = errors.New("a physical volume is missing")

// Group is a volume group.
type Group struct {
	Name, UUID string
	Sequence   int64 // of the metadata that is used
	Volumes    []*Volume
	Notes      []string // in words: copies of metadata that were passed over, physical volumes that are missing
}

// Volume is a logical volume as `lvs` lists it. It is safe for concurrent use.
type Volume struct {
	Name, UUID string
	Size       int64
	// Err is why it cannot be read: filesystem.ErrUnsupported, filesystem.ErrCorrupt or
	// ErrMissing; nil where it can.
	Err error
	// PVs are the indexes, in what Assemble was given, of the physical volumes that it is read
	// from, ascending.
	PVs []int

	runs []run
}

// run is a part of a volume: consecutive bytes of one physical volume, or a number of them in
// stripes.
type run struct {
	off, size int64
	skip      int64    // bytes of the stripes before off
	stripe    int64    // bytes of one member before the next one's turn; 0 where there is one member
	members   []member // none: zeros
}

type member struct {
	r   io.ReaderAt
	pv  int   // index of the physical volume
	off int64 // in it
}

// ReadAt implements io.ReaderAt.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if v.Err != nil {
		return 0, v.Err
	}
	if off < 0 {
		return 0, fmt.Errorf("read logical volume %s: offset %d", v.Name, off)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= v.Size {
			return done, io.EOF
		}
		n, err := v.readSome(p[done:], at)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// readSome reads what is together of the range from off.
func (v *Volume) readSome(p []byte, off int64) (int, error) {
	i, _ := slices.BinarySearchFunc(v.runs, off, func(r run, off int64) int {
		switch {
		case r.off+r.size <= off:
			return -1
		case r.off > off:
			return 1
		}
		return 0
	})
	r := &v.runs[i] // the runs of a volume without Err cover it all
	in := off - r.off
	p = p[:min(int64(len(p)), r.size-in)]
	switch {
	case len(r.members) == 0:
		clear(p)
		return len(p), nil
	case len(r.members) == 1:
		return r.members[0].read(p, in)
	}
	in += r.skip
	row, rest := in/(r.stripe*int64(len(r.members))), in%(r.stripe*int64(len(r.members)))
	m := r.members[rest/r.stripe]
	p = p[:min(int64(len(p)), r.stripe-rest%r.stripe)]
	return m.read(p, row*r.stripe+rest%r.stripe)
}

func (m member) read(p []byte, off int64) (int, error) {
	n, err := m.r.ReadAt(p, m.off+off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: a physical volume is cut off", filesystem.ErrCorrupt)
	}
	return n, err
}

// Assemble makes the groups of all physical volumes, by name.
func Assemble(pvs []*PV) []*Group { return assemble(pvs, maxWork) }

func assemble(pvs []*PV, left int) []*Group {
	byGroup := map[string]*meta{} // newest of each
	var notes = map[string][]string{}
	for _, pv := range pvs {
		for _, m := range pv.metas {
			notes[m.uuid] = append(notes[m.uuid], pv.Notes...)
			if best := byGroup[m.uuid]; best == nil || m.seqno > best.seqno {
				byGroup[m.uuid] = m
			}
		}
	}
	var out []*Group
	for _, id := range slices.Sorted(maps.Keys(byGroup)) {
		g := build(byGroup[id], pvs, &left)
		g.Notes = append(g.Notes, notes[id]...)
		slices.Sort(g.Notes)
		g.Notes = slices.Compact(g.Notes)
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *Group) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.UUID, b.UUID)
	})
	return out
}
