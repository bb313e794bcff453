package drill

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/holdfast-vm/holdfast/internal/drill/inside"
	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

const (
	startTime   = 3 * time.Minute  // for the host to define and start the machine
	pictureTime = 30 * time.Second // for a picture of the console
	looseTime   = 20 * time.Second // that a machine without an agent runs, for its picture
	consoleText = 2000             // bytes of the serial console that are kept
	watchEvery  = 2 * time.Second  // between two looks whether the machine still runs
)

// failure is a verdict, as opposed to an error that keeps us from one.
type failure struct{ reason string }

func (f *failure) Error() string { return f.reason }

func failed(format string, args ...any) error { return &failure{fmt.Sprintf(format, args...)} }

// run is one drill.
type run struct {
	v   *vault.Vault
	req Request
	o   Options

	note  note
	place *place // nil until something is there to be removed
	host  Host
	disks *disks
	res   *Result

	started time.Time     // of the machine
	lostAt  time.Time     // since when the host does not tell of the machine; the zero time while it does
	away    time.Duration // that it did not
	watched time.Time     // when it was last seen running

	prospect hypervisor.Prospect
	progress progress // of the guest, until its agent answers
}

func newRun(v *vault.Vault, req Request, o Options) *run {
	p := req.Point
	return &run{v: v, req: req, o: o, res: &Result{
		Time: o.Now().UTC(), Point: p.ID, VM: p.VM, PointTime: p.Time, Consistency: p.Consistency,
		Checks: []CheckResult{}, Holdfast: o.Version,
		Isolation: Isolation{Found: []string{}},
	}}
}

func (r *run) since(t time.Time) float64 {
	return math.Round(r.o.Now().Sub(t).Seconds()*1000) / 1000
}

func (r *run) machine() hypervisor.Machine {
	return hypervisor.Machine{Name: r.note.Name, UUID: r.note.UUID, Host: r.note.Host}
}

// run does all but write the verdict. Nothing is left when it returns, unless the error says so.
func (r *run) run(ctx context.Context) (Result, error) {
	err := r.prepare(ctx)
	if err == nil {
		err = r.rehearse(ctx)
	}
	if r.disks != nil {
		s := r.disks.server.Stats()
		r.res.ServedBytes, r.res.FetchedBytes, r.res.AheadBytes = s.ReadBytes, s.FetchedBytes, s.AheadBytes
	}
	if discardErr := r.discard(ctx); discardErr != nil {
		return *r.res, errors.Join(err, fmt.Errorf("discard the machine of the drill: %w", discardErr))
	}
	if ctx.Err() != nil {
		return *r.res, ctx.Err()
	}
	var f *failure
	if errors.As(err, &f) {
		r.res.Reason = f.reason
		return *r.res, nil
	}
	r.res.Verified = err == nil
	return *r.res, err
}

// rehearse starts the machine and asks it all there is to ask. A *failure is a verdict.
func (r *run) rehearse(ctx context.Context) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.isolated(ctx); err != nil {
		return err // the machine is removed at once: it has not run yet
	}
	if err := r.release(ctx); err != nil {
		return err
	}
	r.o.Log("%s runs as %s, isolated: looked at descriptors of its process: %d", r.req.Point.VM, r.note.Name,
		r.res.Isolation.Files)
	return r.guarded(ctx, func(ctx context.Context) error {
		err := r.ask(ctx)
		if ctx.Err() == nil {
			r.takePicture(ctx)
		}
		return err
	})
}

// release lets the machine run.
func (r *run) release(ctx context.Context) error {
	err := r.persist(ctx, func() error { return r.host.Release(ctx, r.machine()) })
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case lost(err):
		return err
	case err != nil:
		return failed("the machine does not start: %v", err)
	}
	return nil
}

// start has the host make and start the machine. It cannot be interrupted, so that what was made
// is known.
func (r *run) start(ctx context.Context) error {
	rebuild, err := r.rebuild(ctx)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	defining, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTime)
	defer cancel()
	r.started = r.o.Now()
	r.o.Define(&rebuild)
	built, err := r.host.Define(defining, rebuild)
	r.res.Isolation.LeftOut = append(built.Warnings, plainDisks(r.req.Point)...)
	if lost(err) {
		return err
	}
	if err != nil {
		r.blame(ctx)
		return failed("the machine does not start: %v%s", err, r.fault())
	}
	r.whatRuns(defining)
	return nil
}

// chooser is a host of machines whose definition may leave it to QEMU what runs them.
type chooser interface {
	// RunBy says what runs a machine: kvm or tcg.
	RunBy(ctx context.Context, m hypervisor.Machine) (string, error)
}

// whatRuns finds out what really runs the machine, which may not be what was foreseen: QEMU takes
// the next accelerator of a list where the first cannot be had. A host that cannot be asked now
// changes nothing; what is done with the machine next says why.
func (r *run) whatRuns(ctx context.Context) {
	h, ok := r.host.(chooser)
	if !ok {
		return
	}
	if by, err := h.RunBy(ctx, r.machine()); err == nil {
		r.prospect.Accel, r.res.Accel = by, by
	}
}

// list writes some of many.
func list(words []string) string {
	const most = 5
	text := ""
	for n, w := range words {
		if n == most {
			return text + fmt.Sprintf("; and %d more", len(words)-most)
		}
		if n > 0 {
			text += "; "
		}
		text += w
	}
	return text
}

