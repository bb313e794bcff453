package restore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/durable"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
	"github.com/holdfast-vm/holdfast/internal/nbd"
	"github.com/holdfast-vm/holdfast/internal/restore"
)

var errDead = errors.New("the process is dead")

// world is a host with one machine, whose guest writes whenever somebody looks. What a disk image
// holds is the number of the last write to it.
type world struct {
	mu         sync.Mutex
	t          *testing.T
	name, uuid string
	defined    bool
	definition map[string]string // disk → image, of the next start
	live       map[string]string // disk → image, while it is on; nil if it is off
	paused     bool
	byOthers   bool           // an administrator has paused it, and nobody may let it go on
	holds      map[string]int // image → last write
	wrote      int            // last write of the guest, acknowledged and flushed
	jobs       map[string]int // disk → looks until its copy is ready
	stuck      int            // attempts to move after which it does not go on
	starts     int

	calls  int // of host and file system
	dieAt  int // call from which on all fail; 0 is never
	die    func()
	events []string
}

func newWorld(t *testing.T) *world {
	return &world{t: t, holds: map[string]int{}, jobs: map[string]int{}}
}

// call counts a call and lets the guest write; it fails once the process is dead.
func (w *world) call(what string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls++
	if w.live != nil && !w.paused {
		w.write()
	}
	if w.calls > 10_000 {
		w.t.Fatalf("it does not end (%q)", w.events)
	}
	if w.dieAt > 0 && w.calls >= w.dieAt {
		if w.calls == w.dieAt {
			w.events = append(w.events, fmt.Sprintf("died at call %d, %s", w.calls, what))
			w.die()
		}
		return fmt.Errorf("%s: %w", what, errDead)
	}
	return nil
}

// write has the guest write to all disks.
func (w *world) write() {
	w.wrote++
	for _, image := range w.live {
		if _, err := os.Stat(image); err != nil {
			w.t.Fatalf("the machine writes to %s, which is gone (%q)", image, w.events)
		}
		w.holds[image] = w.wrote
	}
}

// boot starts the machine from its definition, which must hold all that was ever acknowledged.
func (w *world) boot() {
	w.live, w.paused, w.byOthers = map[string]string{}, false, false
	w.starts++
	for disk, image := range w.definition {
		if _, err := os.Stat(image); err != nil || w.holds[image] != w.wrote {
			w.t.Fatalf("the machine boots from %s, which holds write %d of %d (%v) (%q)", image, w.holds[image],
				w.wrote, err, w.events)
		}
		w.live[disk] = image
	}
	w.jobs = map[string]int{}
}

// cut ends the machine as a power cut would.
func (w *world) cut() { w.live, w.paused, w.byOthers = nil, false, false }

// administer has an administrator pause the machine if it is on, having let it run first if it
// stood still.
func (w *world) administer() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.live != nil {
		for range 100 {
			w.write()
		}
		w.paused, w.byOthers = true, true
	}
}

// mark is the machine as it is: its processors have run for 20 ms for each of its writes.
func (w *world) mark() pause.Mark {
	return pause.Mark{Domain: int32(w.starts), Threads: []int{1}, Ran: int64(w.wrote) * int64(20*time.Millisecond)}
}

// goOn lets the machine go on.
func (w *world) goOn() {
	if w.byOthers {
		w.t.Errorf("a machine that an administrator has paused was let go on (%q)", w.events)
	}
	w.paused = false
}

func (w *world) GoOn(_ context.Context, _ hypervisor.Machine, held pause.Mark) error {
	w.t.Error("the machine is let go on apart")
	return nil
}

func (w *world) URI() string { return "qemu:///fake" }

