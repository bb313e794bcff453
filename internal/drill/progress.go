package drill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
)

const (
	stillTime   = 30 * time.Second // after which a guest of which nothing moves is not waited for
	stillLooks  = 5                // that find its processors at the same places
	consoleSeen = 4096             // bytes of the serial console that are compared
)

// Progress is what was seen from outside of a guest that did not answer.
type Progress struct {
	Still      bool              `json:"still"`       // its processors were at the same places in every look, deaf to interrupts
	Seconds    float64           `json:"seconds"`     // since it last read of its disks or wrote to its serial console
	Looks      int               `json:"looks"`       // at its processors in that time
	ReadBytes  int64             `json:"read_bytes"`  // of its disks, since it was started
	Wrote      bool              `json:"wrote"`       // to its serial console, since it was started
	Processors []accel.Processor `json:"processors"`  // where they were last
	KVM        string            `json:"kvm_trouble"` // what came of a test guest under KVM, "" if it ran or none was tried
}

// progress follows a guest from outside.
type progress struct {
	began, moved time.Time
	looked       time.Time // last
	start        int64     // bytes read before it ran
	read         int64
	console      string
	first, last  []accel.Processor // in the looks since it moved
	looks        int
	still        bool
	tried        bool // whether KVM is at fault
	trouble      error
}

// sight is what one look at a guest finds.
type sight struct {
	read       int64
	console    string
	processors []accel.Processor // none if they cannot be seen
}

// newProgress begins with a guest that has not run, with what was read of its disks before.
func newProgress(now time.Time, read int64) progress {
	return progress{began: now, moved: now, looked: now, start: read, read: read}
}

// note takes a look into account.
func (p *progress) note(now time.Time, s sight) {
	p.looked = now
	if s.read != p.read || s.console != p.console {
		p.moved, p.read, p.console = now, s.read, s.console
		p.first, p.looks, p.still = nil, 0, false
	}
	if len(s.processors) == 0 {
		return
	}
	if p.last = s.processors; p.first == nil {
		p.first, p.still = s.processors, true
	}
	p.looks++
	p.still = p.still && slices.EqualFunc(p.first, s.processors, sameDeafPlace)
}

// sameDeafPlace reports whether a processor has not moved and can only be moved by a reset. One
// that waits for interrupts is idle, and one that counts or copies works.
func sameDeafPlace(a, b accel.Processor) bool { return a == b && !a.Interrupts }

// stands reports whether the guest will not move any more.
func (p *progress) stands() bool { return p.still && p.looks >= stillLooks }

// quiet returns for how long nothing was read or written.
func (p *progress) quiet() time.Duration { return p.looked.Sub(p.moved) }

// silent reports whether nothing was read or written at all, in a time in which every guest does.
func (p *progress) silent() bool {
	return p.read == p.start && p.moved.Equal(p.began) && p.quiet() >= watchEvery*stillLooks
}

func (p *progress) result() *Progress {
	out := &Progress{Still: p.stands(), Seconds: p.quiet().Seconds(), Looks: p.looks, ReadBytes: p.read - p.start,
		Wrote: p.console != "", Processors: p.last}
	if p.trouble != nil {
		out.KVM = p.trouble.Error()
	}
	return out
}

// words say what was seen of a guest that made no progress.
func (p *progress) words() string {
	text := fmt.Sprintf("the guest made no progress: for %.0f s it read nothing from its disks and wrote nothing to "+
		"its "+
		"serial console", p.quiet().Seconds())
	var places []string
	for _, at := range p.last {
		places = append(places, at.String())
	}
	switch {
	case len(places) == 0:
	case p.stands():
		text += fmt.Sprintf(", and its processor stood at %s in all of %d looks", strings.Join(places, " and "),
			p.looks)
	default:
		text += ", and its processor was last at " + strings.Join(places, " and ")
	}
	return text
}

// follow looks at a guest that does not answer, now and then, and ends the wait for one that stands
// still. A *failure is a verdict.
func (r *run) follow(ctx context.Context) error {
	now := r.o.Now()
	if now.Sub(r.progress.looked) < watchEvery || !r.lostAt.IsZero() {
		return nil
	}
	r.progress.note(now, r.sight(ctx))
	if ctx.Err() != nil || r.progress.quiet() < stillTime {
		return ctx.Err()
	}
	err := r.blame(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil || r.progress.stands() {
		return r.noProgress()
	}
	return nil
}

// sight looks at the guest once. What cannot be seen is not there.
func (r *run) sight(ctx context.Context) sight {
	s := sight{read: r.disks.read()}
	s.console, _ = r.host.SerialText(ctx, r.machine(), consoleSeen)
	s.processors, _ = r.host.Processors(ctx, r.machine())
	return s
}

// blame tries, once, whether guests run under what runs the machine, and returns why not.
func (r *run) blame(ctx context.Context) error {
	p := &r.progress
	if !p.tried {
		p.tried, p.trouble = true, r.o.Trouble(ctx, r.prospect)
	}
	return p.trouble
}

// lookAgain looks once more at a guest that has had its time, and as often as it takes to call one
// that does not move a standing one.
func (r *run) lookAgain(ctx context.Context) error {
	r.progress.note(r.o.Now(), r.sight(ctx))
	for more := stillLooks; r.progress.still && !r.progress.stands() && more > 0; more-- {
		if err := r.pause(ctx); err != nil {
			return err
		}
		r.progress.note(r.o.Now(), r.sight(ctx))
	}
	r.blame(ctx)
	return ctx.Err()
}

// agentless is the verdict on a guest that cannot be asked.
func (r *run) agentless(ctx context.Context) error {
	if err := r.lookAgain(ctx); err != nil {
		return err
	}
	if r.progress.stands() || r.progress.silent() {
		return r.noProgress()
	}
	return failed("the machine has no guest agent channel, and nothing else proves that it booted")
}

// noProgress is the verdict on a guest that was seen to make none.
func (r *run) noProgress() error {
	r.res.Progress = r.progress.result()
	return failed("%s%s", r.progress.words(), r.fault())
}

// fault is what the host has to do with it.
func (r *run) fault() string {
	if r.progress.trouble == nil {
		return ""
	}
	return "; it is not the point's fault: " + r.progress.trouble.Error()
}

// unanswered is the verdict on a guest whose agent did not answer in time.
func (r *run) unanswered(ctx context.Context, err error) error {
	if err := r.lookAgain(ctx); err != nil {
		return err
	}
	r.res.Progress = r.progress.result()
	why := silence(err)
	if r.progress.stands() || r.progress.silent() {
		why = r.progress.words()
	}
	return failed("the guest agent did not answer within %v: %s%s", r.req.Timeout, why, r.fault())
}

// foresee finds out how the machine will run, and refuses one that cannot.
func (r *run) foresee(ctx context.Context) error {
	p := r.req.Point
	var err error
	r.prospect, err = r.host.Prospect(ctx, hypervisor.Rebuild{Point: p, Name: r.note.Name, StorageDir: r.note.Dir,
		Isolated: true, Start: true, Accel: r.req.Accel})
	if errors.Is(err, hypervisor.ErrNoKVM) || errors.Is(err, hypervisor.ErrNoQEMU) {
		return err
	}
	r.res.Accel = r.prospect.Accel // of other errors Define tells, in a verdict
	return ctx.Err()
}
