// Package hypervisor says what Holdfast needs of a host: which machines it runs, what they are made
// of, and the life cycle of one.
//
// Its children speak to real hypervisors: libvirt to libvirtd, qemu to plain QEMU processes.
package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
	"github.com/holdfast-vm/holdfast/internal/point"
)

var (
	// ErrNoMachine reports that no machine has the name.
	ErrNoMachine = errors.New("no such machine")
	// ErrAmbiguous reports that several machines have the name.
	ErrAmbiguous = errors.New("several machines have this name")
	// ErrExists reports that a machine or file of that name exists and was left alone.
	ErrExists = errors.New("exists already")
	// ErrUnreachable reports that a host could not be asked: nobody listens, permission is missing,
	// or it does not answer.
	ErrUnreachable = errors.New("the host cannot be asked")
	// ErrNoRoom reports that the copy of a disk stands still because its target's file system is
	// full. It goes on with Hydrate.
	ErrNoRoom = errors.New("no space is left for the copy")
	// ErrNoAgent reports that the machine has no guest agent channel, or nothing answers on it.
	ErrNoAgent = errors.New("no guest agent")
	// ErrNoDefinition reports that a point has disks but does not know the machine they belong to.
	ErrNoDefinition = errors.New("the point does not hold the definition of a machine")
	// ErrOtherKind reports that a host is not of the kind that a machine was defined for.
	ErrOtherKind = errors.New("the host cannot build this machine")
	// ErrNoKey reports that the host has no secret for an encrypted image, or tells it to nobody.
	ErrNoKey = errors.New("the host does not tell the secret of the image")
	// ErrNoQEMU reports that the program that runs machines is not there.
	ErrNoQEMU = errors.New("QEMU is not installed")
	// ErrNoKVM reports that a machine runs on the processor itself and that this host does not let
	// it.
	ErrNoKVM = errors.New("this host has no KVM")
	// ErrKVMUnfit reports that a guest was seen to stand still, to crawl or not to start under KVM.
	ErrKVMUnfit = errors.New("KVM of this host does not run guests")
	// ErrNoScreen reports that the machine has no display, or none whose picture can be had.
	ErrNoScreen = errors.New("no screen")
)

// State is what a machine is doing.
type State string

// States of a machine.
const (
	Running State = "running"
	Paused  State = "paused"
	Off     State = "off"
	Crashed State = "crashed"
)

// Machine is one virtual machine of a host.
type Machine struct {
	Name  string `json:"name"`
	UUID  string `json:"uuid,omitempty"`
	State State  `json:"state"`
	Host  string `json:"host"` // the URI it was found through
	Disks []Disk `json:"disks"`
	Agent bool   `json:"agent"` // a guest agent channel is there; whether it answers is another question
}

// Disk is a writable disk of a machine. CD-ROMs, floppies and firmware flash are not disks.
type Disk struct {
	Name       string `json:"name"`      // vda, sda, …: unique in the machine
	Size       int64  `json:"size"`      // bytes the guest sees
	Allocated  int64  `json:"allocated"` // bytes the image occupies on the host, of all its layers
	Format     string `json:"format"`
	File       string `json:"file,omitempty"`
	Node       string `json:"node,omitempty"`   // root block node, what blockdev-backup takes as its device
	Device     string `json:"device,omitempty"` // QOM path or libvirt target
	Bus        string `json:"bus,omitempty"`
	Serial     string `json:"serial,omitempty"`
	IOThread   bool   `json:"iothread"`
	ReadOnly   bool   `json:"read_only,omitempty"`
	Encrypted  string `json:"encrypted,omitempty"` // how its image is encrypted: luks or aes
	Persistent bool   `json:"-"`                   // a dirty bitmap of this disk can be stored in its image
}

// Description is what must be stored of a machine, beside its disks, to build it again.
type Description struct {
	Definition point.Definition
	Files      []point.File     // small files that belong to it: paths on this host, Root empty
	NotHeld    []point.Omission // what of the machine a point does not hold
	Warnings   []string         // what else cannot be kept, in words
}

// Agent talks to the guest agent of one machine.
type Agent interface {
	// Command runs one guest agent command and returns its "return" value as JSON. An error the
	// guest answered is a *guest.Error; no answer before ctx ends is ctx's error.
	Command(ctx context.Context, name string, args any) ([]byte, error)
	io.Closer
}

