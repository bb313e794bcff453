package protect

import (
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// lineage is what the vault knows of a machine.
type lineage struct {
	last  *point.RecoveryPoint  // nil for a machine that is new to the vault
	disks map[string]point.Disk // the latest state of each disk, in whichever point that is
}

// lineageOf picks the backups of m from points, oldest first. A snapshot of some disks is not a
// backup.
func lineageOf(points []*point.RecoveryPoint, m hypervisor.Machine) lineage {
	return collect(points, func(p *point.RecoveryPoint) bool { return !p.IsSnapshot() && isOf(p, m) })
}

// newestOf returns a filter for the points from which records and lineages of m are found: the
// newest of each kind, whole, of each disk, and with a record of changes, and few others.
func newestOf(m hypervisor.Machine) func(*point.RecoveryPoint) bool {
	return point.Newest(func(p *point.RecoveryPoint) []string {
		if !isMachines(p, m) {
			return nil
		}
		keys := []string{string(p.Kind)}
		for _, d := range p.Disks {
			if keys = append(keys, string(p.Kind)+"\x00"+d.Name); d.Bitmap != "" {
				keys = append(keys, string(p.Kind)+"\x00"+d.Name+"\x00record")
			}
		}
		return keys
	})
}

// newestOfImages is newestOf for what imageLineage or managedLineage looks for.
func newestOfImages(r ImageRequest) func(*point.RecoveryPoint) bool {
	return point.Newest(func(p *point.RecoveryPoint) (keys []string) {
		if !r.snapshot() {
			if isImageOf(p, r.Name) {
				keys = append(keys, "")
				for _, d := range p.Disks {
					keys = append(keys, d.Name)
				}
			}
			return keys
		}
		for _, d := range p.Disks {
			if d.ManagedID != "" && slices.ContainsFunc(r.Managed, func(m ManagedDisk) bool {
				return m.ID == d.ManagedID
			}) {
				keys = append(keys, d.ManagedID)
			}
		}
		return keys
	})
}

// isOf reports whether p is a point of m, whole or of some of its disks.
func isOf(p *point.RecoveryPoint, m hypervisor.Machine) bool {
	if p.Definition.Kind == point.OnlyDisks {
		return false
	}
	if m.UUID != "" || p.MachineUUID != "" {
		return p.MachineUUID == m.UUID
	}
	return p.VM == m.Name
}

// imageLineage picks the points of an image backup of that name.
func imageLineage(points []*point.RecoveryPoint, name string) lineage {
	return collect(points, func(p *point.RecoveryPoint) bool { return isImageOf(p, name) })
}

func isImageOf(p *point.RecoveryPoint, name string) bool {
	return !p.IsSnapshot() && p.Definition.Kind == point.OnlyDisks && p.VM == name
}

// managedLineage picks the latest state of each managed disk, by its unique ID, from all snapshots.
func managedLineage(points []*point.RecoveryPoint, disks []ManagedDisk) lineage {
	l := lineage{disks: map[string]point.Disk{}}
	for _, p := range points {
		for _, d := range p.Disks {
			for _, m := range disks {
				if d.ManagedID == m.ID && m.ID != "" {
					l.last, l.disks[m.Name] = p, d
				}
			}
		}
	}
	return l
}

func collect(points []*point.RecoveryPoint, ours func(*point.RecoveryPoint) bool) lineage {
	l := lineage{disks: map[string]point.Disk{}}
	for _, p := range points {
		if !ours(p) {
			continue
		}
		l.last = p
		for _, d := range p.Disks {
			l.disks[d.Name] = d
		}
	}
	return l
}

// disk returns the latest state of a disk, or nil.
func (l lineage) disk(name string) *point.Disk {
	if d, ok := l.disks[name]; ok {
		return &d
	}
	return nil
}

// base returns the tree to compare a disk with: that of its last point if its size is still the
// same, else a disk of holes.
func (l lineage) base(name string, size int64) tree {
	if d, ok := l.disks[name]; ok && d.Size == size {
		return tree{root: d.Root, used: d.Used}
	}
	return tree{}
}

// changes says in words what is not as it was in the last point.
func (l lineage) changes(disks []hypervisor.Disk, left []string) []string {
	var out []string
	for _, name := range left {
		out = append(out, fmt.Sprintf("disk %s was left out as asked", name))
	}
	if l.last == nil {
		return out
	}
	now := map[string]bool{}
	for _, name := range left {
		now[name] = true
	}
	before := map[string]point.Disk{}
	for _, d := range l.last.Disks {
		before[d.Name] = d
	}
	for _, d := range disks {
		now[d.Name] = true
		switch old, ok := before[d.Name]; {
		case !ok:
			out = append(out, fmt.Sprintf("disk %s is new since the last point", d.Name))
		case old.Size != d.Size:
			out = append(out, fmt.Sprintf("disk %s had %d bytes in the last point and has %d now", d.Name, old.Size,
				d.Size))
		}
	}
	for _, d := range l.last.Disks {
		if !now[d.Name] {
			out = append(out, fmt.Sprintf("disk %s of the last point is gone", d.Name))
		}
	}
	return out
}
