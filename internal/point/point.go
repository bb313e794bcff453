// Package point holds the nouns of Holdfast: machines, disks and recovery points.
//
// It imports nothing of the project. The JSON form of a [RecoveryPoint] is what the vault seals
// and what the command line prints: fields are added, never changed or removed.
package point

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// ID names a recovery point: 32 lower-case hexadecimal digits, random.
type ID string

// NewID returns a fresh random ID.
func NewID() ID {
	var b [16]byte
	rand.Read(b[:])
	return ID(hex.EncodeToString(b[:]))
}

// Short returns the first 8 digits, for people.
func (id ID) Short() string {
	if len(id) < 8 {
		return string(id)
	}
	return string(id[:8])
}

// Consistency says what a point promises of the data inside the machine.
type Consistency string

// Levels of consistency, best first.
const (
	Application Consistency = "application" // the guest's hooks (VSS, fsfreeze hooks) ran and succeeded
	Filesystem  Consistency = "filesystem"  // the guest's file systems were flushed and held
	Crash       Consistency = "crash"       // as after a power cut: all disks at one instant
)

// Rank returns 3 for application, 2 for filesystem, 1 for crash, 0 for anything else.
func (c Consistency) Rank() int {
	switch c {
	case Application:
		return 3
	case Filesystem:
		return 2
	case Crash:
		return 1
	}
	return 0
}

// Rung is the way in which the blocks of a point were read.
type Rung string

// Rungs of the capture ladder.
const (
	Push       Rung = "push"        // QEMU wrote the increment, or the full, into local scratch
	SlicedPush Rung = "sliced-push" // the same through a small scratch, slice by slice
	Pull       Rung = "pull"        // read from a point-in-time NBD export of QEMU
	Compare    Rung = "compare"     // all allocated blocks were read and compared with the last point
	Offline    Rung = "offline"     // read from the image of a machine that is off
	NoDisks    Rung = "none"        // the machine has no disks
)

// Kind says what a point was taken for.
type Kind string

// Snapshot is the kind of a point of some disks, kept until somebody deletes it. Points of whole
// machines have no kind.
const Snapshot Kind = "snapshot"

// RecoveryPoint is a machine's disks and definition at one instant, sealed and readable.
type RecoveryPoint struct {
	ID                ID                `json:"id"`
	Kind              Kind              `json:"kind,omitempty"`
	Name              string            `json:"name,omitempty"`     // of a snapshot
	VM                string            `json:"vm"`                 // name of the machine; "" for a snapshot of disks that no machine has
	MachineUUID       string            `json:"machine_uuid"`       // "" where the hypervisor has none
	Time              time.Time         `json:"time"`               // the instant that the disks show, UTC
	Consistency       Consistency       `json:"consistency"`        // reached, not wished for
	ConsistencyReason string            `json:"consistency_reason"` // why this level and no higher; never empty
	Rung              Rung              `json:"rung"`
	RungReason        string            `json:"rung_reason,omitempty"` // why not the default rung
	Parent            ID                `json:"parent,omitempty"`      // point that the changes were counted from
	Tags              map[string]string `json:"tags,omitempty"`
	Disks             []Disk            `json:"disks"`
	ExcludedDisks     []string          `json:"excluded_disks,omitempty"`
	Definition        Definition        `json:"definition"`
	Files             []File            `json:"files,omitempty"`    // NVRAM, TPM state
	NotHeld           []Omission        `json:"not_held,omitempty"` // what of the machine the point lacks
	Warnings          []string          `json:"warnings,omitempty"`
	Holdfast          string            `json:"holdfast_version"`
	Took              float64           `json:"took_seconds"`             // from begin to commit
	FrozenSeconds     float64           `json:"frozen_seconds,omitempty"` // how long the guest held its writes
	CopiedFrom        *Origin           `json:"copied_from,omitempty"`    // nil where the point was taken into its vault
}

// Origin says which point of another vault a point was copied from.
type Origin struct {
	Vault string            `json:"vault"` // ID
	Point ID                `json:"point"`
	Roots map[string]string `json:"roots"` // trees there: of disks by name, of files by role/name
}

// ErrNoDisk reports that a point has no disk of a name, or that one of several must be named.
var ErrNoDisk = errors.New("the point has no such disk")

// ErrNoDisks reports that a point is of a machine without disks, and that something needs one.
var ErrNoDisks = errors.New("the point has no disks")

// RequireDisks returns ErrNoDisks for the point of a machine without disks.
func (p *RecoveryPoint) RequireDisks() error {
	if len(p.Disks) == 0 {
		return ErrNoDisks
	}
	return nil
}

// Disk returns the disk that name names, as its machine or as its pool does; the only one for "".
func (p *RecoveryPoint) Disk(name string) (*Disk, error) {
	if err := p.RequireDisks(); err != nil {
		return nil, err
	}
	var names []string
	for i := range p.Disks {
		d := &p.Disks[i]
		if d.Name == name || d.Managed == name && name != "" || name == "" && len(p.Disks) == 1 {
			return d, nil
		}
		names = append(names, d.Name)
	}
	if name == "" {
		return nil, fmt.Errorf("%w: which of %v?", ErrNoDisk, names)
	}
	return nil, fmt.Errorf("%w: %q, it has %v", ErrNoDisk, name, names)
}

