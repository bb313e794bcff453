// Package libvirt is a capture.Capturer for machines of libvirtd.
//
// The default rung is libvirt's backup job in push mode, begun in one transaction with a
// checkpoint: QEMU writes the disks, or what changed since the last committed checkpoint, into
// scratch images that were made and reserved beforehand; the job ends, and the images are read
// here. Checkpoints exist for qcow2 disks; other disks are read whole each time, in the same
// instant.
//
// Before anything is changed it is noted in a state file, one per machine, that also is the lock
// against a second capture of the machine. Whoever finds a state file whose owner is dead undoes
// what it notes: that is [Capturer.Reconcile].
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	hostlibvirt "github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// undoTimeout bounds what is done after the caller's context has ended: abort, resume, thaw,
// delete.
const undoTimeout = 60 * time.Second

var _ capture.Capturer = (*Capturer)(nil)

// Capturer captures the machines of one libvirtd. It is safe for concurrent use; captures of one
// machine exclude each other.
type Capturer struct {
	host *hostlibvirt.Host
	opts Options
}

// Options tunes a Capturer. The zero value of each field is its default.
type Options struct {
	// StateDir is where unfinished captures are noted, made when it is needed. It must be the same
	// directory each time, on a local file system; "" means capture.DefaultStateDir().
	StateDir string
	// Watch is the command, this program's, that runs [Watch] with two more arguments, the host's
	// URI and the machine. Without it a machine stays suspended if this process dies at the wrong
	// moment, until Reconcile.
	Watch []string
}

// New returns a Capturer of the machines of host.
func New(host *hostlibvirt.Host, opts Options) *Capturer {
	if opts.StateDir == "" {
		opts.StateDir = capture.DefaultStateDir()
	}
	return &Capturer{host: host, opts: opts}
}

// capturing is one capture of one machine, from the lock on its state file to DropOlder or DropNew.
type capturing struct {
	host   *hostlibvirt.Host
	client *rpc.Client
	dom    rpc.Domain
	plan   capture.Plan
	state  *stateFile
	disks  []*disk
	others []string // drives that are not captured

	emulator string // QEMU's binary
	qemu     uint64 // version
	rung     rung
	taken    time.Time // the instant

	startWatch func(ctx context.Context, machine string) (*watcher, error)
}

// rung is how the disks of a capture are read once the instant has been taken.
type rung interface {
	// prepare makes ready what the instant needs, before the guest is asked to hold still.
	prepare(ctx context.Context, s *capturing) error
	// backupXML describes the job.
	backupXML(s *capturing) string
	// read waits for the job and hands the disks to sink. No job runs when it returns, whatever it
	// returns.
	read(ctx context.Context, s *capturing, sink capture.Sink) error
	// close releases what prepare took of libvirtd, which may be called again then.
	close()
}

// Capture takes the instant and reads it all into sink.
func (c *Capturer) Capture(ctx context.Context, machine string, plan capture.Plan, hooks capture.Hooks,
	sink capture.Sink) (*capture.Result, error) {
	s, err := c.begin(ctx, machine, plan)
	if err != nil {
		return nil, fmt.Errorf("capture %s: %w", machine, err)
	}
	err = s.run(ctx, c, hooks, sink)
	if err == nil {
		err = s.state.note(func(r *record) { r.Read = true }) // from here on the vault may commit the point
	}
	if err != nil {
		return nil, fmt.Errorf("capture %s: %w", machine, errors.Join(err, s.undo()))
	}
	return s.result(), nil
}

func (c *Capturer) begin(ctx context.Context, machine string, plan capture.Plan) (*capturing, error) {
	if plan.Log == nil {
		plan.Log = func(string, ...any) {}
	}
	if plan.Progress == nil {
		plan.Progress = func(int64, int64) {}
	}
	client, dom, err := c.host.Domain(ctx, machine)
	if err != nil {
		return nil, err
	}
	st, err := client.DomainState(ctx, dom)
	if err != nil {
		return nil, fmt.Errorf("ask for its state: %w", err)
	}
	if !active(st) {
		return nil, capture.ErrOff
	}
	version, err := client.Version(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask for QEMU's version: %w", err)
	}
	state, err := openState(c.opts.StateDir, dom)
	if err != nil {
		return nil, err
	}
	return &capturing{host: c.host, client: client, dom: dom, plan: plan, state: state, qemu: version,
		startWatch: c.startWatch}, nil
}

func active(st rpc.State) bool {
	return st.State != rpc.StateOff && st.State != rpc.StateCrashed && st.State != 0
}

// run does all up to a result that can be committed.
func (s *capturing) run(ctx context.Context, c *Capturer, hooks capture.Hooks, sink capture.Sink) error {
	if s.state.unfinished() {
		done, err := recoverState(ctx, s.client, s.dom, s.state, s.plan.Vault, s.committed())
		for _, what := range done {
			s.plan.Log("left by a capture that was killed: %s", what)
		}
		if err != nil {
			return fmt.Errorf("clean up after a capture that was killed: %w", err)
		}
	}
	if err := s.examine(ctx, c.host); err != nil {
		return err
	}
	if err := s.choose(ctx, c); err != nil {
		return err
	}
	if err := s.instant(ctx, hooks); err != nil {
		return err
	}
	err := s.rung.read(ctx, s, sink)
	return errors.Join(err, s.removeScratch())
}