// Rebuild is what it takes to bring a machine back.
type Rebuild struct {
	Point        *point.RecoveryPoint
	Name         string            // of the new machine
	SameIdentity bool              // keep UUID and MAC addresses: the lost machine comes back in place; else new ones
	Disks        map[string]string // disk name → image file, already written
	Formats      map[string]string // disk name → format of that file
	Files        map[string]string // point file "role/name" → path already written
	KeyFiles     map[string]string // disk name → file with the secret that its image, qcow2, is encrypted with
	StorageDir   string            // where further files of the machine (start script, sockets) go
	Networks     map[string]string // old network or bridge → new
	Start        bool
	// Backing holds, by disk name, the NBD URI (nbd+unix:///EXPORT?socket=PATH) of the export that
	// the image in Disks, a qcow2 overlay, stands on. Such disks stop the machine on an I/O error
	// instead of telling the guest, so that it continues when the export is back.
	Backing map[string]string
	// UUID is that of a machine with an identity of its own; "" means a random one.
	UUID string
	// Held makes Start load the machine but not run its first instruction; the host's Release,
	// where it has one, does.
	Held bool
	// Accel is what runs the machine, kvm or tcg, as QEMU calls them; "" means what ran it before.
	Accel string
	// Isolated leaves the machine no way out: its network cards are there, with their addresses,
	// but connected to nothing; shared folders, host devices and ports that listen for or connect
	// to others are left out. The guest agent's channel stays.
	Isolated bool
}

// Software is what runs the machines of a host, and how this process stands to it.
type Software struct {
	QEMU     string   // version, such as 7.2.22; "" if it is not known
	Libvirt  string   // version; "" for a plain QEMU
	Process  int      // libvirtd's, or the plain QEMU's; 0 if this process cannot see it
	Confined []string // what keeps machines from files beside users' rights: apparmor, selinux
	UID, GID int      // whom machines run as; -1 means this process' own
}

// Prospect is how a machine will run, as far as can be told before anything is made of it.
type Prospect struct {
	Accel   string // what runs it: kvm or tcg, as QEMU calls them
	Program string // QEMU's
	HostCPU bool   // the guest sees all that the host's processor has
}

// Rebuilt says what Define made.
type Rebuilt struct {
	Name     string   `json:"name"`
	UUID     string   `json:"uuid,omitempty"`
	State    State    `json:"state"`
	Start    string   `json:"start,omitempty"`    // command that starts it, where it was not started
	Warnings []string `json:"warnings,omitempty"` // what could not be kept, in words
}

// Host is one hypervisor, over one connection. Its methods are safe for concurrent use.
type Host interface {
	// URI is how the user named the host.
	URI() string
	// Machines lists all machines with their disks.
	Machines(ctx context.Context) ([]Machine, error)
	// Define builds a machine from a point whose disks and files have been written, and starts it
	// if asked. It refuses a name that exists with ErrExists, before it changes anything.
	Define(ctx context.Context, r Rebuild) (Rebuilt, error)
	// Describe returns what must be stored to build the machine again.
	Describe(ctx context.Context, m Machine) (Description, error)
	// NotHeld lists what of the machine a point does not hold, as it is now.
	NotHeld(ctx context.Context, m Machine) ([]point.Omission, error)
	// OpenAgent opens the machine's guest agent, or returns ErrNoAgent.
	OpenAgent(ctx context.Context, m Machine) (Agent, error)
	io.Closer
}

// PlainScheme begins the URI of a plain QEMU, whose monitor's path follows.
const PlainScheme = "qmp:"

// Buildable returns nil if the host of that URI can build the machine of a definition, else
// [ErrNoDefinition] or [ErrOtherKind].
func Buildable(d point.Definition, uri string) error {
	switch plain := strings.HasPrefix(uri, PlainScheme); {
	case d.Kind != point.ForLibvirt && d.Kind != point.ForQEMU:
		return ErrNoDefinition
	case plain != (d.Kind == point.ForQEMU):
		return fmt.Errorf("%w: the machine was one of %s, the host is %s", ErrOtherKind, d.Kind, uri)
	}
	return nil
}

// Remover is a host that can get rid of a machine.
type Remover interface {
	// Remove stops the machine at once, without asking the guest, and forgets its definition.
	// Images and other files stay, a plain QEMU's start script among them. A machine that is not
	// there is [ErrNoMachine].
	Remove(ctx context.Context, m Machine) error
}

// KeyHolder is a host that knows the secrets of encrypted images.
type KeyHolder interface {
	// DiskKey returns the secret that opens the image of a disk, or ErrNoKey.
	DiskKey(ctx context.Context, m Machine, disk string) ([]byte, error)
}

// Screen is a host that can show the console of a machine.
type Screen interface {
	// Screenshot returns the console's picture as a PNG, or ErrNoScreen.
	Screenshot(ctx context.Context, m Machine) ([]byte, error)
}

