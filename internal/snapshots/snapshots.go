// Package snapshots finds, compares, deletes and accounts for snapshots: points of some disks that
// are kept until somebody deletes them.
//
// A snapshot is stored by its differences and is full in meaning: it can be read, restored and
// deleted whatever becomes of its disk, its machine and all other snapshots. Taking one is the work
// of package protect. What is sold for the space is its used size for the time it existed; the
// vault's ledger remembers those that were deleted.
//
// A diff stream carries the difference of two snapshots of a disk to where neither vault nor key
// are: docs/formats/diff-stream.md.
package snapshots

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

var (
	// ErrNoSnapshot reports that the vault has no snapshot of the name or ID.
	ErrNoSnapshot = errors.New("no such snapshot")
	// ErrAmbiguous reports that several snapshots match.
	ErrAmbiguous = errors.New("several snapshots match")
	// ErrExists reports that a snapshot of the name is there.
	ErrExists = errors.New("a snapshot of this name exists already")
)

var (
	nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)
	idRule   = regexp.MustCompile(`^[0-9a-f]{1,32}$`)
)

// CheckName returns an error unless name can be given to a snapshot.
func CheckName(name string) error {
	switch {
	case !nameRule.MatchString(name):
		return fmt.Errorf("%q is no name for a snapshot: it takes 1 to 128 letters, digits and . _ : -, and begins "+
			"with a letter or digit", name)
	case idRule.MatchString(name):
		return fmt.Errorf("%q is no name for a snapshot: it would be taken for the beginning of an ID", name)
	}
	return nil
}

// DefaultName returns what a snapshot is called that was given no name.
func DefaultName(of string, t time.Time) string {
	clean := regexp.MustCompile(`[^A-Za-z0-9._-]+`).ReplaceAllString(of, "-")
	return strings.Trim(clean[:min(len(clean), 80)], "-.") + "-" + t.UTC().Format("20060102-150405.000")
}

// Find returns the snapshot that ref names: its name, or the beginning of its ID.
func Find(ctx context.Context, v *vault.Vault, ref string) (*point.RecoveryPoint, error) {
	if idRule.MatchString(ref) {
		return byID(ctx, v, ref)
	}
	found, err := v.Recent(ctx, vault.Named(ref), math.MaxInt)
	if err != nil {
		return nil, err
	}
	p, err := ByName(found, ref)
	if err != nil {
		return nil, err
	}
	return v.Point(ctx, string(p.ID))
}

func byID(ctx context.Context, v *vault.Vault, ref string) (*point.RecoveryPoint, error) {
	p, err := v.Point(ctx, ref)
	switch {
	case errors.Is(err, vault.ErrNoPoint):
		return nil, fmt.Errorf("%w: none is called %q, and no ID begins so", ErrNoSnapshot, ref)
	case err == nil && !p.IsSnapshot():
		return nil, fmt.Errorf("%w: %s is a recovery point of %s", ErrNoSnapshot, ref, p.VM)
	}
	return p, err
}

