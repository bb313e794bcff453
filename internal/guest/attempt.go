package guest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// Limits bounds a quiesce. The zero value of each field is its default.
type Limits struct {
	Quiesce time.Duration `json:"quiesce,omitempty"` // for the guest to hold its writes; 0 means 10 seconds, and 60 for Windows, whose VSS is slow
	Hold    time.Duration `json:"hold,omitempty"`    // held before the guest is released without having been asked; 0 means 8 seconds
	Thaw    time.Duration `json:"thaw,omitempty"`    // for one try to release the guest; 0 means 10 seconds
	Retry   time.Duration `json:"retry,omitempty"`   // for all tries to release it together; 0 means 5 minutes
}

func (l Limits) withDefaults(isWindows bool) Limits {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	if isWindows {
		def(&l.Quiesce, time.Minute)
	}
	def(&l.Quiesce, 10*time.Second)
	def(&l.Hold, 8*time.Second)
	def(&l.Thaw, 10*time.Second)
	def(&l.Retry, 5*time.Minute)
	return l
}

// Outcome is what an attempt to quiesce came to.
type Outcome struct {
	Level  point.Consistency `json:"level"`
	Reason string            `json:"reason"`         // why this level and no higher; never empty
	Held   time.Duration     `json:"held,omitempty"` // how long the guest held its writes, at most
	// Stuck says why the guest is not known to be released; a guard goes on trying. "" means that
	// we do not hold it.
	Stuck string `json:"stuck,omitempty"`
}

// attempt is one quiesce of one guest: prepare, hold, release, in this order, by one goroutine. A
// level below what is wanted is not an error; once it is settled at crash, nothing more is asked of
// the guest but its release.
type attempt struct {
	line
	want    point.Consistency
	limits  Limits
	claim   func() error // notes on disk that the guest may be held
	dismiss func() error // removes that note

	windows bool
	known   bool // what system it is
	hooks   hooks
	touched bool // a freeze was sent, so the guest must be released
	since   time.Time
	count   int // file systems held
	out     Outcome
}

// settled reports whether the level cannot get better than it is.
func (a *attempt) settled() bool { return a.out.Level == point.Crash }

// crash settles the attempt, unless an earlier reason did.
func (a *attempt) crash(format string, args ...any) {
	if !a.settled() {
		a.out.Level, a.out.Reason = point.Crash, fmt.Sprintf(format, args...)
	}
}

// prepare finds out what the guest is able to do, before anything is held.
func (a *attempt) prepare(ctx context.Context) *point.GuestReport {
	if err := a.connect(ctx); err != nil {
		a.unreachable(err)
		return nil
	}
	var i info
	if err := a.ask(ctx, answerTime, "guest-info", nil, &i); err != nil {
		a.crash(reasonAbilities, err)
		return nil
	}
	for _, name := range []string{"guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"} {
		if !i.allows(name) {
			a.crash(reasonNotAllowed, name)
		}
	}
	var system osInfo
	err := a.ask(ctx, answerTime, "guest-get-osinfo", nil, &system)
	a.known, a.windows = err == nil && system.ID != "", system.ID == windows
	a.limits = a.limits.withDefaults(a.windows)
	if a.agent == nil {
		a.crash(reasonLostEarly, err)
		return nil
	}
	report, _ := Report(ctx, a.agent) // what it cannot tell, it leaves out
	if !a.settled() && a.want == point.Application && a.known && !a.windows {
		a.hooks = findHooks(ctx, &a.line)
	}
	return report
}

// unreachable settles the attempt because no agent could be opened.
func (a *attempt) unreachable(err error) {
	switch {
	case errors.Is(err, ErrInUse):
		a.crash(reasonInUse)
	case errors.Is(err, ErrSilent):
		a.crash(reasonSilent)
	case errors.Is(err, hypervisor.ErrNoAgent):
		a.crash(reasonNoAgent, err)
	default:
		a.crash(reasonUnreachable, err)
	}
}

