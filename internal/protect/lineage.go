package protect

import (
	"context"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// lineage is what the vault knows of a machine.
type lineage struct {
	last  *point.RecoveryPoint // nil for a machine that is new to the vault
	disks map[string]diskOf    // the latest state of each disk, in whichever point that is
}

// diskOf is a disk with the point that has it.
type diskOf struct {
	point.Disk
	of point.ID
}

// recently is how many of a machine's newest points are looked at: a disk that is in none of them
// is read whole, as one that is new.
const recently = 64

// newest returns the newest points that words find, each once, oldest first.
func newest(ctx context.Context, v *vault.Vault, words ...vault.By) ([]*point.RecoveryPoint, error) {
	var out []*point.RecoveryPoint
	for _, by := range words {
		found, err := v.Recent(ctx, by, recently)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	slices.SortFunc(out, point.ByTime)
	return slices.CompactFunc(out, func(a, b *point.RecoveryPoint) bool { return a.ID == b.ID }), nil
}

// pointsOf returns the newest backups of m and the newest snapshots of its disks, oldest first.
func pointsOf(ctx context.Context, v *vault.Vault, m hypervisor.Machine) ([]*point.RecoveryPoint, error) {
	if m.UUID != "" {
		return newest(ctx, v, vault.OfMachine(m.UUID), vault.SnapshotsOfMachine(m.UUID))
	}
	return newest(ctx, v, vault.OfVM(m.Name), vault.SnapshotsOfVM(m.Name))
}

// pointsOfImages returns the newest points that imageLineage or managedLineage looks for.
func pointsOfImages(ctx context.Context, v *vault.Vault, r ImageRequest) ([]*point.RecoveryPoint, error) {
	if !r.snapshot() {
		return newest(ctx, v, vault.OfVM(r.Name))
	}
	var words []vault.By
	for _, m := range r.Managed {
		if m.ID != "" {
			words = append(words, vault.OfManagedDisk(m.ID))
		}
	}
	return newest(ctx, v, words...)
}

// lineageOf picks the backups of m from points, oldest first. A snapshot of some disks is not a
// backup.
func lineageOf(points []*point.RecoveryPoint, m hypervisor.Machine) lineage {
	return collect(points, func(p *point.RecoveryPoint) bool { return !p.IsSnapshot() && isOf(p, m) })
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
	l := lineage{disks: map[string]diskOf{}}
	for _, p := range points {
		for _, d := range p.Disks {
			for _, m := range disks {
				if d.ManagedID == m.ID && m.ID != "" {
					l.last, l.disks[m.Name] = p, diskOf{d, p.ID}
				}
			}
		}
	}
	return l
}

func collect(points []*point.RecoveryPoint, ours func(*point.RecoveryPoint) bool) lineage {
	l := lineage{disks: map[string]diskOf{}}
	for _, p := range points {
		if !ours(p) {
			continue
		}
		l.last = p
		for _, d := range p.Disks {
			l.disks[d.Name] = diskOf{d, p.ID}
		}
	}
	return l
}

// disk returns the latest state of a disk, or nil.
func (l lineage) disk(name string) *point.Disk {
	if d, ok := l.disks[name]; ok {
		return &d.Disk
	}
	return nil
}

// keep tells a session of the points whose disks the new one may have as they are.
func (l lineage) keep(ctx context.Context, s *vault.Session) error {
	told := map[point.ID]bool{}
	for _, d := range l.disks {
		if told[d.of] {
			continue
		}
		if err := s.Keep(ctx, d.of); err != nil {
			return err
		}
		told[d.of] = true
	}
	return nil
}

// base returns the tree to compare a disk with: that of its last point if its size is still the
// same, else a disk of holes.
func (l lineage) base(name string, size int64) tree {
	if d, ok := l.disks[name]; ok && d.Size == size {
		return tree{root: d.Root, used: d.Used, of: d.of}
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
