// Package drill rehearses the recovery of one machine: it boots a recovery point with no way out to
// any network, asks it whether it does its work, discards all of it, and writes the verdict on the
// point.
//
// The promises, in order of importance:
//
//   - The machine that runs reaches nothing: its definition leaves it no way out, and its process
//     is looked at from outside, before its first instruction, every few seconds while it runs, and
//     in the end. One with a way out is removed at once.
//   - Nothing of the real machine is touched. The drill's has a name, a UUID, addresses and files
//     of its own, and its disks read the point through an export.
//   - Whatever happens, nothing is left: what a killed process has left is noted in the state
//     directory, and the next drill or [CleanUp] removes it.
//   - A point is verified when the guest agent answered and every check passed, and not otherwise.
//     What could not be found out is not verified, and says why.
package drill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/drill/role"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/isolation"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// ErrNotVerified reports a drill that came to an end, and whose verdict is on the point.
var ErrNotVerified = errors.New("not verified")

// Host is what a drill needs of a host.
type Host interface {
	hypervisor.Host
	hypervisor.Remover
	hypervisor.Screen
	// Prospect says how a machine will run, or that it cannot.
	Prospect(ctx context.Context, r hypervisor.Rebuild) (hypervisor.Prospect, error)
	// Processors says where the processors of a machine are, none if that is not known.
	Processors(ctx context.Context, m hypervisor.Machine) ([]accel.Processor, error)
	// Release lets a machine run that was built to be held.
	Release(ctx context.Context, m hypervisor.Machine) error
	// Isolation looks for ways out of a machine that runs or is held.
	Isolation(ctx context.Context, m hypervisor.Machine) (isolation.Report, error)
	// SerialText returns the last max bytes that a machine wrote to its first serial port, "" if
	// they are not kept.
	SerialText(ctx context.Context, m hypervisor.Machine, max int64) (string, error)
}

// Request says what to rehearse and where.
type Request struct {
	Point    *point.RecoveryPoint
	Host     string        // URI of the host for a libvirt machine; a plain QEMU is started by the drill itself
	Storage  string        // directory for what the machine writes meanwhile
	StateDir string        // where it is noted what runs
	Checks   []role.Check  // in addition to that of the file systems
	Timeout  time.Duration // from the start until all checks have passed; 0 means 5 minutes
	Accel    string        // what runs the machine, kvm or tcg; "" means what did
}

// Options are what a drill works with. The zero value of each field but Open is its default.
type Options struct {
	Open    func(uri string) (Host, error)
	Version string                           // of this program
	Now     func() time.Time                 // nil means time.Now
	Log     func(format string, args ...any) // what happens, in words; nil discards
	Pause   time.Duration                    // between two tries; 0 means half a second
	// Define changes what is asked of the host, for tests; nil leaves it.
	Define func(*hypervisor.Rebuild)
	// Trouble tries how a machine would run; nil means [accel.Trouble].
	Trouble func(context.Context, hypervisor.Prospect) error
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if o.Pause == 0 {
		o.Pause = 500 * time.Millisecond
	}
	if o.Trouble == nil {
		o.Trouble = accel.Trouble
	}
	if o.Define == nil {
		o.Define = func(*hypervisor.Rebuild) {}
	}
	return o
}

