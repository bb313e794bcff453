// Package volume finds everything on the disks of a machine that can hold files: partitions,
// logical volumes, whole disks.
//
// [Scan] looks at all disks together, since LVM spans them, and reads only what says what is where.
// A file system is opened when it is first asked for, once. What cannot be read is listed too,
// with the reason. [Volumes.Guest] puts file systems together as the guest's own /etc/fstab does,
// so that a path means what it means inside.
//
// Whoever wrote the disks is not trusted: volumes, mounts and the text of LVM are counted, and what
// is beyond a limit is left out with a note. Everything here is safe for concurrent use once Scan
// has returned. Offsets and sizes are bytes.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/lvm"
	"github.com/holdfast-vm/holdfast/internal/filesystem/partition"
)

// Disk is a disk of the machine.
type Disk struct {
	Name   string // vda
	Size   int64
	Reader io.ReaderAt // safe for concurrent use
}

// Volumes is what Scan found.
type Volumes struct {
	List  []*Volume // disk by disk, then logical volumes by group
	Notes []string  // in words: damaged tables of which a backup was used, missing physical volumes

	ctx   context.Context // ends what is done with it; nil does not
	disks []Disk
	lvm   lvm.Reader
	pvs   []*lvm.PV
	pvOf  []*Volume // for each of pvs
	left  int       // volumes that are not in the list since there are too many

	guestOnce sync.Once
	guest     *Guest
	guestErr  error
}

// Volume is a place for a file system.
type Volume struct {
	Name                string   // vda1, vg0/root, vdb
	Disks               []string // that it is on
	Offset              int64    // on its disk; of a logical volume 0
	Size                int64
	Logical             bool   // whether it is a logical volume
	Type                string // as blkid calls it; "" where nothing is known
	Label, UUID         string // of the file system
	PartLabel, PartUUID string

	ctx  context.Context
	r    io.ReaderAt
	open func(io.ReaderAt, int64) (filesystem.FS, error)

	mu  sync.Mutex
	err error // why it cannot be opened, known from the scan or from trying
	fs  filesystem.FS
}

// ErrNoFiles reports a volume that holds no file system: nothing that is known, swap, or a part of
// something else.
var ErrNoFiles = errors.New("it holds no files")

// Open opens the file system, unless it is open. The error says why it cannot be read:
// filesystem.ErrUnsupported, filesystem.ErrCorrupt, lvm.ErrMissing, ErrNoFiles, or what reading the
// disk returned.
func (v *Volume) Open() (filesystem.FS, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.opened()
}

func (v *Volume) opened() (filesystem.FS, error) {
	if v.fs != nil || v.err != nil || v.open == nil {
		return v.fs, v.err
	}
	f, err := v.open(v.r, v.Size)
	if errors.Is(err, filesystem.ErrNotThis) { // it claimed to be one and is not
		err = fmt.Errorf("%w: it begins as %s does, and is none", filesystem.ErrCorrupt, v.Type)
	}
	if err != nil {
		v.err = fmt.Errorf("open %s on %s: %w", v.Type, v.Name, err)
		return nil, v.err
	}
	v.fs = f
	return v.fs, nil
}

// Close forgets the file system and what was read of it; whoever has it goes on with it. Another
// Open reads it again.
func (v *Volume) Close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fs = nil
}

// Info opens the file system for as long as it takes to know what it is, and leaves it as it was.
func (v *Volume) Info() (filesystem.Info, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	before := v.fs
	f, err := v.opened()
	if err != nil {
		return filesystem.Info{}, err
	}
	v.fs = before
	return f.Info(), nil
}

// Scan looks at disks. What cannot be read of one is the error of that volume; the others are
// found. Ctx ends what is done with what it returns, too.
func Scan(ctx context.Context, disks []Disk) *Volumes {
	v := &Volumes{ctx: ctx, disks: disks}
	for _, d := range disks {
		v.scanDisk(&Volume{Name: d.Name, Disks: []string{d.Name}, Size: d.Size, r: d.Reader})
	}
	v.scanGroups()
	if v.left > 0 {
		v.note("there are more than %d volumes: %d are left out", maxVolumes, v.left)
	}
	return v
}

const (
	maxVolumes = 4096 // of all disks
	maxNotes   = 1000
)

// take adds a volume to the list, unless that is full.
func (v *Volumes) take(vol *Volume) bool {
	if len(v.List) == maxVolumes {
		v.left++
		return false
	}
	vol.ctx = v.ctx
	v.List = append(v.List, vol)
	return true
}

func (v *Volumes) note(format string, args ...any) {
	if len(v.Notes) < maxNotes {
		v.Notes = append(v.Notes, fmt.Sprintf(format, args...))
	}
}

// Find returns the volume with a name, nil if there is none.
func (v *Volumes) Find(name string) *Volume {
	for _, vol := range v.List {
		if vol.Name == name {
			return vol
		}
	}
	return nil
}

