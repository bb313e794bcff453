package protect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// lockPause is between two looks at a machine that is being backed up.
const lockPause = 100 * time.Millisecond

// ManagedDisk names a disk of a pool.
type ManagedDisk struct {
	Name string
	ID   string // unique
}

// Snapshot makes a point of some disks of a machine. It reads what changed since the newest record
// of changes, whoever that belongs to, and leaves all records as they are: the machine's backups go
// on as if nothing had been.
type Snapshot struct {
	Name    string
	Disks   []string               // names; at least one
	Managed map[string]ManagedDisk // those of Disks that are managed
	// begin a record of changes for the next snapshot of these disks, apart from that of the
	// backups
	Track bool
}

// records are the records of changes that points of a machine count from, by disk.
type records struct {
	backups   map[string]string // disk → bitmap of the last backup that has the disk
	snapshots map[string]string // disk → bitmap of the last snapshot of it that began one
}

func recordsOf(points []*point.RecoveryPoint, m hypervisor.Machine) records {
	r := records{backups: map[string]string{}, snapshots: map[string]string{}}
	for _, p := range points {
		if !isMachines(p, m) {
			continue
		}
		for _, d := range p.Disks {
			switch {
			case !p.IsSnapshot():
				r.backups[d.Name] = d.Bitmap
			case d.Bitmap != "":
				r.snapshots[d.Name] = d.Bitmap
			}
		}
	}
	return r
}

// isMachines is isOf for snapshots too, which have no definition of a machine.
func isMachines(p *point.RecoveryPoint, m hypervisor.Machine) bool {
	if !p.IsSnapshot() {
		return isOf(p, m)
	}
	if p.VM == "" {
		return false
	}
	if m.UUID != "" || p.MachineUUID != "" {
		return p.MachineUUID == m.UUID
	}
	return p.VM == m.Name
}

// has reports whether changes of the disk are recorded since d.
func (r records) has(d point.Disk) bool {
	return d.Bitmap != "" && (d.Bitmap == r.backups[d.Name] || d.Bitmap == r.snapshots[d.Name])
}

// all returns every bitmap that a point counts from.
func (r records) all() []string {
	return append(names(r.backups, nil), names(r.snapshots, nil)...)
}

// besides returns the bitmaps to keep when a snapshot, or else a backup, of disks is done: all of
// the other kind, and this kind's bitmaps of disks not in this run.
func (r records) besides(snapshot bool, disks []string) []string {
	if snapshot {
		return append(names(r.backups, nil), names(r.snapshots, disks)...)
	}
	return names(r.snapshots, nil)
}

// names returns the bitmaps of all disks but some, each once.
func names(of map[string]string, but []string) []string {
	var out []string
	for disk, bitmap := range of {
		if bitmap != "" && !slices.Contains(but, disk) && !slices.Contains(out, bitmap) {
			out = append(out, bitmap)
		}
	}
	return out
}

// borrows reports whether a snapshot counts from a record that belongs to backups.
func (r *run) borrows(disk, bitmap string) bool {
	return r.req.Snapshot != nil && r.records.snapshots[disk] != bitmap
}

// snapshotLineage returns for every disk of m the newest state from which changes are recorded, of
// a backup or a snapshot, else the newest of all. Its last is the newest point among those.
func snapshotLineage(points []*point.RecoveryPoint, m hypervisor.Machine, disks []string) lineage {
	known := recordsOf(points, m)
	l := lineage{disks: map[string]diskOf{}}
	from := map[string]*point.RecoveryPoint{}
	for _, p := range points {
		if !isMachines(p, m) {
			continue
		}
		for _, d := range p.Disks {
			if old, ok := l.disks[d.Name]; !slices.Contains(disks, d.Name) ||
				ok && !known.has(d) && known.has(old.Disk) {
				continue
			}
			l.disks[d.Name], from[d.Name] = diskOf{d, p.ID}, p
		}
	}
	for _, p := range from {
		if l.last == nil || point.ByTime(p, l.last) > 0 {
			l.last = p
		}
	}
	return l
}

// prepareSnapshot is the rest of prepare for a snapshot: neither definition nor files of the
// machine are of its business.
func (r *run) prepareSnapshot(points []*point.RecoveryPoint) error {
	m, snap := r.req.Machine, r.req.Snapshot
	for _, name := range snap.Disks {
		i := slices.IndexFunc(m.Disks, func(d hypervisor.Disk) bool { return d.Name == name })
		if i < 0 && len(m.Disks) == 0 {
			return fmt.Errorf("take a snapshot of disk %s: machine %s has no disks", name, m.Name)
		}
		if i < 0 {
			return fmt.Errorf("take a snapshot of disk %s: machine %s has only %v", name, m.Name, diskNames(m.Disks))
		}
		if !slices.Contains(diskNames(r.disks), name) {
			r.disks = append(r.disks, m.Disks[i])
		}
	}
	if len(r.disks) == 0 {
		return ErrNoDisks
	}
	r.lineage = snapshotLineage(points, m, snap.Disks)
	r.result = &point.RecoveryPoint{
		ID: point.NewID(), Kind: point.Snapshot, Name: snap.Name, VM: m.Name, MachineUUID: m.UUID, Tags: r.req.Tags,
		Holdfast:   r.Version,
		Definition: point.Definition{Kind: point.OnlyDisks},
	}
	if r.lineage.last != nil {
		r.result.Parent = r.lineage.last.ID
	}
	return nil
}

// manage notes which managed disk d is.
func (r *run) manage(d point.Disk) point.Disk {
	if r.req.Snapshot != nil {
		managed := r.req.Snapshot.Managed[d.Name]
		d.Managed, d.ManagedID = managed.Name, managed.ID
	}
	return d
}

// lock takes the machine. A snapshot waits for a backup that runs; of two backups the second is
// refused.
func (r *run) lock(ctx context.Context) (unlock func(), err error) {
	told := false
	for {
		unlock, err = lockMachine(r.StateDir, r.req.Machine)
		if r.req.Snapshot == nil || !errors.Is(err, capture.ErrBusy) {
			return unlock, err
		}
		if !told {
			r.Log("waiting: %v", err)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(lockPause):
		}
	}
}