// Result is what came of a drill. It is the body of the note that the point gets; fields are added,
// never changed.
type Result struct {
	Verified bool   `json:"verified"`
	Reason   string `json:"reason,omitempty"` // why not verified

	Time        time.Time         `json:"time"` // when it began, UTC
	Point       point.ID          `json:"point"`
	VM          string            `json:"vm"`
	PointTime   time.Time         `json:"point_time"`
	Consistency point.Consistency `json:"consistency"`
	Host        string            `json:"host"`
	Machine     string            `json:"machine"` // name of the machine that was made
	Guest       string            `json:"guest,omitempty"`
	Accel       string            `json:"accel,omitempty"` // what ran it: kvm or tcg

	Isolation      Isolation     `json:"isolation"`
	BootSeconds    float64       `json:"boot_seconds,omitempty"`    // from the start until the guest agent answered
	ServiceSeconds float64       `json:"service_seconds,omitempty"` // from the start until all checks had passed
	Checks         []CheckResult `json:"checks"`
	Progress       *Progress     `json:"progress,omitempty"` // of a guest whose agent did not answer

	Screenshot   string `json:"screenshot,omitempty"` // ID of the note
	NoScreenshot string `json:"no_screenshot,omitempty"`
	Console      string `json:"console,omitempty"` // the end of what the machine wrote to its serial port

	ServedBytes  int64   `json:"served_bytes"`  // that the machine read of its disks
	FetchedBytes int64   `json:"fetched_bytes"` // from the vault
	AheadBytes   int64   `json:"ahead_bytes"`   // of those, before they were asked for
	Seconds      float64 `json:"seconds"`       // in all
	Holdfast     string  `json:"holdfast_version"`

	picture []byte
}

// Picture returns the console as a PNG, nil if there is none.
func (r Result) Picture() []byte { return r.picture }

// Isolation is what is known of the machine's ways out.
type Isolation struct {
	Checks  int      `json:"checks"`             // how often it was looked at and nothing was found
	Files   int      `json:"files"`              // descriptors of the process that were looked at, the last time
	Sockets int      `json:"sockets"`            // of those
	Found   []string `json:"found"`              // ways out
	LeftOut []string `json:"left_out,omitempty"` // what the machine does not have here, in words
}

// CheckResult is what came of one check.
type CheckResult struct {
	Name    string  `json:"name"`
	Command string  `json:"command,omitempty"`
	OK      bool    `json:"ok"`
	Output  string  `json:"output,omitempty"` // the end of what it said the last time
	Tries   int     `json:"tries"`
	Seconds float64 `json:"seconds"` // from the start of the machine until it had passed, or was last tried
}

// Run rehearses the recovery of a point. A point that does not pass is not an error: the result
// says why. An error means that no verdict was reached, because the host, the vault or the caller's
// context ended it, or something could not be removed; then nothing is written on the point. First
// it removes what killed drills have left.
func Run(ctx context.Context, v *vault.Vault, req Request, o Options) (Result, error) {
	o = o.withDefaults()
	if req.Timeout == 0 {
		req.Timeout = 5 * time.Minute
	}
	if err := req.check(); err != nil {
		return Result{}, err
	}
	for _, l := range CleanUp(ctx, req.StateDir, o.Open) {
		switch {
		case l.Err != nil:
			o.Log("warning: %v", l.Err)
		case !l.Running:
			o.Log("%s: %s", l.Machine, l.Did)
		}
	}
	r := newRun(v, req, o)
	res, err := r.run(ctx)
	if err != nil {
		return res, err
	}
	return res, r.save(ctx, &res)
}

// check returns hypervisor.ErrNoDefinition or hypervisor.ErrOtherKind for a point that cannot be
// booted here. A plain QEMU is started by the drill itself, whatever the host.
func (req Request) check() error {
	host := req.Host
	if req.Point.Definition.Kind == point.ForQEMU {
		host = hypervisor.PlainScheme
	}
	return hypervisor.Buildable(req.Point.Definition, host)
}

// save writes the verdict on the point.
func (r *run) save(ctx context.Context, res *Result) error {
	id := r.req.Point.ID
	if len(res.picture) > vault.MaxNote {
		res.NoScreenshot, res.picture = fmt.Sprintf("the picture has %d bytes, %d can be kept", len(res.picture),
			vault.MaxNote), nil
	}
	if res.picture != nil {
		note, err := r.v.AddNote(ctx, id, vault.NoteScreenshot, res.picture)
		if err != nil {
			return fmt.Errorf("keep the screenshot with point %s: %w", id.Short(), err)
		}
		res.Screenshot = note.ID
	}
	res.Seconds = r.since(res.Time)
	body, err := json.Marshal(res)
	if err != nil {
		return err
	}
	if _, err := r.v.AddNote(ctx, id, vault.NoteDrill, body); err != nil {
		return fmt.Errorf("write the verdict on point %s: %w", id.Short(), err)
	}
	return nil
}