// OverlaySuffix ends the name of the overlay that a machine runs on until the image of that name
// without it holds all of the disk.
const OverlaySuffix = ".overlay"

// StillRate is the rate of a copy that stands still, in bytes a second.
const StillRate = 1

// Hydrator is a host that can move a machine's disks from overlays over an export to local images
// that depend on nothing.
//
// A disk's overlay holds all that the guest has written until FinishHydration, and the machine's
// definition names it until then. While FinishHydration changes one for the other the machine
// stands still and both hold the same, durably, so that whichever the definition names after a
// crash is right.
type Hydrator interface {
	// Hydrate starts the copy of a disk of a running machine to its target, a new image, and
	// returns. Where such a copy runs it lets it go on after an error; where the machine is on the
	// target already it does nothing. rate is in bytes a second, 0 means no limit.
	Hydrate(ctx context.Context, m Machine, t HydrationTarget, rate int64) error
	// Hydration says how the copy stands.
	Hydration(ctx context.Context, m Machine, t HydrationTarget) (Hydration, error)
	// HydrationRate changes the limit of a copy that runs, in bytes a second; 0 means no limit.
	HydrationRate(ctx context.Context, m Machine, t HydrationTarget, rate int64) error
	// FinishHydration makes the targets the machine's disks, now and in its definition, durably.
	// Their copies must be Ready. The machine stands still meanwhile, for less than a minute.
	// Called again after a crash, or after an error, it does what is left. A copy that fails in the
	// end leaves its disk on the overlay, and is an error. A machine that is off unexpectedly is
	// [ErrOff], and nothing was changed. After [ErrStandsStill] the machine has not gone on; after
	// other errors it has, if we had stopped it, unless it was to stay paused.
	FinishHydration(ctx context.Context, m Machine, s Settlement) error
	// Settled returns the disks whose targets are in the machine's definition.
	Settled(ctx context.Context, m Machine, s Settlement) (map[string]bool, error)
	// Continue lets a machine go on that stopped on an I/O error. One that stands still for another
	// reason is left alone, and reported as paused.
	Continue(ctx context.Context, m Machine) (paused bool, err error)
	// GoOn lets a machine go on that stands still because of the pause of held. Others are left
	// alone.
	GoOn(ctx context.Context, m Machine, held pause.Mark) error
	// Start boots a machine of Define that is off. storageDir is that of its Rebuild.
	Start(ctx context.Context, m Machine, storageDir string) error
}

// HydrationTarget is where a disk is copied to.
type HydrationTarget struct {
	Disk   string `json:"disk"` // name, as in the point
	File   string `json:"file"`
	Format string `json:"format"` // raw or qcow2
	Size   int64  `json:"size"`   // bytes
}

// Overlay returns the image that the machine runs on meanwhile.
func (t HydrationTarget) Overlay() string { return t.File + OverlaySuffix }

// Settlement says which disks of a machine become local.
type Settlement struct {
	Targets []HydrationTarget
	// as in the machine's Rebuild; "" for disks that were attached to a machine that we did not
	// define
	StorageDir string
	// Held is what was noted of an earlier attempt that has stopped the machine, nil if there was
	// none. Only a machine that stands still because of it is let go on in the end: one that
	// somebody else has stopped stays so.
	Held *pause.Mark
	// Note makes a mark durable before the machine is stopped, and another one when it stands
	// still. nil discards.
	Note func(pause.Mark) error
	// StayPaused leaves the machine standing still: the caller lets it go on, with GoOn.
	StayPaused bool
	// Off says that the machine is off and that the targets hold all that was written: only its
	// definition is changed, and a machine that runs is an error.
	Off bool
}

// Noted makes a mark durable.
func (s Settlement) Noted(m pause.Mark) error {
	if s.Note == nil {
		return nil
	}
	return s.Note(m)
}

var (
	// ErrOff reports that a machine was found to be off, so it is unknown which writes its targets
	// miss.
	ErrOff = errors.New("the machine is off")
	// ErrStandsStill reports that a machine was stopped for the move to its local disks and has not
	// gone on: what its guest would write now might be lost if it died. Finishing the move lets it
	// go on.
	ErrStandsStill = errors.New("the machine stands still in the middle of its move")
)

// Hydration says how the copy of a disk stands.
type Hydration struct {
	Running bool  // a copy job is there
	Ready   bool  // everything was copied once; what the guest writes follows
	Local   bool  // the machine runs on the target
	Done    int64 // bytes
	Total   int64 // bytes; it grows while the guest writes
	Err     error // that the job met and waits on; nil if none
}
