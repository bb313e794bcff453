package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

const (
	// reconnectDelay is how long a machine's reads wait for an export that is away before the
	// machine stops: less than guests wait for a disk of theirs, and no longer than a monitor may
	// be silent.
	reconnectDelay = 10 * time.Second
	undoTime       = time.Minute

	// rescueTime is how long to wait for the process that lets a machine go on after a kill: it may
	// have to wait until reads of the export that is gone have failed, and drains the copies.
	rescueTime = 30 * time.Second
	lockPause  = 100 * time.Millisecond
)

// run takes one step after the other until the machine does not depend on us.
func (i *instant) run(ctx context.Context) (RestoredMachine, error) {
	export, err := i.serve(ctx)
	if err != nil {
		i.unlock(false)
		return RestoredMachine{}, i.undoFresh(err)
	}
	if err = i.hold(ctx); err == nil {
		err = i.steps(ctx, export)
	} else {
		err = i.undoFresh(err)
	}
	if closeErr := export.close(); err == nil || errors.Is(err, ErrAbandoned) {
		err = errors.Join(err, closeErr, i.forget())
	}
	i.unlock(err == nil || errors.Is(err, ErrAbandoned))
	if err != nil {
		return RestoredMachine{}, err
	}
	return i.result(), nil
}

// undoFresh takes an instant restore back that has not even been able to serve its export.
func (i *instant) undoFresh(cause error) error {
	if !i.begun {
		return cause
	}
	return errors.Join(cause, i.removeAll(context.Background()), i.forget())
}

func (i *instant) steps(ctx context.Context, export *instantExport) error {
	for {
		var err error
		switch i.st.Step {
		case InstantPreparing:
			err = i.prepare(ctx)
		case InstantHydrating:
			err = i.hydrate(ctx, export)
		case InstantSwitching:
			err = i.switchOver(ctx)
		case InstantCleaning:
			return i.clean()
		case InstantAbandoning:
			return errors.Join(ErrAbandoned, i.removeAll(ctx))
		default:
			err = fmt.Errorf("instant restore %s is in the unknown step %q", i.name, i.st.Step)
		}
		if err != nil {
			return err
		}
	}
}