// undo removes what an unsuccessful capture left, and releases the machine.
func (s *capturing) undo() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	err := s.reconnect(ctx)
	if err == nil {
		err = s.recoverOwn(ctx)
	}
	s.release(err == nil)
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

// recoverOwn undoes what this capture noted. Its vault has not seen a point.
func (s *capturing) recoverOwn(ctx context.Context) error {
	s.state.record.Read = false
	_, err := recoverState(ctx, s.client, s.dom, s.state, "", nil)
	return err
}

// committed returns the records of changes that points of the vault count from.
func (s *capturing) committed() []string {
	out := slices.Clone(s.plan.Keep)
	for _, d := range s.plan.Disks {
		out = append(out, d.LastBitmap)
	}
	return out
}

func (s *capturing) result() *capture.Result {
	r := &capture.Result{Rung: s.rungName(), Instant: s.taken, Reason: s.reason()}
	for _, d := range s.disks {
		r.Disks = append(r.Disks, d.result())
	}
	r.DropOlder = func(ctx context.Context) error { return s.finish(ctx, s.dropOlder) }
	r.DropNew = func(ctx context.Context) error { return s.finish(ctx, s.dropNew) }
	return r
}

func (s *capturing) rungName() point.Rung {
	if _, ok := s.rung.(*pull); ok {
		return point.Pull
	}
	return point.Push
}

func (s *capturing) reason() string {
	if p, ok := s.rung.(*pull); ok {
		return p.why
	}
	return ""
}

// finish runs the last step and releases the machine. A second call does nothing.
func (s *capturing) finish(ctx context.Context, step func(context.Context) error) error {
	if s.state.closed {
		return nil
	}
	err := s.reconnect(ctx)
	if err == nil {
		err = step(ctx)
	}
	s.release(err == nil)
	return err
}

// reconnect makes sure of a connection: libvirtd may have been restarted, and a machine must not
// stay suspended for that.
func (s *capturing) reconnect(ctx context.Context) error {
	select {
	case <-s.client.Closed():
	default:
		return nil
	}
	for {
		client, err := s.host.Client(ctx)
		if err == nil {
			s.client = client
			if len(s.disks) == 0 {
				return nil
			}
			// A libvirtd that begins to serve has yet to find its machines and their jobs; this
			// waits for ours. If the machine is gone, what follows finds out.
			_, err = client.DomainBlockInfo(ctx, s.dom, s.disks[0].Name)
			if !errors.Is(err, rpc.ErrClosed) {
				return ctx.Err()
			}
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pollEvery):
		}
	}
}

// release ends the capture.
func (s *capturing) release(clean bool) {
	s.state.close(clean)
	if s.rung != nil {
		s.rung.close()
	}
}

func (s *capturing) dropOlder(ctx context.Context) error {
	if s.plan.NoEpoch {
		return nil
	}
	names, err := s.client.Checkpoints(ctx, s.dom)
	if err != nil {
		return fmt.Errorf("commit capture of %s: list checkpoints: %w", s.dom.Name, err)
	}
	for _, name := range names {
		if name == s.checkpoint() || !ofVault(name, s.plan.Vault) || slices.Contains(s.plan.Keep, name) {
			continue
		}
		if err := dropCheckpoint(ctx, s.client, s.dom, name); err != nil {
			return fmt.Errorf("commit capture of %s: %w", s.dom.Name, err)
		}
	}
	// A bitmap whose checkpoint libvirt has lost is of no use to anybody.
	for _, d := range s.disks {
		if d.orphan != "" && !slices.Contains(s.plan.Keep, d.orphan) {
			if err := dropBitmap(ctx, s.client, s.dom, d.orphan); err != nil {
				return fmt.Errorf("commit capture of %s: %w", s.dom.Name, err)
			}
		}
	}
	return nil
}

func (s *capturing) dropNew(ctx context.Context) error {
	if !s.tracks() {
		return nil
	}
	if err := dropCheckpoint(ctx, s.client, s.dom, s.checkpoint()); err != nil {
		return fmt.Errorf("abort capture of %s: %w", s.dom.Name, err)
	}
	return nil
}

func (s *capturing) checkpoint() string { return capture.BitmapName(s.plan.Vault, s.plan.Epoch) }

// tracks reports whether any disk of the capture gets a bitmap.
func (s *capturing) tracks() bool {
	for _, d := range s.disks {
		if s.begins(d) {
			return true
		}
	}
	return false
}

// begins reports whether an epoch of d begins at the instant.
func (s *capturing) begins(d *disk) bool { return d.qcow2() && !s.plan.NoEpoch }