// ByName returns the snapshot of that name among points.
func ByName(points []*point.RecoveryPoint, name string) (*point.RecoveryPoint, error) {
	var found []*point.RecoveryPoint
	var ids []string
	for _, p := range points {
		if p.IsSnapshot() && p.Name == name {
			found = append(found, p)
			ids = append(ids, p.ID.Short())
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: none is called %q", ErrNoSnapshot, name)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%w: %q may be %s", ErrAmbiguous, name, strings.Join(ids, ", "))
}

// Filter chooses snapshots; each field that is not empty must match.
type Filter struct {
	Disk string // name of a managed disk, or VM:DISK, or of a disk of any machine
	VM   string // name or UUID
	Tags map[string]string
}

// Takes reports whether p is a snapshot that f chooses.
func (f Filter) Takes(p *point.RecoveryPoint) bool {
	if !p.IsSnapshot() || f.VM != "" && p.VM != f.VM && !strings.EqualFold(p.MachineUUID, f.VM) {
		return false
	}
	for k, want := range f.Tags {
		if got, ok := p.Tags[k]; !ok || got != want {
			return false
		}
	}
	return f.Disk == "" || slices.ContainsFunc(p.Disks, func(d point.Disk) bool {
		return f.Disk == d.Name || f.Disk == d.Managed || f.Disk == p.VM+":"+d.Name
	})
}

// Pair is one disk in two snapshots.
type Pair struct{ A, B *point.Disk }

// Pairs returns the disks that two snapshots have in common: those of name, or all that are the
// same managed disk or have the same name. The only disks of two snapshots of one disk are a pair
// whatever their names.
func Pairs(a, b *point.RecoveryPoint, name string) ([]Pair, error) {
	if name != "" || len(a.Disks) == 1 && len(b.Disks) == 1 {
		x, err := a.Disk(name)
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", a.Name, err)
		}
		y, err := b.Disk(name)
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", b.Name, err)
		}
		return []Pair{{x, y}}, nil
	}
	var out []Pair
	for i := range a.Disks {
		for j := range b.Disks {
			x, y := &a.Disks[i], &b.Disks[j]
			if x.ManagedID != "" && x.ManagedID == y.ManagedID || x.ManagedID == "" && y.ManagedID == "" &&
				x.Name == y.Name {
				out = append(out, Pair{x, y})
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: snapshots %s and %s have none in common", point.ErrNoDisk, a.Name, b.Name)
	}
	return out, nil
}

// Kinds of ledger entries.
const (
	entryDeleted = "snapshot-deleted"
	entryCopied  = "snapshot-copied"
)

// entry is the body of a ledger entry: what accounting needs of a snapshot that may be gone.
type entry struct {
	Name    string            `json:"name"`
	VM      string            `json:"vm,omitempty"`
	Tags    map[string]string `json:"tags,omitempty"`
	Created time.Time         `json:"created"` // when it was taken
	Time    time.Time         `json:"time"`    // of the event
	Disks   []entryDisk       `json:"disks"`
}

type entryDisk struct {
	Name      string `json:"name"`
	Managed   string `json:"managed_disk,omitempty"`
	ManagedID string `json:"managed_disk_id,omitempty"`
	Size      int64  `json:"size"` // bytes
	Used      int64  `json:"used"` // bytes
}

func entryOf(p *point.RecoveryPoint) entry {
	e := entry{Name: p.Name, VM: p.VM, Tags: maps.Clone(p.Tags), Created: p.Time.UTC()}
	for _, d := range p.Disks {
		e.Disks = append(e.Disks, entryDisk{Name: d.Name, Managed: d.Managed, ManagedID: d.ManagedID, Size: d.Size,
			Used: d.Used})
	}
	return e
}

func enter(ctx context.Context, v *vault.Vault, kind string, p *point.RecoveryPoint, now time.Time) error {
	e := entryOf(p)
	e.Time = now.UTC()
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return v.Enter(ctx, p.ID, kind, body)
}

// Delete removes a snapshot. The ledger remembers it first: one that is there although the ledger
// says it was deleted, was not.
//
// It can be brought back for keep, vault.DefaultKeep if that is 0; with keep below 0 it is gone at
// once. It counts as deleted from now on either way.
func Delete(ctx context.Context, v *vault.Vault, p *point.RecoveryPoint, keep time.Duration, now time.Time) error {
	if !p.IsSnapshot() {
		return fmt.Errorf("%w: %s is a recovery point", ErrNoSnapshot, p.ID.Short())
	}
	if err := enter(ctx, v, entryDeleted, p, now); err != nil {
		return err
	}
	if keep < 0 {
		return v.PurgePoint(ctx, p.ID)
	}
	return v.DeletePoint(ctx, p.ID, keep)
}

// Undelete brings a snapshot back that was deleted; the ledger remembers from when on it is there
// again.
func Undelete(ctx context.Context, v *vault.Vault, p *point.RecoveryPoint, now time.Time) error {
	if err := v.UndeletePoint(ctx, p.ID); err != nil {
		return err
	}
	return enter(ctx, v, entryCopied, p, now)
}

// Copy brings a snapshot into another vault, which stores only what it lacks.
func Copy(ctx context.Context, from, to *vault.Vault, p *point.RecoveryPoint, now time.Time,
	progress func(done, total int64)) (vault.CopyReport, error) {
	_, err := to.Point(ctx, string(p.ID))
	if errors.Is(err, vault.ErrNoPoint) {
		err = enter(ctx, to, entryCopied, p, now)
	}
	if err != nil {
		return vault.CopyReport{}, err
	}
	return vault.CopyPoint(ctx, from, to, p.ID, vault.CopyOptions{Progress: progress})
}
