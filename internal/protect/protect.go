// Package protect takes recovery points: of machines while they run, of machines that are off, and
// of plain disk images.
//
// [Backup] is the one workflow of a machine: lock it, clean up what a killed run left, quiesce,
// take one instant of all disks, thaw, store what changed, seal the point, and only then let go of
// the older epoch of changed block tracking. Whatever fails or is killed on the way, the machine
// goes on, the older epoch still records, and the next run starts from the last point that the
// vault holds. [Images] does the same for disk images without a hypervisor. With [Request.Snapshot]
// some disks of a machine are taken for a snapshot, which leaves alone what its backups count from.
//
// A point says what was reached, not what was wished for: its consistency with the reason, its rung
// with the reason, and warnings for all that is not as it was in the point before. It is called by
// the faces; it constructs nothing that it is not handed.
package protect

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

var (
	// ErrConsistency reports that the required consistency was not reached. No point was made.
	ErrConsistency = errors.New("the required consistency was not reached")
	// ErrNoDisks reports that nothing would be left to back up.
	ErrNoDisks = errors.New("no disk to back up")
)

// Guest holds and releases the writes of one machine; *guest.Held is one.
type Guest interface {
	// Quiesce asks the guest to flush and hold its writes. A guest that cannot be quiesced is not
	// an error: Outcome says why.
	Quiesce(ctx context.Context) error
	// Thaw releases the guest.
	Thaw(ctx context.Context) error
	// Outcome says which level was reached and why no higher: after Quiesce what the guest
	// promised, after Thaw what it kept.
	Outcome() guest.Outcome
	// Guest returns what is known of the system inside, or nil.
	Guest() *point.GuestReport
	// Close releases the guest if it is still held.
	Close() error
}

// Deps are the pieces that a backup of a machine works with.
type Deps struct {
	Vault    *vault.Vault
	Host     hypervisor.Host
	Capturer capture.Capturer
	// OpenGuest prepares the quiesce of a machine's guest, to be closed by the caller; nil means
	// that no guest is ever asked. Its error is ctx's: a guest that does not answer says so in its
	// outcome.
	OpenGuest func(ctx context.Context, m hypervisor.Machine, want point.Consistency) (Guest, error)
	// Leftovers thaws the guest if a killed run left it holding its writes, and says what it did;
	// nil does nothing.
	Leftovers func(ctx context.Context, m hypervisor.Machine) ([]string, error)

	StateDir string                                // locks; made if absent
	Version  string                                // of this program
	Log      func(format string, args ...any)      // what happens, in words; nil discards
	Progress func(stage string, done, total int64) // bytes; from several goroutines; nil discards
	Now      func() time.Time                      // nil means time.Now
}

// Request says what point to take.
type Request struct {
	Machine     hypervisor.Machine
	Consistency point.Consistency // best level to try; "" means application
	Require     bool              // a lower level than Consistency is an error
	Exclude     []string          // names of disks to leave out
	Tags        map[string]string
	Scratch     capture.Scratch
	FullRead    bool              // trust no record of changes: read all, compare
	Secrets     diskimage.Secrets // of encrypted images, where the machine is off and its host does not tell them

	Snapshot *Snapshot // nil is a backup of the machine
}

// Stages that Deps.Progress is told of.
const (
	StageCopy  = "copy"  // out of the machine, into scratch
	StageStore = "store" // into the vault
)

func (d *Deps) defaults() {
	if d.Log == nil {
		d.Log = func(string, ...any) {}
	}
	if d.Progress == nil {
		d.Progress = func(string, int64, int64) {}
	}
	if d.Now == nil {
		d.Now = time.Now
	}
}

func (r *Request) defaults() {
	if r.Consistency == "" {
		r.Consistency = point.Application
	}
}