// scanDisk takes in what is on whole: its partitions, or itself.
func (v *Volumes) scanDisk(whole *Volume) {
	table, err := partition.Read(whole.r, whole.Size)
	if err == nil && table.Kind == partition.MBR {
		table = v.sectorSize(whole, table)
	}
	switch {
	case errors.Is(err, filesystem.ErrNotThis):
		v.add(whole)
		return
	case err != nil:
		whole.err = fmt.Errorf("partitions of %s: %w", whole.Name, err)
		v.take(whole)
		return
	}
	for _, note := range table.Notes {
		v.note("%s: %s", whole.Name, note)
	}
	for _, p := range table.Partitions {
		vol := &Volume{Name: partition.Name(whole.Name, p.Number), Disks: whole.Disks, Offset: whole.Offset + p.Offset,
			Size:      p.Size,
			PartLabel: p.Label, PartUUID: p.UUID, Logical: whole.Logical,
			r: io.NewSectionReader(whole.r, p.Offset, p.Size)}
		v.add(vol)
	}
}

// sectorSize decides what the numbers of an MBR count: sectors of 4096 bytes if nothing is known at
// any place where it would be with 512, and something is with 4096.
func (v *Volumes) sectorSize(whole *Volume, table *partition.Table) *partition.Table {
	if known(whole, table) {
		return table
	}
	if wide, err := partition.ReadMBR(whole.r, whole.Size, 4096); err == nil && known(whole, wide) {
		return wide
	}
	return table
}

func known(whole *Volume, table *partition.Table) bool {
	for _, p := range table.Partitions {
		r := io.NewSectionReader(whole.r, p.Offset, p.Size)
		if f, err := identify(r, p.Size); err != nil || f.kind != "" {
			return true
		}
		if lvm.IsPV(r, p.Size) {
			return true
		}
	}
	return false
}

// add takes in a volume and finds out what is on it.
func (v *Volumes) add(vol *Volume) {
	if !v.take(vol) {
		return
	}
	found, err := identify(vol.r, vol.Size)
	if err != nil {
		vol.err = fmt.Errorf("look at %s: %w", vol.Name, err)
		return
	}
	vol.Type, vol.Label, vol.UUID = found.kind, found.label, found.uuid
	switch {
	case found.open != nil:
		vol.open = found.open
	case found.kind != "":
		vol.err = fmt.Errorf("%s: %w", vol.Name, found.reason)
	default:
		v.addPV(vol)
	}
}

// addPV takes in a volume that may be a physical volume of LVM.
func (v *Volumes) addPV(vol *Volume) {
	pv, err := v.lvm.PV(vol.r, vol.Size)
	switch {
	case errors.Is(err, filesystem.ErrNotThis):
		vol.err = fmt.Errorf("%s: %w: nothing that is known is on it", vol.Name, ErrNoFiles)
		return
	case err != nil:
		vol.err = fmt.Errorf("look at %s: %w", vol.Name, err)
		return
	}
	vol.Type, vol.UUID = "LVM2_member", pv.UUID
	if vol.Logical {
		vol.err = fmt.Errorf("%s: %w: an LVM physical volume within a logical volume", vol.Name,
			filesystem.ErrUnsupported)
		return
	}
	v.pvs, v.pvOf = append(v.pvs, pv), append(v.pvOf, vol)
}

// scanGroups takes in the logical volumes.
func (v *Volumes) scanGroups() {
	groups := lvm.Assemble(v.pvs)
	names := map[string]int{}
	for _, g := range groups {
		names[g.Name]++
	}
	for _, g := range groups {
		name := g.Name
		if names[name] > 1 && len(g.UUID) > 6 {
			name += "@" + g.UUID[:6] // the disks of two machines, or a clone
		}
		for _, note := range g.Notes {
			v.note("%s", note)
		}
		for _, lv := range g.Volumes {
			v.addLogical(name, lv)
		}
	}
	for i, pv := range v.pvs {
		in := "a volume group"
		if pv.Group != "" {
			in = "volume group " + pv.Group
		}
		v.pvOf[i].err = fmt.Errorf("%s: %w: it is a part of %s", v.pvOf[i].Name, ErrNoFiles, in)
	}
}

func (v *Volumes) addLogical(group string, lv *lvm.Volume) {
	vol := &Volume{Name: group + "/" + lv.Name, Size: lv.Size, Logical: true, r: lv}
	seen := map[string]bool{}
	for _, i := range lv.PVs {
		for _, d := range v.pvOf[i].Disks {
			if !seen[d] {
				seen[d] = true
				vol.Disks = append(vol.Disks, d)
			}
		}
	}
	if lv.Err != nil {
		vol.err = fmt.Errorf("%s: %w", vol.Name, lv.Err)
		v.take(vol)
		return
	}
	v.scanDisk(vol)
}

// Of returns a volume whose file system is open already.
func Of(name string, f filesystem.FS) *Volume {
	info := f.Info()
	return &Volume{Name: name, Disks: []string{name}, Size: info.Size, Type: info.Type, Label: info.Label,
		UUID: info.UUID,
		open: func(io.ReaderAt, int64) (filesystem.FS, error) { return f, nil }}
}
