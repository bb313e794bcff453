package hypervisor

import (
	"context"
	"errors"
)

var (
	// ErrNoSlot reports that the machine has no free place where a disk could be plugged in.
	ErrNoSlot = errors.New("no free slot for a disk")
	// ErrNoDisk reports that the machine has no disk of the name.
	ErrNoDisk = errors.New("the machine has no such disk")
	// ErrNotReleased reports that the guest was asked to let a disk go and has not done it in time.
	// It may still do it.
	ErrNotReleased = errors.New("the guest has not let the disk go")
)

// Attachment is an image that becomes a disk of a machine.
type Attachment struct {
	Name     string // vdb, sdc, …; "" takes the first free one of a kind that the machine has a slot for
	File     string // absolute path
	Format   string // raw or qcow2
	Serial   string // what the guest reads as the disk's serial number, at most 20 bytes; "" means none
	ReadOnly bool
	// Backing is the NBD URI (nbd+unix:///EXPORT?socket=PATH) of the export that File, a qcow2
	// overlay, stands on; "" if it stands on nothing. Such a disk stops the machine on an I/O error
	// instead of telling the guest.
	Backing string
}

// Attacher is a host that can give a machine a disk and take it away, while it runs and while it is
// off. Whoever was killed in between finds out by Attached how far it came, and may call the same
// again.
type Attacher interface {
	// Attach gives m the disk and returns its name. If the machine runs it has it at once; where
	// the host keeps definitions, it has it after the next start too. It returns ErrNoSlot, or
	// ErrExists if the name is taken; on error the machine is as it was.
	Attach(ctx context.Context, m Machine, a Attachment) (string, error)
	// Detach takes the disk of that image from m, from the running machine and its definition,
	// whichever has it. It is not an error if the machine does not have it. ErrNotReleased if the
	// guest holds on to it.
	Detach(ctx context.Context, m Machine, file string) error
	// Attached returns the name of the disk that is backed by the image file, "" if there is none.
	// Read-only disks are found too. Running says whether the running machine has it, rather than
	// only its definition.
	Attached(ctx context.Context, m Machine, file string) (name string, running bool, err error)
	// Resize makes the disk of that image larger in a running machine: the image grows, and the
	// guest is told.
	Resize(ctx context.Context, m Machine, file string, size int64) error
}