func (w *world) Machines(context.Context) ([]hypervisor.Machine, error) {
	if err := w.call("machines"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.defined {
		return nil, nil
	}
	m := hypervisor.Machine{Name: w.name, UUID: w.uuid, State: hypervisor.Off}
	if w.live != nil {
		if m.State = hypervisor.Running; w.paused {
			m.State = hypervisor.Paused
		}
	}
	return []hypervisor.Machine{m}, nil
}

func (w *world) Prospect(context.Context, hypervisor.Rebuild) (hypervisor.Prospect, error) {
	return hypervisor.Prospect{Accel: "tcg"}, w.call("prospect")
}

func (w *world) Define(_ context.Context, r hypervisor.Rebuild) (hypervisor.Rebuilt, error) {
	if err := w.call("define"); err != nil {
		return hypervisor.Rebuilt{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.defined {
		return hypervisor.Rebuilt{}, hypervisor.ErrExists
	}
	for disk, image := range r.Disks {
		if r.Backing[disk] == "" || r.Formats[disk] != "qcow2" || !strings.HasSuffix(image, hypervisor.OverlaySuffix) {
			w.t.Errorf("disk %s is defined on %s, %s, over %q", disk, image, r.Formats[disk], r.Backing[disk])
		}
	}
	w.defined, w.name, w.uuid, w.definition = true, r.Name, r.UUID, r.Disks
	return hypervisor.Rebuilt{Name: r.Name, UUID: r.UUID, State: hypervisor.Off}, nil
}

func (w *world) Remove(context.Context, hypervisor.Machine) error {
	if err := w.call("remove"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.defined {
		return hypervisor.ErrNoMachine
	}
	w.defined, w.live, w.definition = false, nil, nil
	w.wrote, w.holds = 0, map[string]int{}
	return nil
}

func (w *world) Start(context.Context, hypervisor.Machine, string) error {
	if err := w.call("start"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.boot()
	return nil
}

func (w *world) Continue(context.Context, hypervisor.Machine) (bool, error) {
	err := w.call("continue")
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.live != nil && w.paused, err
}

func (w *world) Hydrate(_ context.Context, _ hypervisor.Machine, t hypervisor.HydrationTarget, _ int64) error {
	if err := w.call("hydrate " + t.Disk); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if info, err := os.Stat(t.File); err != nil || w.live[t.Disk] != t.Overlay() {
		w.t.Errorf("copy of %s on %s to %s: %v, %v", t.Disk, w.live[t.Disk], t.File, info, err)
	}
	w.jobs[t.Disk] = 1
	return nil
}

func (w *world) Hydration(_ context.Context, _ hypervisor.Machine, t hypervisor.HydrationTarget) (hypervisor.Hydration,
	error) {
	if err := w.call("hydration " + t.Disk); err != nil {
		return hypervisor.Hydration{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	left, running := w.jobs[t.Disk]
	switch {
	case w.live[t.Disk] == t.File:
		return hypervisor.Hydration{Local: true}, nil
	case !running:
		return hypervisor.Hydration{}, nil
	case left == 0:
		return hypervisor.Hydration{Running: true, Ready: true, Done: 10, Total: 10}, nil
	}
	w.jobs[t.Disk]--
	return hypervisor.Hydration{Running: true, Done: 5, Total: 10}, nil
}

func (w *world) HydrationRate(context.Context, hypervisor.Machine, hypervisor.HydrationTarget, int64) error {
	return w.call("rate")
}

// FinishHydration can die between any two of its steps, as a real one.
func (w *world) FinishHydration(_ context.Context, _ hypervisor.Machine, s hypervisor.Settlement) error {
	if err := w.call("look"); err != nil {
		return err
	}
	w.mu.Lock()
	on, ours, now := w.live != nil, false, w.mark()
	if on && w.paused {
		ours = s.Held != nil && s.Held.Holds(now) == nil
	}
	stops := on && !w.paused
	w.mu.Unlock()
	if stops {
		if err := s.Noted(now); err != nil {
			return err
		}
		if err := w.call("stop"); err != nil {
			return err
		}
		w.mu.Lock()
		w.paused, ours, now = true, true, w.mark()
		w.mu.Unlock()
		now.Stopped = true
		if err := s.Noted(now); err != nil {
			return err
		}
	}
	w.mu.Lock()
	stuck := on && w.stuck > 0
	if stuck {
		w.stuck--
	}
	w.mu.Unlock()
	switch {
	case !on && !s.Off:
		return hypervisor.ErrOff
	case on && s.Off:
		w.t.Errorf("a machine that runs was taken for one that is off (%q)", w.events)
	}
	var failed error
	for _, t := range s.Targets {
		if err := w.call("complete " + t.Disk); err != nil {
			return err
		}
		w.mu.Lock()
		left, running := w.jobs[t.Disk]
		switch {
		case !on: // the caller has seen to that
			w.holds[t.File] = w.wrote
		case w.live[t.Disk] == t.File:
		case running && left == 0:
			w.holds[t.File], w.live[t.Disk] = w.holds[t.Overlay()], t.File
			delete(w.jobs, t.Disk)
		default:
			failed = errors.New("not ready")
		}
		w.mu.Unlock()
	}
	if err := w.call("redefine"); err != nil {
		return err
	}
	w.mu.Lock()
	for _, t := range s.Targets {
		if !on || w.live[t.Disk] == t.File {
			w.definition[t.Disk] = t.File
		}
	}
	w.mu.Unlock()
	if stuck {
		return errors.Join(failed, hypervisor.ErrStandsStill)
	}
	if err := w.call("go on"); err != nil {
		return err
	}
	w.mu.Lock()
	if w.paused && ours {
		w.goOn()
	}
	w.mu.Unlock()
	return failed
}

func (w *world) Settled(_ context.Context, _ hypervisor.Machine, s hypervisor.Settlement) (map[string]bool, error) {
	if err := w.call("settled"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]bool{}
	for _, t := range s.Targets {
		out[t.Disk] = w.definition[t.Disk] == t.File
	}
	return out, nil
}

// mortalFS is a file system whose every change is a call of the world.
type mortalFS struct {
	*durable.Forgetful
	w *world
}

func (m mortalFS) Create(name string) (durable.File, error) {
	if err := m.w.call("create"); err != nil {
		return nil, err
	}
	return m.Forgetful.Create(name)
}

func (m mortalFS) Replace(from, to string) error {
	if err := m.w.call("replace"); err != nil {
		return err
	}
	return m.Forgetful.Replace(from, to)
}

func (m mortalFS) Link(from, to string) error {
	if err := m.w.call("link"); err != nil {
		return err
	}
	return m.Forgetful.Link(from, to)
}

func (m mortalFS) SyncDir(name string) error {
	if err := m.w.call("sync"); err != nil {
		return err
	}
	return m.Forgetful.SyncDir(name)
}

// instantLab is a vault, a world, and a place to restore to in which a file of somebody else lies.
type instantLab struct {
	*lab
	w       *world
	fs      *durable.Forgetful
	storage string
	start   bool
}

func newInstantLab(t *testing.T, start bool) *instantLab {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "web-vdx.raw"), []byte("another's"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &instantLab{newLab(t, rand.New(rand.NewPCG(3, 4))), newWorld(t), new(durable.Forgetful), dir, start}
}

func (l *instantLab) options() restore.InstantOptions {
	return restore.InstantOptions{FS: mortalFS{l.fs, l.w}, Tick: time.Millisecond, RunDir: l.storage,
		Log: func(format string, args ...any) {
			l.w.mu.Lock()
			defer l.w.mu.Unlock()
			l.w.events = append(l.w.events, fmt.Sprintf(format, args...))
		}}
}

func (l *instantLab) begin(ctx context.Context) error {
	req := restore.MachineRequest{Point: l.p, Name: "web", Storage: l.storage, Start: l.start}
	_, err := restore.Instant(ctx, l.v, l.w, req, 0, l.options())
	return err
}

func (l *instantLab) resume(ctx context.Context) error {
	l.w.mu.Lock()
	l.w.calls = 0
	l.w.mu.Unlock()
	_, err := restore.ResumeInstant(ctx, l.v, l.w, l.storage, "web", false, l.options())
	return err
}

// mortal runs do in a process that dies at the given call, and reports whether it came to that.
func (l *instantLab) mortal(dieAt int, do func(ctx context.Context) error) (died bool, err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	l.w.calls, l.w.dieAt, l.w.die = 0, dieAt, func() { died = true; cancel(errDead) }
	err = do(ctx)
	l.w.dieAt = 0
	return died, err
}

// requireDone fails unless the machine is on its local disks alone, and nothing else is left.
func (l *instantLab) requireDone(t *testing.T) {
	t.Helper()
	var want []string
	for _, d := range l.p.Disks {
		file := "web-" + d.Name + "." + map[bool]string{true: "raw", false: "qcow2"}[d.Source.Format == "raw"]
		want = append(want, file)
		if l.w.definition[d.Name] != filepath.Join(l.storage, file) {
			t.Errorf("disk %s is defined on %s (%q)", d.Name, l.w.definition[d.Name], l.w.events)
		}
		if !l.start {
			requireImage(t, filepath.Join(l.storage, file), file[strings.LastIndex(file, ".")+1:], l.disks[d.Name])
		}
	}
	want = append(want, "web-nvram-web_VARS.fd", "web-tpm", "web-tpm/tpm2", "web-tpm/tpm2/state", "web-vdx.raw")
	slices.Sort(want)
	got := listed(t, l.storage)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("left are %q, want %q (%q)", got, want, l.w.events)
	}
	if l.w.live != nil && l.w.paused != l.w.byOthers {
		t.Errorf("the machine stands still: %v (%q)", l.w.paused, l.w.events)
	}
}

// requireNothing fails unless only what was there before is left.
func (l *instantLab) requireNothing(t *testing.T) {
	t.Helper()
	if got := listed(t, l.storage); l.w.defined || !slices.Equal(got, []string{"web-vdx.raw"}) {
		t.Errorf("left are %q, machine defined: %v (%q)", got, l.w.defined, l.w.events)
	}
	text, err := os.ReadFile(filepath.Join(l.storage, "web-vdx.raw"))
	if err != nil || string(text) != "another's" {
		t.Errorf("the file of another holds %q, %v", text, err)
	}
}

// Whichever call the process dies at, with the machine or without it, going on loses no write and
// ends with local disks and nothing else.
func TestInstantSurvivesEveryDeath(t *testing.T) {
	for _, tt := range []struct {
		name                            string
		start, cut, rescued, admin, dim bool // dim: power is lost after the second death
	}{{name: "running", start: true}, {name: "rescued", start: true, rescued: true},
		{name: "paused by an administrator", start: true, admin: true},
		{name: "rescued, paused by an administrator", start: true, rescued: true, admin: true},
		{name: "power cut", start: true, cut: true}, {name: "power cut after a second kill", start: true, dim: true},
		{name: "off"}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for at := 1; ; at++ {
				l := newInstantLab(t, tt.start)
				died, err := l.mortal(at, l.begin)
				if !died {
					if err != nil {
						t.Fatal(err)
					}
					l.requireDone(t)
					if at < 20 {
						t.Errorf("it took only %d calls", at)
					}
					return
				}
				if tt.admin {
					l.w.administer()
				}
				if tt.rescued {
					l.rescue(t)
				}
				l.goOn(t, tt.cut, tt.dim, at)
			}
		})
	}
}

// rescue does what the guard does after a death: a machine that stands still goes on at once.
func (l *instantLab) rescue(t *testing.T) {
	t.Helper()
	if err := restore.RescueInstant(context.Background(), l.w, l.storage, "web"); err != nil &&
		!errors.Is(err, restore.ErrNoInstant) && !errors.Is(err, hypervisor.ErrOff) {
		t.Fatalf("rescue: %v (%q)", err, l.w.events)
	}
	if l.w.live != nil && l.w.paused != l.w.byOthers {
		t.Fatalf("after its rescue the machine stands still: %v (%q)", l.w.paused, l.w.events)
	}
}

// A machine that stands still after an attempt to move it goes on after the next.
func TestInstantTriesAgain(t *testing.T) {
	l := newInstantLab(t, true)
	l.w.stuck = 3
	if err := l.begin(context.Background()); err != nil {
		t.Fatal(err)
	}
	l.requireDone(t)
	if l.w.stuck != 0 {
		t.Errorf("%d attempts were not made", l.w.stuck)
	}
}

// A resume right after a kill in the middle of the move waits for the process that lets the
// machine go on.
func TestInstantWaitsForRescue(t *testing.T) {
	for at := 1; ; at++ {
		l := newInstantLab(t, true)
		if died, _ := l.mortal(at, l.begin); !died {
			t.Fatal("it never died in the middle of the move")
		}
		if st, err := restore.ReadInstant(l.storage, "web"); err != nil || st.Step != restore.InstantSwitching {
			continue
		}
		f, err := os.OpenFile(filepath.Join(l.storage, "web.instant.lock"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		whole := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
			t.Fatal(err)
		}
		o, looks := l.options(), 0
		o.Now = func() time.Time {
			if looks++; looks == 3 { // it has found the lock taken
				f.Close()
			}
			return time.Now()
		}
		if _, err := restore.ResumeInstant(context.Background(), l.v, l.w, l.storage, "web", false, o); err != nil {
			t.Fatal(err)
		}
		l.requireDone(t)
		return
	}
}

// goOn resumes a restore that died, dying once more on the way.
func (l *instantLab) goOn(t *testing.T, cut, dim bool, at int) {
	t.Helper()
	if cut {
		l.losePower(t)
	}
	if _, err := l.mortal(1+at*7%23, l.resume); err != nil && cut || dim {
		l.losePower(t)
	}
	err := l.resume(context.Background())
	switch {
	case err == nil:
		l.requireDone(t)
	case !errors.Is(err, restore.ErrNoInstant):
		t.Fatalf("call %d: %v (%q)", at, err, l.w.events)
	case l.w.defined:
		l.requireDone(t)
	default:
		l.requireNothing(t)
	}
}

// losePower ends the machine, and what was not synced is gone.
func (l *instantLab) losePower(t *testing.T) {
	t.Helper()
	l.w.cut()
	if err := l.fs.LosePower(); err != nil {
		t.Fatal(err)
	}
}

// A restore can be abandoned after any death, and then nothing of it is left; once its disks are
// local it cannot.
func TestInstantAbandoned(t *testing.T) {
	for at := 1; ; at++ {
		l := newInstantLab(t, true)
		died, _ := l.mortal(at, l.begin)
		if !died {
			return
		}
		for die := range 4 {
			l.mortal(1+die*2, func(ctx context.Context) error {
				_, err := restore.AbandonInstant(ctx, l.v, l.w, l.storage, "web", l.options())
				return err
			})
		}
		_, err := restore.AbandonInstant(context.Background(), l.v, l.w, l.storage, "web", l.options())
		switch {
		case errors.Is(err, restore.ErrTooLate):
			if err := l.resume(context.Background()); err != nil {
				t.Fatal(err)
			}
			l.requireDone(t)
		case err != nil && !errors.Is(err, restore.ErrNoInstant):
			t.Fatalf("call %d: %v (%q)", at, err, l.w.events)
		case l.w.defined:
			l.requireDone(t)
		default:
			l.requireNothing(t)
		}
	}
}

// While it copies, others see it, pause it and give it up, and the point's disks can be read at its
// socket.
func TestInstantIsLookedAfter(t *testing.T) {
	l := newInstantLab(t, true)
	dir := l.storage
	started := make(chan restore.RestoredMachine, 1)
	o := l.options()
	o.Started = func(r restore.RestoredMachine) { started <- r }
	ended := make(chan error, 1)
	wish := restore.InstantWish{Paused: true, Rate: 5}
	go func() {
		req := restore.MachineRequest{Point: l.p, Name: "web", Storage: dir, Start: true}
		o.Started = func(r restore.RestoredMachine) {
			if err := restore.SetInstantWish(dir, "web", wish); err != nil {
				t.Error(err)
			}
			started <- r
		}
		_, err := restore.Instant(context.Background(), l.v, l.w, req, 0, o)
		ended <- err
	}()
	if r := <-started; r.State != hypervisor.Running || !r.SameIdentity || len(r.Disks) != 3 {
		t.Errorf("started %+v", r)
	}
	list, err := restore.Instants(dir)
	if err != nil || len(list) != 1 || list[0].Name != "web" || list[0].Step != restore.InstantHydrating {
		t.Fatalf("under way are %+v, %v", list, err)
	}
	if served, err := restore.InstantServed(dir, "web"); err != nil || !served {
		t.Errorf("served: %v, %v", served, err)
	}
	if got, err := restore.ReadInstantWish(dir, "web"); err != nil || got != wish {
		t.Errorf("the wish is %+v, %v", got, err)
	}
	c, err := nbd.Dial(t.Context(), nbd.Options{Network: "unix", Address: list[0].Socket, Export: "vdb"})
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, c.Size())
	if err := c.Read(t.Context(), data, 0); err != nil || !bytes.Equal(data, l.disks["vdb"]) {
		t.Errorf("the export is not the disk: %v", err)
	}
	c.Close()
	if err := l.resume(context.Background()); !errors.Is(err, restore.ErrInstantBusy) {
		t.Errorf("a second process: %v", err)
	}
	if err := l.begin(context.Background()); !errors.Is(err, restore.ErrInstantBusy) {
		t.Errorf("the same again: %v", err)
	}
	if await, err := restore.AbandonInstant(context.Background(), l.v, l.w, dir, "web", l.options()); err != nil ||
		!await {
		t.Errorf("abandon: %v, %v", await, err)
	}
	if err := <-ended; !errors.Is(err, restore.ErrAbandoned) {
		t.Errorf("abandoned it ends with %v", err)
	}
	l.requireNothing(t)
}

// What cannot end well is refused before anything is changed.
func TestInstantRefusals(t *testing.T) {
	l := newInstantLab(t, true)
	blocked := filepath.Join(l.storage, "web-vda.qcow2"+hypervisor.OverlaySuffix)
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.begin(context.Background()); !errors.Is(err, diskimage.ErrExists) {
		t.Errorf("with a file in the way: %v", err)
	}
	os.Remove(blocked)
	used := l.p.Disks[0].Used
	l.p.Disks[0].Used = 1 << 55
	if err := l.begin(context.Background()); !errors.Is(err, diskimage.ErrNoSpace) {
		t.Errorf("without room: %v", err)
	}
	l.p.Disks[0].Used = used
	l.requireNothing(t)
	l.w.defined, l.w.name = true, "web"
	if err := l.begin(context.Background()); !errors.Is(err, hypervisor.ErrExists) {
		t.Errorf("with a machine in the way: %v", err)
	}
	l.w.defined = false
	if err := l.resume(context.Background()); !errors.Is(err, restore.ErrNoInstant) {
		t.Errorf("nothing to resume: %v", err)
	}
	if _, err := restore.Instants(filepath.Join(l.storage, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("list of no directory: %v", err)
	}
	l.requireNothing(t)
}