// hold asks the guest to hold its writes. Whatever comes of it, the guest must be released if
// touched is set.
func (a *attempt) hold(ctx context.Context) {
	frozen, err := a.frozen(ctx)
	switch {
	case err != nil:
		a.crash(reasonHeldUnknown, err)
		return
	case frozen:
		a.crash(reasonHeldByOthers)
		return
	}
	switch err := a.claim(); {
	case errors.Is(err, ErrHeldByUs):
		a.crash(reasonHeldByUs)
		return
	case err != nil:
		a.crash(reasonNotNoted, err)
		return
	}
	a.touched, a.since = true, time.Now()
	err = a.ask(ctx, a.limits.Quiesce, "guest-fsfreeze-freeze", nil, &a.count)
	if a.windows && err == nil {
		a.since = time.Now() // VSS prepares for long, and holds at the end
	}
	switch {
	case answered(err):
		a.crash(reasonRefused, described(err))
	case errors.Is(err, context.DeadlineExceeded):
		a.crash(reasonTooSlow, a.limits.Quiesce)
	case err != nil:
		a.crash(reasonLostAtFreeze, err)
	case a.count <= 0:
		a.crash(reasonNothingHeld)
	default:
		a.promise()
	}
}

// described is what the agent said, and what to look at where that is known.
func described(err error) string {
	var e *Error
	errors.As(err, &e)
	if strings.Contains(e.Desc, "Frozen event") {
		return e.Desc + " (a VSS writer failed; \"vssadmin list writers\" in the guest names it)"
	}
	return e.Desc
}

// promise sets the level that a successful freeze stands for, if the thaw confirms it.
func (a *attempt) promise() {
	held := fmt.Sprintf(reasonHeld, a.count)
	if a.count == 1 {
		held = reasonHeldOne
	}
	switch {
	case a.windows:
		a.out.Level, a.out.Reason = point.Application, reasonVSS+", and "+held
	case a.want != point.Application:
		a.out.Level, a.out.Reason = point.Filesystem, held+"; "+reasonNoMore
	case !a.known:
		a.out.Level, a.out.Reason = point.Filesystem, held+"; "+reasonSystem
	case a.hooks.Active:
		a.out.Level, a.out.Reason = point.Application, held+"; "+a.hooks.Why
	default:
		a.out.Level, a.out.Reason = point.Filesystem, held+"; "+a.hooks.Why
	}
}

// release thaws the guest, once, and sees whether that worked. The first answer to a thaw also says
// whether writes were held all the time. The guest is released whatever became of ctx.
func (a *attempt) release(ctx context.Context) error {
	if !a.touched {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	var count int
	thawErr := a.ask(ctx, a.limits.Thaw, "guest-fsfreeze-thaw", nil, &count)
	a.confirm(count, thawErr)
	frozen, err := a.frozen(ctx)
	switch {
	case errors.Is(err, ErrGone):
		err = nil
	case err == nil && frozen && thawErr != nil:
		err = thawErr
	case err == nil && frozen:
		err = errors.New("the guest agent says that it is still held")
	}
	if err != nil {
		a.out.Stuck = fmt.Sprintf("thaw: %v", err)
		return fmt.Errorf("thaw the guest: %w", err)
	}
	a.out.Held, a.out.Stuck, a.touched = time.Since(a.since), "", false
	return a.dismiss()
}

// confirm lowers the level if the answer to the thaw does not say that writes were held until then.
func (a *attempt) confirm(count int, err error) {
	switch {
	case a.settled():
	case answered(err) && !a.windows && strings.Contains(described(err), "hook"):
		// Linux runs its hooks after the file systems are released; they had been held.
		a.out.Level = point.Filesystem
		a.out.Reason = fmt.Sprintf(reasonHookAtThaw, described(err))
	case answered(err):
		a.crash(reasonNotUntilThaw, described(err))
	case err != nil:
		a.crash(reasonLostAtThaw, err)
	case count < a.count:
		a.crash(reasonSomeReleased, count, a.count)
	}
}

// releaseUntil tries to release the guest until it is, or the time for that is over.
func (a *attempt) releaseUntil(ctx context.Context) error {
	deadline := time.Now().Add(a.limits.Retry)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := a.release(ctx)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-time.After(wait)
	}
}

// frozen asks the agent whether the guest is held.
func (l *line) frozen(ctx context.Context) (bool, error) {
	var status string
	if err := l.ask(ctx, answerTime, "guest-fsfreeze-status", nil, &status); err != nil {
		return false, err
	}
	switch status {
	case "thawed":
		return false, nil
	case "frozen":
		return true, nil
	}
	return false, fmt.Errorf("guest-fsfreeze-status: %w: %q", ErrProtocol, status)
}