// Disk is one disk of a recovery point.
type Disk struct {
	Name    string `json:"name"`             // as the guest's hypervisor calls it: vda, sda
	Size    int64  `json:"size"`             // bytes the guest sees
	Used    int64  `json:"used"`             // bytes that are not holes, in whole chunks
	Added   int64  `json:"added"`            // bytes by which the vault grew for this disk
	Read    int64  `json:"read"`             // bytes read from the source to make this point
	Tracked bool   `json:"tracked"`          // only blocks known as changed were read
	Reason  string `json:"reason,omitempty"` // why not tracked
	Root    string `json:"root"`             // tree of the disk in the vault, hexadecimal; "" is a disk of holes
	Bitmap  string `json:"bitmap,omitempty"` // changed block tracking started at this instant under this name
	Source  Source `json:"source"`

	Managed   string `json:"managed_disk,omitempty"`    // name of the managed disk that this is
	ManagedID string `json:"managed_disk_id,omitempty"` // its unique ID: another disk of the same name has another
}

// Source says where a disk's bytes came from and what the guest was shown.
type Source struct {
	File          string            `json:"file,omitempty"`   // path or URI of the top image
	Format        string            `json:"format,omitempty"` // raw, qcow2, …
	Node          string            `json:"node,omitempty"`   // QEMU block node
	Device        string            `json:"device,omitempty"` // QOM path or libvirt target
	Bus           string            `json:"bus,omitempty"`
	Serial        string            `json:"serial,omitempty"`
	IOThread      bool              `json:"iothread,omitempty"`
	FormatOptions map[string]string `json:"format_options,omitempty"` // cluster_size, compat, …
	Encryption    *Encryption       `json:"encryption,omitempty"`     // nil where the image was not encrypted
}

// Encryption says how the image of a disk was encrypted where it came from.
type Encryption struct {
	Format string `json:"format"` // luks or aes
	// AsIs says that the point holds the image's own bytes, encrypted as they lay there, and not
	// what the guest sees: a restore gives back the image, which its secret opens.
	AsIs bool `json:"as_is,omitempty"`
}

// WasEncrypted reports whether the point holds the plain bytes of a disk whose image was encrypted.
func (d Disk) WasEncrypted() bool { return d.Source.Encryption != nil && !d.Source.Encryption.AsIs }

// DefinitionKind says which kind of host a machine's definition is for.
type DefinitionKind string

// Kinds of definitions.
const (
	ForLibvirt DefinitionKind = "libvirt" // domain XML
	ForQEMU    DefinitionKind = "qemu"    // the arguments of a QEMU process
	OnlyDisks  DefinitionKind = "image"   // disks that no hypervisor described: there is no machine
)

// Definition is what it takes to build the machine again.
type Definition struct {
	Kind          DefinitionKind    `json:"kind"`
	InactiveXML   string            `json:"inactive_xml,omitempty"`
	LiveXML       string            `json:"live_xml,omitempty"`
	MigratableXML string            `json:"migratable_xml,omitempty"`
	Args          []string          `json:"args,omitempty"`         // QEMU's command line, argv[0] included
	Dir           string            `json:"dir,omitempty"`          // working directory of that process
	MachineType   string            `json:"machine_type,omitempty"` // exact, such as pc-q35-7.2
	CPU           string            `json:"cpu,omitempty"`          // JSON of query-cpu-model-expansion where QEMU gives it
	Hypervisor    string            `json:"hypervisor,omitempty"`   // QEMU and libvirt versions
	Networks      map[string]string `json:"networks,omitempty"`     // XML of the libvirt networks it refers to, by name
	Guest         *GuestReport      `json:"guest,omitempty"`
}

// GuestReport is what the guest agent said of the system inside.
type GuestReport struct {
	OS        string   `json:"os,omitempty"`
	Hostname  string   `json:"hostname,omitempty"`
	Agent     string   `json:"agent,omitempty"` // version
	Mounts    []string `json:"mounts,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
}

// File is a small file that belongs to the machine, stored in the vault as a disk is.
type File struct {
	Role string `json:"role"` // "nvram" or "tpm" or "kernel" or "initrd"
	Path string `json:"path"` // where it was on the host
	Name string `json:"name"` // relative name inside its role; file name for nvram, path below the state directory for tpm
	Mode uint32 `json:"mode"` // permission bits
	Size int64  `json:"size"` // bytes
	Root string `json:"root"` // tree in the vault, hexadecimal
}

// IsSnapshot reports whether p is a snapshot of disks, and so no part of what backups of a machine
// count from.
func (p *RecoveryPoint) IsSnapshot() bool { return p.Kind == Snapshot }

// Omission is something of the machine that the point does not hold.
type Omission struct {
	Kind   string `json:"kind"`             // for programs: docs/manual/devices.md lists them
	What   string `json:"what"`             // the kind in words
	Name   string `json:"name,omitempty"`   // as the hypervisor calls it
	Source string `json:"source,omitempty"` // what of the host is behind it: a file, a folder, a device
	Why    string `json:"why"`
}

// String says it in one line.
func (o Omission) String() string { return o.Title() + ": " + o.Why }

// Title says which thing it is.
func (o Omission) Title() string {
	s := o.What
	if o.Name != "" {
		s += " " + o.Name
	}
	if o.Source != "" {
		s += " (" + o.Source + ")"
	}
	return s
}
