package lvm

import (
	"fmt"
	"io"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	maxNesting = 8       // volumes made of volumes
	maxRuns    = 1 << 20 // parts of one volume
	maxWork    = 1 << 20 // segments and stripes looked at for all groups
)

// builder makes the volumes of one group.
type builder struct {
	m         *meta
	pvs       map[string][]int // indexes of all that carry a UUID
	all       []*PV
	snapshots map[string]string // volume that holds a snapshot's changes: its origin
	merging   map[string]bool   // origins into which a snapshot is being merged
	left      *int              // segments and stripes that may still be looked at
}

func build(m *meta, pvs []*PV, left *int) *Group {
	b := &builder{m: m, all: pvs, pvs: map[string][]int{}, snapshots: map[string]string{}, merging: map[string]bool{},
		left: left}
	for i, pv := range pvs {
		b.pvs[pv.UUID] = append(b.pvs[pv.UUID], i)
	}
	g := &Group{Name: m.name, UUID: m.uuid, Sequence: m.seqno}
	for name, p := range m.pvs {
		if n := len(b.pvs[p.uuid]); n != 1 || p.missing {
			g.Notes = append(g.Notes, fmt.Sprintf("%s: %v", m.name, b.absent(name)))
		}
	}
	b.findSnapshots()
	for _, name := range m.order {
		// What holds a snapshot's changes is marked as hidden, and listed all the same: it is the
		// snapshot's name.
		if _, snapshot := b.snapshots[name]; (m.lvs[name].visible || snapshot) && !isSnapshotLink(m.lvs[name]) {
			g.Volumes = append(g.Volumes, b.volume(m.lvs[name]))
		}
	}
	return g
}

// absent says why a physical volume of the group cannot be read.
func (b *builder) absent(name string) error {
	p := b.m.pvs[name]
	switch n := len(b.pvs[p.uuid]); {
	case n > 1:
		return fmt.Errorf("%w: %d disks or partitions say that they are physical volume %s", filesystem.ErrCorrupt, n,
			p.uuid)
	case n == 1:
		return fmt.Errorf("%w: %s (%s, was %s) had failed before, what it holds is old", ErrMissing, name, p.uuid,
			p.device)
	}
	return fmt.Errorf("%w: %s (%s, was %s) is on none of the disks", ErrMissing, name, p.uuid, p.device)
}

// findSnapshots notes which volumes hold the changes of old-style snapshots. LVM lists these under
// their own names, and describes them in hidden volumes of type snapshot.
func (b *builder) findSnapshots() {
	for _, v := range b.m.lvs {
		for _, s := range v.segments {
			if s.kind != "snapshot" {
				continue
			}
			origin := s.raw.str("origin")
			if cow := s.raw.str("cow_store"); cow != "" {
				b.snapshots[cow] = origin
			}
			if store := s.raw.str("merging_store"); store != "" {
				b.snapshots[store] = origin
				b.merging[origin] = true
			}
		}
	}
}

func isSnapshotLink(v *lvEntry) bool {
	return len(v.segments) == 1 && v.segments[0].kind == "snapshot"
}

func (b *builder) volume(e *lvEntry) *Volume {
	v := &Volume{Name: e.name, UUID: e.uuid, Size: e.extents() * b.m.extent}
	origin, snapshot := b.snapshots[e.name]
	switch {
	case snapshot:
		v.Err = fmt.Errorf("%w: it is a snapshot of %s", filesystem.ErrUnsupported, origin)
	case b.merging[e.name]:
		v.Err = fmt.Errorf("%w: a snapshot is being merged into it", filesystem.ErrUnsupported)
	default:
		v.runs, v.Err = b.runs(e, 0, v.Size, 0)
	}
	if v.Err != nil {
		v.runs = nil
	}
	v.PVs = b.users(v.runs)
	return v
}

// work takes n from what may still be looked at.
func (b *builder) work(n int) error {
	if *b.left < n {
		return fmt.Errorf("%w: volumes made of volumes, too many times", filesystem.ErrUnsupported)
	}
	*b.left -= n
	return nil
}

