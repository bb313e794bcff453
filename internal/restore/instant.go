package restore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/durable"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// InstantHost is what an instant restore needs of a host.
type InstantHost interface {
	Host
	hypervisor.Hydrator
	hypervisor.Remover
}

// InstantOptions tunes the process that hydrates. The zero value of each field is its default.
type InstantOptions struct {
	RunDir   string // for the export's socket where Storage is too long a path for one; "" means /run/holdfast
	Progress func(stage string, done, total int64)
	Log      func(format string, args ...any) // what happens, in words
	// Started is told once the machine is defined and, if that was asked, runs.
	Started func(RestoredMachine)
	// Guard starts what calls [RescueInstant] if this process ends without calling release. It is
	// asked for while the machine stands still.
	Guard func(storage, name, host string) (release func(), err error)
	// Trouble tries how a machine would run that is started again; nil means [accel.Trouble].
	Trouble func(context.Context, hypervisor.Prospect) error
	FS      durable.FS       // where the state is kept; nil is the file system
	Now     func() time.Time // nil means time.Now
	Tick    time.Duration    // between two looks at the machine; 0 means 200 ms
}

func (o InstantOptions) withDefaults() InstantOptions {
	if o.RunDir == "" {
		o.RunDir = "/run/holdfast"
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if o.Started == nil {
		o.Started = func(RestoredMachine) {}
	}
	if o.Guard == nil {
		o.Guard = func(string, string, string) (func(), error) { return func() {}, nil }
	}
	if o.FS == nil {
		o.FS = durable.OS{}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Tick == 0 {
		o.Tick = 200 * time.Millisecond
	}
	return o
}

// instant is an instant restore that this process works on.
type instant struct {
	instantPlace
	opts InstantOptions
	v    *vault.Vault // nil if nothing is left to read
	host InstantHost
	st   InstantState

	unlock   func(remove bool)
	progress time.Time // when the state was last saved for the sake of progress
	begun    bool      // by this process
}

// Instant brings a machine back at once: it defines the machine on overlays over an export of the
// point, starts it if asked, and copies its disks to local images while it runs. It returns when
// the machine does not depend on us. Until then this process serves the export. A process that ends
// before leaves the machine waiting for its disks and all that is needed to go on with
// [ResumeInstant], or with the same request.
//
// What fails before the machine is defined leaves nothing behind. Errors that callers decide by:
// those of [Machine], diskimage.ErrNoSpace, [ErrInstantBusy], [ErrAbandoned].
func Instant(ctx context.Context, v *vault.Vault, host InstantHost, req MachineRequest, rate int64,
	o InstantOptions) (RestoredMachine, error) {
	o = o.withDefaults()
	if err := req.check(host.URI()); err != nil {
		return RestoredMachine{}, err
	}
	if len(req.Keys.Secrets) > 0 {
		return RestoredMachine{}, errInstantKeys
	}
	p, err := placeOf(o.FS, req.Storage, req.Name)
	if err != nil {
		return RestoredMachine{}, err
	}
	i := &instant{instantPlace: p, opts: o, v: v, host: host}
	switch st, err := p.load(); {
	case err == nil && st.Point.ID != req.Point.ID:
		return RestoredMachine{}, fmt.Errorf("%w: an instant restore of %s from point %s is under way",
			hypervisor.ErrExists, req.Name, st.Point.ID.Short())
	case err == nil:
		return i.resume(ctx)
	case !errors.Is(err, ErrNoInstant):
		return RestoredMachine{}, err
	}
	return i.begin(ctx, req, rate)
}

// ResumeInstant goes on with an instant restore whose process has ended, wherever it was. start has
// a machine started that is off, and is refused with [hypervisor.ErrNoKVM] or
// [hypervisor.ErrKVMUnfit] where it would not run; without it such a machine is not started, which
// is logged, and its disks are copied. Other errors that callers decide by: [ErrNoInstant],
// [ErrInstantBusy], [ErrAbandoned].
func ResumeInstant(ctx context.Context, v *vault.Vault, host InstantHost, storage, name string, start bool,
	o InstantOptions) (RestoredMachine, error) {
	o = o.withDefaults()
	p, err := placeOf(o.FS, storage, name)
	if err != nil {
		return RestoredMachine{}, err
	}
	i := &instant{instantPlace: p, opts: o, v: v, host: host}
	if start {
		return i.resumeStarted(ctx)
	}
	return i.resume(ctx)
}

func (i *instant) resumeStarted(ctx context.Context) (RestoredMachine, error) {
	return i.locked(ctx, func() error {
		if _, on, err := i.find(ctx); err == nil && !on {
			if err := i.standsHere(ctx); err != nil {
				return err
			}
		}
		i.st.Start, i.st.Ended = true, false
		return i.saveState()
	})
}

func (i *instant) resume(ctx context.Context) (RestoredMachine, error) {
	return i.locked(ctx, func() error { return nil })
}

// locked takes the lock, reads the state and goes on from it.
func (i *instant) locked(ctx context.Context, first func() error) (RestoredMachine, error) {
	unlock, err := i.lockAfterRescue(ctx)
	if err != nil {
		return RestoredMachine{}, err
	}
	i.unlock = unlock
	if i.st, err = i.load(); err == nil {
		err = i.sameVault()
	}
	if err == nil {
		err = i.saveState() // whoever wrote it may have been killed before it was durable
	}
	if err == nil {
		err = first()
	}
	if err == nil && i.st.Step == InstantCleaning { // its host may have lost its power just now
		err = i.startIfDue(ctx)
	}
	if err != nil {
		unlock(errors.Is(err, ErrNoInstant))
		return RestoredMachine{}, err
	}
	return i.run(ctx)
}

// lockAfterRescue takes the lock. A process that lets the machine go on after a kill in the middle
// of the move is waited for: it soon ends.
func (i *instant) lockAfterRescue(ctx context.Context) (unlock func(remove bool), err error) {
	until := i.opts.Now().Add(rescueTime)
	for {
		st, err := i.load()
		if err != nil {
			return nil, err // no lock file is made where there is nothing to lock
		}
		unlock, err := i.lock()
		if !errors.Is(err, ErrInstantBusy) || st.Step != InstantSwitching || i.opts.Now().After(until) {
			return unlock, err
		}
		if wait(ctx, lockPause); ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

func (i *instant) sameVault() error {
	if i.v != nil && i.v.ID() != i.st.Vault {
		return fmt.Errorf("its point is in vault %.8s, not in %s", i.st.Vault, i.v.ShortID())
	}
	return nil
}

// begin plans an instant restore, notes the plan and runs it.
func (i *instant) begin(ctx context.Context, req MachineRequest, rate int64) (RestoredMachine, error) {
	if err := i.plan(ctx, req); err != nil {
		return RestoredMachine{}, err
	}
	w := &workplace{dir: i.dir, name: i.name}
	if err := w.open(); err != nil {
		w.remove()
		return RestoredMachine{}, err
	}
	i.st.Made = append(w.files, i.st.Made...)
	i.begun = true
	err := i.note(rate)
	if err != nil {
		w.remove()
		return RestoredMachine{}, err
	}
	return i.run(ctx)
}

// note takes the lock and makes the plan durable.
func (i *instant) note(rate int64) error {
	unlock, err := i.lock()
	if err != nil {
		return err
	}
	i.unlock = unlock
	if err = i.setWish(InstantWish{Rate: rate}); err == nil {
		err = i.save(&i.st, durable.WriteNew)
	}
	if err != nil {
		os.Remove(i.path(wishSuffix))
		unlock(true)
	}
	return err
}

// plan decides everything, having looked that nothing is in the way. It changes nothing.
func (i *instant) plan(ctx context.Context, req MachineRequest) error {
	st := InstantState{
		Version: instantVersion, Name: i.name, Host: i.host.URI(), Vault: i.v.ID(), Storage: i.dir, Point: *req.Point,
		Networks: req.Networks, Start: req.Start, Accel: req.Accel,
		Began: i.opts.Now().UTC(), Step: InstantPreparing, Files: map[string]string{},
	}
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	st.Hold = fmt.Sprintf("the instant restore of %s in %s on %s", i.name, i.dir, hostname)
	if st.SameIdentity, st.Identity, err = identity(ctx, i.host, req); err != nil {
		return err
	}
	if err := req.runsHere(ctx, i.host); err != nil {
		return err
	}
	if st.UUID = newUUID(); st.SameIdentity {
		st.UUID = req.Point.MachineUUID
	}
	if st.Socket, err = i.instantSocket(i.opts.RunDir); err != nil {
		return err
	}
	w := &workplace{dir: i.dir, name: i.name}
	var targets []target
	var used int64
	for _, d := range req.Point.Disks {
		format := machineFormat(d, req.Format)
		t := hypervisor.HydrationTarget{Disk: d.Name, File: w.diskPath(d.Name, format), Format: format, Size: d.Size}
		st.Disks = append(st.Disks, InstantDisk{HydrationTarget: t, Used: d.Used, Total: d.Used})
		targets = append(targets, target{path: t.File}, target{path: t.Overlay()})
		st.Made = append(st.Made, t.Overlay(), t.File)
		used += d.Used
	}
	if err := w.requireFree(targets, req.Point.Files); err != nil {
		return err
	}
	for _, f := range req.Point.Files {
		path, err := w.filePath(f)
		if err != nil {
			return err
		}
		st.Files[f.Role+"/"+f.Name] = path
		st.Made = append(append(st.Made, i.missingDirs(filepath.Dir(path))...), path)
	}
	st.Made = append(st.Made, i.byHost(req)...)
	i.st = st
	return requireSpace(i.dir, used)
}

// missingDirs returns the directories below that of the machine that must be made for dir, parents
// first.
func (i *instant) missingDirs(dir string) []string {
	if _, err := os.Lstat(dir); err == nil || !strings.HasPrefix(dir, i.dir+"/") {
		return nil
	}
	return append(i.missingDirs(filepath.Dir(dir)), dir)
}

// byHost returns the files that a plain QEMU and Define will make, as far as nothing has their
// names yet.
func (i *instant) byHost(req MachineRequest) (made []string) {
	if req.Point.Definition.Kind != point.ForQEMU {
		return nil
	}
	for _, suffix := range []string{".sh", ".sh.new", ".log", ".qga.sock", ".tpm.sock"} {
		if _, err := os.Lstat(i.path(suffix)); errors.Is(err, fs.ErrNotExist) {
			made = append(made, i.path(suffix))
		}
	}
	return made
}

// requireSpace returns diskimage.ErrNoSpace if the file system that dir is, or will be, on has no
// room for need bytes.
func requireSpace(dir string, need int64) error {
	var st unix.Statfs_t
	at := dir
	err := unix.Statfs(at, &st)
	for errors.Is(err, unix.ENOENT) && filepath.Dir(at) != at {
		at = filepath.Dir(at)
		err = unix.Statfs(at, &st)
	}
	if err != nil {
		return fmt.Errorf("free space of %s: %w", dir, err)
	}
	if have := int64(st.Bavail) * st.Bsize; have < need {
		return fmt.Errorf("%w in %s: %d bytes are to be copied there, %d are free", diskimage.ErrNoSpace, dir, need,
			have)
	}
	return nil
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (i *instant) machine() hypervisor.Machine {
	return hypervisor.Machine{Name: i.name, UUID: strings.ToLower(i.st.UUID), Host: i.st.Host}
}

func (i *instant) saveState() error { return i.save(&i.st, durable.WriteReplace) }

// enter makes the next step durable.
func (i *instant) enter(step InstantStep) error {
	i.st.Step = step
	return i.saveState()
}

func (i *instant) result() RestoredMachine {
	out := RestoredMachine{SameIdentity: i.st.SameIdentity, Identity: i.st.Identity}
	out.Rebuilt = hypervisor.Rebuilt{Name: i.name, UUID: i.st.UUID, State: hypervisor.Off, Start: i.st.StartWith,
		Warnings: i.st.Warnings}
	if i.st.Started && !i.st.Ended {
		out.State, out.Start = hypervisor.Running, ""
	}
	for _, d := range i.st.Disks {
		out.Disks = append(out.Disks, RestoredDisk{Disk: d.Disk, File: d.File, Format: d.Format, Size: d.Size,
			Used: d.Used})
	}
	for _, f := range i.st.Point.Files {
		out.Files = append(out.Files, i.st.Files[f.Role+"/"+f.Name])
	}
	return out
}