// ask waits for the guest agent and runs the checks.
func (r *run) ask(ctx context.Context) error {
	deadline := r.started.Add(r.req.Timeout)
	r.progress = newProgress(r.o.Now(), r.disks.read())
	for {
		agent, err := r.awaitAgent(ctx, deadline)
		if err != nil {
			return err
		}
		if r.res.BootSeconds == 0 {
			r.res.BootSeconds = r.since(r.started)
			r.o.Log("the guest agent answered %.1f s after the start", r.res.BootSeconds)
		}
		guest, err := r.open(ctx, agent, deadline)
		if err == nil {
			defer agent.Close()
			r.res.Guest = guest.System()
			return r.check(ctx, guest, deadline)
		}
		agent.Close()
		if !lost(err) {
			return err
		}
		if err := r.pause(ctx); err != nil {
			return err
		}
		if _, err := r.watch(ctx); err != nil {
			return err
		}
	}
}

// open asks the guest what it is.
func (r *run) open(ctx context.Context, agent hypervisor.Agent, deadline time.Time) (*inside.Guest, error) {
	limited, cancel := context.WithTimeout(ctx, r.left(deadline, time.Second))
	defer cancel()
	guest, err := inside.Open(limited, agent)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case lost(err):
		return nil, err
	case err != nil:
		return nil, failed("the guest agent ceased to answer: %v", err)
	}
	return guest, nil
}

// awaitAgent returns when the guest agent answers.
func (r *run) awaitAgent(ctx context.Context, deadline time.Time) (hypervisor.Agent, error) {
	r.watched = r.o.Now()
	for {
		agent, err := r.host.OpenAgent(ctx, r.machine())
		if err == nil {
			return agent, nil
		}
		if err := r.pause(ctx); err != nil {
			return nil, err
		}
		hasAgent, runs := r.watch(ctx)
		if runs != nil {
			return nil, runs
		}
		if !hasAgent && r.o.Now().Sub(r.started) > min(looseTime, r.req.Timeout) {
			return nil, r.agentless(ctx)
		}
		late, runs := r.late(ctx, deadline)
		if runs != nil {
			return nil, runs
		}
		if late {
			return nil, r.unanswered(ctx, err)
		}
		if err := r.follow(ctx); err != nil {
			return nil, err
		}
	}
}

// silence says why no agent could be opened.
func silence(err error) string {
	if errors.Is(err, guest.ErrSilent) || errors.Is(err, hypervisor.ErrNoAgent) {
		return "the guest has not booted so far, or runs no agent; its console shows which"
	}
	return err.Error()
}

func (r *run) pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(r.o.Pause):
		return nil
	}
}

// watch looks now and then whether the machine still runs, and has an agent's channel.
func (r *run) watch(ctx context.Context) (hasAgent bool, err error) {
	if r.o.Now().Sub(r.watched) < watchEvery && r.lostAt.IsZero() {
		return true, nil
	}
	r.watched = r.o.Now()
	machines, err := r.look(ctx)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if over := r.disks.over(); over != nil {
		return false, fmt.Errorf("serve the machine's disks: %w", over)
	}
	if errors.Is(err, hypervisor.ErrNoMachine) {
		return false, failed("the machine has ended by itself%s", r.lastWords(ctx))
	}
	if err != nil { // of the host, which says nothing of the machine
		return true, r.absent(err)
	}
	r.present()
	for _, m := range machines {
		if m.Name != r.note.Name {
			continue
		}
		switch m.State {
		case hypervisor.Running:
			return m.Agent, nil
		case hypervisor.Paused:
			return false, failed("the machine stands still: an I/O error of its disks has stopped it, " +
				"or somebody has paused it")
		}
	}
	return false, failed("the machine has ended by itself%s", r.lastWords(ctx))
}

// look asks for the machine alone where the host can do that: others may be many, or slow to
// answer.
func (r *run) look(ctx context.Context) ([]hypervisor.Machine, error) {
	one, ok := r.host.(hypervisor.Finder)
	if !ok {
		return r.host.Machines(ctx)
	}
	m, err := one.Machine(ctx, r.note.Name)
	return []hypervisor.Machine{m}, err
}

// lastWords is what a machine that has ended wrote last.
func (r *run) lastWords(ctx context.Context) string {
	text := r.place.console()
	if text == "" {
		text, _ = r.host.SerialText(ctx, r.machine(), consoleText)
	}
	if text = inside.Tail(text, consoleText); text == "" {
		return ""
	}
	r.res.Console = text
	return "; the end of its console is kept"
}

// takePicture keeps the console: as a picture, and as text where there is a serial one.
func (r *run) takePicture(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pictureTime)
	defer cancel()
	var err error
	if r.res.picture, err = r.host.Screenshot(ctx, r.machine()); err != nil {
		r.res.NoScreenshot = err.Error()
	}
	text, err := r.host.SerialText(ctx, r.machine(), 2*consoleText)
	if err == nil && text != "" {
		r.res.Console = inside.Tail(text, consoleText)
	}
	if r.res.Console == "" && r.res.picture == nil {
		r.res.NoScreenshot += "; its serial console is not kept in a file either"
	}
}

// plainDisks names the disks whose images were encrypted: what the guest writes in a drill is not.
func plainDisks(p *point.RecoveryPoint) (out []string) {
	for _, d := range p.Disks {
		if d.WasEncrypted() {
			out = append(out, fmt.Sprintf("the encryption of disk %s is left out: what the guest writes lies plain "+
				"in the "+
				"storage directory until the drill ends", d.Name))
		}
	}
	return out
}