// users returns the indexes of the physical volumes that runs are read from.
func (b *builder) users(runs []run) []int {
	var out []int
	for _, r := range runs {
		for _, m := range r.members {
			out = append(out, m.pv)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// runs returns the runs of the bytes [off, off+size) of a volume, counted from off.
func (b *builder) runs(e *lvEntry, off, size int64, depth int) ([]run, error) {
	if depth > maxNesting {
		return nil, fmt.Errorf("%w: volume %s is made of itself", filesystem.ErrCorrupt, e.name)
	}
	if off < 0 || size < 0 || off > e.extents()*b.m.extent-size {
		return nil, fmt.Errorf("%w: more of volume %s is used than it has", filesystem.ErrCorrupt, e.name)
	}
	var out []run
	for _, s := range e.segments {
		if err := b.work(1); err != nil {
			return nil, err
		}
		begin, end := s.start*b.m.extent, (s.start+s.count)*b.m.extent
		if end <= off || begin >= off+size {
			continue
		}
		part, err := b.segment(e, s, depth)
		if err != nil {
			return nil, err
		}
		for _, r := range part {
			r.off += begin
			if clipped, ok := r.clip(off, size); ok {
				out = append(out, clipped)
			}
		}
		if len(out) > maxRuns {
			return nil, fmt.Errorf("%w: volume %s is in more than %d parts", filesystem.ErrUnsupported, e.name, maxRuns)
		}
	}
	return out, nil
}

// clip returns the part of r inside the window, counted from its beginning. Stripes are only taken
// whole.
func (r run) clip(off, size int64) (run, bool) {
	begin, end := max(r.off, off), min(r.off+r.size, off+size)
	if begin >= end {
		return run{}, false
	}
	cut := begin - r.off
	if len(r.members) == 1 {
		r.members = []member{{r: r.members[0].r, pv: r.members[0].pv, off: r.members[0].off + cut}}
		cut = 0
	}
	r.skip += cut
	r.off, r.size = begin-off, end-begin
	return r, true
}

func (b *builder) segment(e *lvEntry, s segment, depth int) ([]run, error) {
	size := s.count * b.m.extent
	switch s.kind {
	case "striped", "linear":
		return b.striped(e, s, depth)
	case "mirror":
		// The first leg is the one that is read where the others are not yet in step; who loses it
		// makes another the first.
		return b.area(e, s.raw.list("mirrors"), 0, size, depth)
	case "raid1":
		return b.raid1(e, s, depth)
	case "zero":
		return []run{{size: size}}, nil
	}
	return nil, fmt.Errorf("%w: %s", filesystem.ErrUnsupported, kindText(s.kind))
}

func kindText(kind string) string {
	switch kind {
	case "thin-pool":
		return "it is an LVM thin pool"
	case "thin":
		return "it is in an LVM thin pool"
	case "cache", "writecache":
		return "it is an LVM volume with a " + kind
	case "cache-pool":
		return "it is an LVM cache pool"
	case "vdo", "vdo-pool":
		return "it is in an LVM VDO pool"
	}
	return fmt.Sprintf("LVM segments of type %q", kind)
}

func (b *builder) striped(e *lvEntry, s segment, depth int) ([]run, error) {
	areas := s.raw.list("stripes")
	n := int64(len(areas) / 2)
	if n == 0 || s.raw.number("stripe_count") != n {
		return nil, fmt.Errorf("%w: the stripes of volume %s", filesystem.ErrCorrupt, e.name)
	}
	size := s.count * b.m.extent
	if n == 1 {
		return b.area(e, areas, 0, size, depth)
	}
	if err := b.work(int(n)); err != nil {
		return nil, err
	}
	stripe := s.raw.number("stripe_size") * sectorSize
	if stripe <= 0 || s.count%n != 0 || (size/n)%stripe != 0 {
		return nil, fmt.Errorf("%w: volume %s has %d extents in %d stripes of %d bytes", filesystem.ErrCorrupt, e.name,
			s.count, n, stripe)
	}
	r := run{size: size, stripe: stripe}
	for i := range n {
		part, err := b.area(e, areas, int(i), size/n, depth)
		if err != nil {
			return nil, err
		}
		if len(part) != 1 || len(part[0].members) != 1 {
			return nil, fmt.Errorf("%w: the stripes of volume %s are made of other volumes", filesystem.ErrUnsupported,
				e.name)
		}
		r.members = append(r.members, part[0].members[0])
	}
	return []run{r}, nil
}

// area returns size bytes of the i-th pair of name and first extent in list: of a physical volume
// or of another volume.
func (b *builder) area(e *lvEntry, list []any, i int, size int64, depth int) ([]run, error) {
	if len(list) < 2*i+2 {
		return nil, fmt.Errorf("%w: volume %s lacks what it is made of", filesystem.ErrCorrupt, e.name)
	}
	name, ok := list[2*i].(string)
	first, ok2 := list[2*i+1].(int64)
	if !ok || !ok2 || first < 0 || first > 1<<62/b.m.extent {
		return nil, fmt.Errorf("%w: what volume %s is made of", filesystem.ErrCorrupt, e.name)
	}
	if lv := b.m.lvs[name]; lv != nil {
		return b.runs(lv, first*b.m.extent, size, depth+1)
	}
	p, ok := b.m.pvs[name]
	if !ok {
		return nil, fmt.Errorf("%w: volume %s is on %q, which does not exist", filesystem.ErrCorrupt, e.name, name)
	}
	if first > p.count || size > (p.count-first)*b.m.extent {
		return nil, fmt.Errorf("%w: volume %s is beyond the end of physical volume %s", filesystem.ErrCorrupt, e.name,
			name)
	}
	found := b.pvs[p.uuid]
	if len(found) != 1 || p.missing {
		return nil, b.absent(name)
	}
	return []run{{size: size, members: []member{{r: b.all[found[0]].r, pv: found[0],
		off: p.start + first*b.m.extent}}}}, nil
}

// reader makes a part of a volume readable, for the superblocks of RAID.
func (b *builder) reader(name string, depth int) (*Volume, error) {
	lv := b.m.lvs[name]
	if lv == nil {
		return nil, fmt.Errorf("%w: volume %s does not exist", filesystem.ErrCorrupt, name)
	}
	size := lv.extents() * b.m.extent
	runs, err := b.runs(lv, 0, size, depth+1)
	if err != nil {
		return nil, err
	}
	return &Volume{Name: name, Size: size, runs: runs}, nil
}

var _ io.ReaderAt = (*Volume)(nil)
