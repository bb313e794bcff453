// Package hypervisor says what Holdfast needs of a host: which machines it runs, what they are made of, and the life cycle of one.
//
// Its children speak to real hypervisors: libvirt to libvirtd, qemu to plain QEMU processes.
package hypervisor

import (
	"context"
	"errors"
	"io"

	"github.com/holdfast-vm/holdfast/internal/point"
)

var (
	// ErrNoMachine reports that no machine has the name.
	ErrNoMachine = errors.New("no such machine")
	// ErrAmbiguous reports that several machines have the name.
	ErrAmbiguous = errors.New("several machines have this name")
	// ErrExists reports that a machine or file of that name exists and was left alone.
	ErrExists = errors.New("exists already")
	// ErrUnreachable reports that a host could not be asked: nobody listens, permission is missing, or it does not answer.
	ErrUnreachable = errors.New("the host can not be asked")
	// ErrNoAgent reports that the machine has no guest agent channel, or nothing answers on it.
	ErrNoAgent = errors.New("no guest agent")
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
	Persistent bool   `json:"-"` // a dirty bitmap of this disk can be stored in its image
}

// Agent talks to the guest agent of one machine.
type Agent interface {
	// Command runs one guest agent command and returns its "return" value as JSON. An error the guest answered is a *guest.Error;
	// no answer before ctx ends is ctx's error.
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
	StorageDir   string            // where further files of the machine (start script, sockets) go
	Networks     map[string]string // old network or bridge → new
	Start        bool
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
	// Define builds a machine from a point whose disks and files have been written, and starts it if asked. It refuses a name that
	// exists with ErrExists, before it changes anything.
	Define(ctx context.Context, r Rebuild) (Rebuilt, error)
	// Describe returns what must be stored to build the machine again, and the small files that belong to it (paths on this
	// host, Root empty).
	Describe(ctx context.Context, m Machine) (point.Definition, []point.File, []string, error)
	// OpenAgent opens the machine's guest agent, or returns ErrNoAgent.
	OpenAgent(ctx context.Context, m Machine) (Agent, error)
	io.Closer
}
