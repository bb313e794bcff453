// Package capture reads the disks of a machine as they were at one instant: everything the first
// time, what changed afterwards.
//
// A capture takes an instant (all disks in one), starts a new epoch of changed block tracking at
// exactly that instant, and hands the bytes that must be read to a [Sink]. The older epoch goes on
// recording until [Result.DropOlder], so that a capture that failed or was killed loses no change:
// the next one counts from the older epoch again. A record of changes is evidence, trusted only if
// its name is the one that the last committed point carries, it is recording, not busy, not
// inconsistent, and the disk's size and the granularity agree; in any doubt the disk is read whole
// and the vault compares.
//
// Nothing of ours is connected to QEMU's block layer on the default rung: QEMU writes into local
// scratch files, its job ends, and the files are read out of process. A slow or stopped sink can
// not hold up the guest.
package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// ErrScratch reports that the scratch space is too small for any rung that this machine allows. Its
// text says how much is needed.
var ErrScratch = errors.New("not enough scratch space")

// ErrOff reports that the machine is off: there is no QEMU to capture from, its images are read
// instead.
var ErrOff = errors.New("the machine is off")

// ErrBusy reports that another process captures the machine, or has a capture of it that is not
// committed.
var ErrBusy = errors.New("another backup of this machine is running")

// ErrCopied reports that a job of the hypervisor, such as a hydration, works on a disk that was to
// be captured.
var ErrCopied = errors.New("it is being copied by another job of its hypervisor")

// NeedScratch is the ErrScratch of a capture: how much it needs and has.
type NeedScratch struct {
	Dir        string
	Need, Have int64 // bytes
}

func (e *NeedScratch) Error() string {
	return fmt.Sprintf("%v in %s: %d bytes needed, %d to be had", ErrScratch, e.Dir, e.Need, e.Have)
}

// Unwrap makes errors.Is(err, ErrScratch) true.
func (e *NeedScratch) Unwrap() error { return ErrScratch }

// Plan says what to capture and what the last committed point knows.
type Plan struct {
	Machine   string // name, for scratch file names and messages
	Vault     string // short ID of the vault: the namespace of our bitmaps, [0-9a-f]{8}
	Epoch     string // fresh name of the epoch that begins at the instant: [0-9a-f]{8}
	Disks     []DiskPlan
	Keep      []string // bitmaps of the vault that other points count from: they stay, whatever becomes of this capture
	NoEpoch   bool     // begin no epoch: every record of changes stays as it is
	Granule   int64    // bytes per tracked block: the vault's chunk size
	Scratch   Scratch
	AllowPull bool                             // pull may be used where push cannot
	Log       func(format string, args ...any) // progress in words; nil discards
	Progress  func(done, total int64)          // bytes copied into scratch or read; nil discards
}

// DiskPlan is one disk to capture.
type DiskPlan struct {
	Name       string // as the hypervisor package names it
	LastBitmap string // bitmap named by the last committed point; "" if there is none
	LastSize   int64  // the disk's size in that point
}

// Scratch is local space for what QEMU writes out.
type Scratch struct {
	Dir   string
	Limit int64 // bytes that one capture may use; 0 means what the file system has free, less a tenth
}

// BitmapName returns the name of the dirty bitmap of an epoch of a vault. All our names in a QEMU
// begin with "hf".
func BitmapName(vault, epoch string) string { return "hf-" + vault + "-" + epoch }

// BitmapPrefix returns what the bitmaps of a vault begin with.
func BitmapPrefix(vault string) string { return "hf-" + vault + "-" }

// DefaultStateDir returns where unfinished captures are noted if no other directory was named:
// $HOLDFAST_STATE, else /run/holdfast, or a per-user directory if not running as root.
func DefaultStateDir() string {
	if dir := os.Getenv("HOLDFAST_STATE"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/run/holdfast"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "holdfast")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("holdfast-%d", os.Geteuid()))
}

// Hooks are called around the instant. Any may be nil.
type Hooks struct {
	// Quiesce is called when all that is slow has been prepared. An error ends the capture.
	Quiesce func(ctx context.Context) error
	// Thaw is called as soon as the instant is taken, and also when taking it failed after Quiesce.
	Thaw func(ctx context.Context) error
	// Frozen is called between the instant and Thaw, to read small files that belong to the
	// machine.
	Frozen func(ctx context.Context) error
}

// Read is a batch of changes of one disk. Data and Zero are aligned to the plan's granule (or end
// at the disk's end).
type Read struct {
	Disk   string
	Size   int64       // the disk's size in bytes at the instant
	Data   extent.Set  // must be read from Source
	Zero   extent.Set  // read as zeros
	Whole  bool        // Data and Zero cover the disk: compare with the last point, whatever that holds
	Source io.ReaderAt // safe for concurrent use; valid until Sink returns
}

// Sink takes in what was read. Batches of one disk come one after another, a later one overwriting
// an earlier; batches of different disks may come at the same time. The last state is the state at
// the instant.
type Sink func(ctx context.Context, r Read) error

// DiskResult says how one disk was captured.
type DiskResult struct {
	Name    string
	Size    int64  // bytes, at the instant
	Read    int64  // bytes read
	Tracked bool   // only changed blocks were read
	Reason  string // why not tracked; "" if tracked
	Bitmap  string // name of the epoch's bitmap on this disk; "" if tracking could not be started
}

// Result is a capture whose every byte has been taken in by the sink.
type Result struct {
	Rung    point.Rung
	Reason  string // why not push; "" for push
	Instant time.Time
	Disks   []DiskResult

	// DropOlder drops older epochs. Call it once the vault has committed the point.
	DropOlder func(ctx context.Context) error
	// DropNew drops the epoch that this capture began. Call it if the point was not committed.
	DropNew func(ctx context.Context) error
}

// Capturer captures machines of one kind of host.
type Capturer interface {
	// Capture takes the instant and reads it all into sink. On error it has left nothing of this
	// capture in QEMU or on disk but what a dead QEMU took with it, and the older epoch still
	// records.
	Capture(ctx context.Context, machine string, plan Plan, hooks Hooks, sink Sink) (*Result, error)
	// Reconcile removes what a killed capture left in the machine: jobs, nodes, exports, scratch
	// files, and bitmaps of vault that are not named in keep. With vault "" nothing is known of
	// points. Of another vault than this one only a bitmap goes that was begun by a capture which
	// did not come to have read everything: of any other its own vault may have committed the
	// point. It returns what it did, in words.
	Reconcile(ctx context.Context, machine string, vault string, keep []string) ([]string, error)
}