// prepare makes overlays, files and the definition. What an earlier process may have made
// is made anew: the machine has never run. An error takes everything back.
func (i *instant) prepare(ctx context.Context) error {
	err := i.makeAnew(ctx)
	if err == nil {
		return i.enter(InstantHydrating)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if undoErr := i.removeAll(ctx); undoErr != nil {
		return errors.Join(err, undoErr)
	}
	return errors.Join(err, i.forget())
}

func (i *instant) makeAnew(ctx context.Context) error {
	if !i.begun {
		if err := i.removeAll(ctx); err != nil {
			return err
		}
	}
	w := &workplace{dir: i.dir, name: i.name}
	if err := w.open(); err != nil {
		return err
	}
	rebuild := hypervisor.Rebuild{
		Point: &i.st.Point, Name: i.name, SameIdentity: i.st.SameIdentity, UUID: i.st.UUID, StorageDir: i.dir,
		Networks: i.st.Networks, Accel: i.st.Accel,
		Disks: map[string]string{}, Formats: map[string]string{}, Backing: map[string]string{},
		Files: map[string]string{},
	}
	for _, d := range i.st.Disks {
		if err := makeOverlay(d.HydrationTarget, i.st.Socket); err != nil {
			return err
		}
		rebuild.Disks[d.Disk], rebuild.Formats[d.Disk], rebuild.Backing[d.Disk] = d.Overlay(), "qcow2",
			exportURI(i.st.Socket, d.Disk)
	}
	for _, f := range i.st.Point.Files {
		path, err := w.writeFile(ctx, i.v, f)
		if err != nil {
			return fmt.Errorf("restore %s file %s: %w", f.Role, f.Name, err)
		}
		rebuild.Files[f.Role+"/"+f.Name] = path
	}
	if err := syncDir(i.dir); err != nil {
		return err
	}
	built, err := i.host.Define(ctx, rebuild)
	if err != nil {
		return fmt.Errorf("define machine %s: %w", i.name, err)
	}
	i.st.Warnings, i.st.StartWith = built.Warnings, built.Start
	if err := i.noteOwnFiles(); err != nil {
		return err
	}
	if i.st.UUID == "" {
		i.st.UUID = built.UUID
	}
	return nil
}

var ownFile = regexp.MustCompile(`^\.[A-Za-z0-9_.-]+`)

// noteOwnFiles adds the sockets, logs and other files that a plain QEMU will make under the
// machine's name, by its start script, to what is removed when it is abandoned.
func (i *instant) noteOwnFiles() error {
	text, err := os.ReadFile(i.path(".sh"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the host has another form of definition
	}
	if err != nil {
		return err
	}
	plain := strings.NewReplacer(`'\''`, `'`, ",,", ",").Replace(string(text))
	for _, rest := range strings.Split(plain, i.path(""))[1:] {
		suffix := ownFile.FindString(rest)
		path := i.path(suffix)
		if _, err := os.Lstat(path); suffix != "" && errors.Is(err, fs.ErrNotExist) && !slices.Contains(i.st.Made,
			path) {
			i.st.Made = append(i.st.Made, path)
		}
	}
	return nil
}

// makeOverlay makes the image that a machine runs on until its disk is local.
func makeOverlay(t hypervisor.HydrationTarget, socket string) error {
	backing := fmt.Sprintf(`json:{"driver":"raw","file":{"driver":"nbd","export":%q,"server":{"type":"unix","path":%q},"reconnect-delay":%d,"open-timeout":%[3]d}}`,
		t.Disk, socket, int(reconnectDelay.Seconds()))
	err := qcow2.Create(t.Overlay(), t.Size, qcow2.CreateOptions{BackingFile: backing, BackingFormat: "raw"})
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", t.Overlay(), diskimage.ErrExists)
	}
	return err
}

// makeTarget makes the empty image that a disk is copied to, in the place of one that a copy has
// been broken off into.
func makeTarget(t hypervisor.HydrationTarget) error {
	if err := os.Remove(t.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if t.Format == "qcow2" {
		if err := qcow2.Create(t.File, t.Size, qcow2.CreateOptions{}); err != nil {
			return err
		}
		return syncDir(filepath.Dir(t.File))
	}
	f, err := os.OpenFile(t.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(t.Size), f.Sync(), f.Close(), syncDir(filepath.Dir(t.File)))
}

// switchOver moves the machine, which stands still meanwhile, to its local disks.
func (i *instant) switchOver(ctx context.Context) error {
	release, err := i.opts.Guard(i.dir, i.name, i.st.Host)
	if err != nil {
		return fmt.Errorf("start the process that lets %s go on if this one is killed: %w", i.name, err)
	}
	err = i.finish(ctx)
	release()
	if errors.Is(err, hypervisor.ErrStandsStill) { // the next attempt may do better, in this process or the next
		i.trouble(err)
		if err := i.saveState(); err != nil {
			return err
		}
		wait(ctx, i.opts.Tick)
		return context.Cause(ctx)
	}
	return i.settled(ctx, err)
}

func (i *instant) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	err := i.host.FinishHydration(ctx, i.machine(), i.settlement())
	if !errors.Is(err, hypervisor.ErrStandsStill) {
		i.st.Held = nil
	}
	return err
}

// settlement is for the disks that are not local yet, or of which it is not known.
func (i *instant) settlement() hypervisor.Settlement {
	s := hypervisor.Settlement{StorageDir: i.dir, Held: i.st.Held, Note: func(m pause.Mark) error {
		i.st.Held = &m
		return i.saveState()
	}}
	for _, d := range i.st.Disks {
		s.Targets = append(s.Targets, d.HydrationTarget)
	}
	return s
}

// settled notes which disks are local by the machine's definition, and goes on from there. cause is
// why not all may be.
func (i *instant) settled(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	local, err := i.host.Settled(ctx, i.machine(), i.settlement())
	if err != nil {
		return errors.Join(cause, err)
	}
	all := true
	for n := range i.st.Disks {
		i.st.Disks[n].Local = local[i.st.Disks[n].Disk]
		all = all && i.st.Disks[n].Local
	}
	if all && cause == nil {
		return i.enter(InstantCleaning)
	}
	if !errors.Is(cause, hypervisor.ErrOff) { // then it is started, or its disks are copied as they are
		i.trouble(cause)
	}
	return i.enter(InstantHydrating)
}

// trouble notes and tells what hydration waits on.
func (i *instant) trouble(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != i.st.Problem && text != "" {
		i.opts.Log("%s: %s; it goes on when that is mended", i.name, text)
	}
	i.st.Problem = text
}

// clean removes what the machine does not need any more.
func (i *instant) clean() error {
	for _, d := range i.st.Disks {
		if err := removeIfThere(d.Overlay()); err != nil {
			return fmt.Errorf("remove overlay of disk %s: %w", d.Disk, err)
		}
	}
	return syncDir(i.dir)
}

// hold keeps the point from being deleted also while no process serves the machine. A vault that
// cannot be written does not keep a lost machine from coming back.
func (i *instant) hold(ctx context.Context) error {
	if i.st.Hold == "" || i.st.Step == InstantCleaning || i.st.Step == InstantAbandoning {
		return nil
	}
	err := i.v.Hold(ctx, i.st.Point.ID, i.st.Hold)
	if errors.Is(err, vault.ErrNoPoint) || ctx.Err() != nil {
		return err
	}
	if err != nil {
		i.opts.Log("do not delete point %s until %s is done: that could not be noted in the vault: %v",
			i.st.Point.ID.Short(), i.name, err)
	}
	return nil
}

// release ends the hold. What cannot be told to the vault now does not keep anything else from
// ending.
func (i *instant) release() {
	if i.st.Hold == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	err := errors.New("the vault is not at hand")
	if i.v != nil && i.v.ID() == i.st.Vault {
		err = i.v.Release(ctx, i.st.Point.ID, i.st.Hold)
	}
	if err != nil {
		i.opts.Log("point %s stays marked as needed by %s: %v; `holdfast point delete --force` deletes it nevertheless",
			i.st.Point.ID.Short(), i.st.Hold, err)
	}
}

// forget removes the notes; the state goes last.
func (i *instant) forget() error {
	i.release()
	err := errors.Join(removeIfThere(i.st.Socket), removeIfThere(i.path(wishSuffix)),
		removeIfThere(i.path(stateSuffix)))
	if syncErr := syncDir(i.dir); !errors.Is(syncErr, fs.ErrNotExist) {
		err = errors.Join(err, syncErr)
	}
	if i.st.Step == InstantCleaning || err != nil {
		return err
	}
	if i.unlock != nil {
		os.Remove(i.path(lockSuffix)) // it would keep the directory, which may be ours
	}
	for _, path := range slices.Backward(i.st.Made) {
		os.Remove(path) // directories that hold anything else stay
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeAll removes the machine and all that was made for it; notes stay.
func (i *instant) removeAll(ctx context.Context) error {
	if err := i.host.Remove(ctx, i.machine()); err != nil && !errors.Is(err, hypervisor.ErrNoMachine) {
		return err
	}
	var failed error
	for _, path := range slices.Backward(i.st.Made) {
		if info, err := os.Lstat(path); err == nil && !info.IsDir() {
			failed = errors.Join(failed, removeIfThere(path))
		}
	}
	for _, d := range i.st.Disks {
		failed = errors.Join(failed, removeHalfWritten(d.File))
	}
	return failed
}

// removeHalfWritten removes what copies of a disk that were killed have left under names of their
// own.
func removeHalfWritten(path string) error {
	left, err := diskimage.Unfinished(path)
	for _, p := range left {
		err = errors.Join(err, removeIfThere(p))
	}
	return err
}

// AbandonInstant gives an instant restore up: the machine is stopped and removed, with its disks
// and all that was made for it. Nothing that was there before is touched. A process that hydrates
// it does that itself; await tells that one does, and AbandonInstant then returns at once. It
// returns [ErrTooLate] once the machine does not depend on us.
//
// v may be nil; then the vault keeps the mark that the point is needed.
func AbandonInstant(ctx context.Context, v *vault.Vault, host InstantHost, storage, name string,
	o InstantOptions) (await bool, err error) {
	o = o.withDefaults()
	p, err := placeOf(o.FS, storage, name)
	if err != nil {
		return false, err
	}
	i := &instant{instantPlace: p, opts: o, v: v, host: host}
	if i.st, err = p.load(); err != nil {
		return false, err
	}
	if i.st.Step == InstantSwitching || i.st.Step == InstantCleaning {
		return false, fmt.Errorf("%w: %s", ErrTooLate, name)
	}
	i.unlock, err = p.lock()
	if errors.Is(err, ErrInstantBusy) {
		w, err := p.wish()
		if err != nil {
			return false, err
		}
		w.Abandon = true
		return true, p.setWish(w)
	}
	if err != nil {
		return false, err
	}
	err = i.abandon(ctx)
	i.unlock(err == nil)
	return false, err
}

func (i *instant) abandon(ctx context.Context) error {
	var err error
	if i.st, err = i.load(); err != nil {
		return err
	}
	if i.st.Step == InstantSwitching || i.st.Step == InstantCleaning {
		return fmt.Errorf("%w: %s", ErrTooLate, i.name)
	}
	if err := i.enter(InstantAbandoning); err != nil {
		return err
	}
	if err := i.removeAll(ctx); err != nil {
		return err
	}
	return i.forget()
}

// RescueInstant lets a machine go on that stands still because the process that moved it to its
// local disks was killed, having done what is left of that. Elsewhere in an instant restore it does
// nothing.
func RescueInstant(ctx context.Context, host InstantHost, storage, name string) error {
	p, err := placeOf(InstantOptions{}.withDefaults().FS, storage, name)
	if err != nil {
		return err
	}
	i := &instant{instantPlace: p, host: host, opts: InstantOptions{}.withDefaults()}
	if i.st, err = p.load(); err != nil || i.st.Step != InstantSwitching {
		return err
	}
	unlock, err := p.lock()
	if err != nil {
		return err // someone has resumed it
	}
	defer unlock(false)
	if i.st, err = p.load(); err != nil || i.st.Step != InstantSwitching {
		return err
	}
	return host.FinishHydration(ctx, i.machine(), i.settlement())
}
