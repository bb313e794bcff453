package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// prepareTime is the longest that a guard may take before it says that it is ready: every question
// at its limit.
const prepareTime = 45 * time.Second

// Guard quiesces guests from a process of its own, so that a guest is not left held if ours dies or
// is stopped.
type Guard struct {
	Command  []string  // starts a process that calls [GuardMain]; nil means this very program with the argument "guard"
	Env      []string  // added to the environment of that process
	StateDir string    // where it is noted that a guest is held; "" means [StateDir]
	Open     OpenAgent // opens the agent in this process, to release the guest should the guard die
}

// Held is a quiesce in progress. Its Quiesce and Thaw fit the hooks of a capture.
type Held struct {
	guard  Guard
	spec   GuardSpec
	cmd    *child.Cmd
	in     io.WriteCloser
	stderr tail
	watch  *time.Timer   // kills a guard that has stopped
	told   chan struct{} // one token per reply of the guard
	ended  chan struct{} // closed when the guard has ended, and the guest was released in its place if that was needed

	mu    sync.Mutex
	out   Outcome
	over  bool // out is final
	guest *point.GuestReport
}

// Start starts a guard and prepares the quiesce, which takes some agent questions but holds nothing
// yet. With a wish for crash consistency it starts nothing and leaves the guest alone. A guest that
// cannot be quiesced is not an error: see Outcome. An error is ctx's. Call Close in the end.
func (g Guard) Start(ctx context.Context, spec GuardSpec) (*Held, error) {
	if g.StateDir == "" {
		g.StateDir = StateDir()
	}
	h := &Held{guard: g, spec: spec, told: make(chan struct{}, 8), ended: make(chan struct{})}
	h.out = Outcome{Level: point.Crash, Reason: reasonNotQuiesced}
	if spec.Want == point.Crash {
		h.finish(reasonNotWanted)
		close(h.ended)
		return h, ctx.Err()
	}
	if err := h.spawn(); err != nil {
		h.finish(reasonNoGuard, err)
		close(h.ended)
		return h, ctx.Err()
	}
	if err := h.send(ctx, request{Do: doBegin, Spec: &spec, StateDir: g.StateDir}); err != nil {
		h.Close()
		return nil, fmt.Errorf("prepare to quiesce %s: %w", spec.Machine, err)
	}
	return h, nil
}

func (h *Held) spawn() error {
	if command := h.guard.Command; command == nil {
		h.cmd = child.Self("guard")
	} else {
		h.cmd = child.Command(command[0], command[1:]...)
	}
	h.cmd.Env = append(h.cmd.Env, h.guard.Env...)
	h.cmd.Stderr = &h.stderr
	// signals to our terminal and process group are not for the guard
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := h.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := h.cmd.Start(); err != nil {
		return err
	}
	h.in = in
	h.watch = time.AfterFunc(prepareTime, h.kill)
	go h.listen(out)
	return nil
}

// listen takes in what the guard says, until it ends; then it sees to the guest if the guard has
// not.
func (h *Held) listen(out io.Reader) {
	dec := json.NewDecoder(out)
	for {
		var r reply
		if err := dec.Decode(&r); err != nil {
			break
		}
		h.note(r)
	}
	err := h.cmd.Wait()
	h.watch.Stop()
	if h.isOver() && h.Outcome().Stuck == "" {
		close(h.ended)
		return
	}
	if !h.isOver() {
		h.finish(reasonGuardDied, firstOf(h.stderr.String(), fmt.Sprint(err)))
	}
	h.rescue()
}

func (h *Held) note(r reply) {
	h.mu.Lock()
	if r.Outcome.Level != "" {
		h.out = r.Outcome
	}
	if r.Guest != nil {
		h.guest = r.Guest
	}
	h.over = h.over || r.Now == nowOver
	h.mu.Unlock()
	if r.Now != nowHeld {
		h.watch.Stop() // nothing is held, or the guard does what can be done
	}
	select {
	case h.told <- struct{}{}:
	default: // a guard says three things; more is not worth waiting for
	}
}

// rescue releases the guest from this process; first while others wait for it, then as long as a
// guard would have tried.
func (h *Held) rescue() {
	limits := h.spec.Limits.withDefaults(true)
	err := h.thawDirectly(limits.Thaw)
	if err == nil {
		close(h.ended)
		return
	}
	h.stuck(err)
	close(h.ended)
	if err = h.thawDirectly(limits.Retry); err == nil {
		h.stuck(nil)
	}
}

func (h *Held) thawDirectly(limit time.Duration) error {
	if h.guard.Open == nil {
		return errors.New("nothing is there to open the guest agent with")
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := ThawLeftover(ctx, newAttempt(h.spec, h.guard.StateDir, h.guard.Open).open, h.guard.StateDir,
		h.spec.Machine)
	return err
}

// Quiesce asks the guest to hold its writes, and returns when it does, or cannot: Outcome then
// says why. An error is ctx's, and then the guest is released.
func (h *Held) Quiesce(ctx context.Context) error {
	if h.isOver() {
		return nil
	}
	limits := h.spec.Limits.withDefaults(true)
	h.watch.Reset(limits.Quiesce + limits.Hold + limits.Thaw + 4*answerTime)
	if err := h.send(ctx, request{Do: doQuiesce}); err != nil {
		h.in.Close()
		return fmt.Errorf("quiesce %s: %w", h.spec.Machine, err)
	}
	return nil
}

// Thaw releases the guest, now that the instant was taken, and returns when that is certain, or
// when it took too long, and the guard goes on trying: Outcome then says so. It is harmless without
// Quiesce before. An error is ctx's; the guest is released nevertheless.
func (h *Held) Thaw(ctx context.Context) error {
	if h.isOver() {
		return nil
	}
	limits := h.spec.Limits.withDefaults(true)
	h.watch.Reset(limits.Thaw + 2*answerTime)
	defer h.in.Close()
	if err := h.send(ctx, request{Do: doThaw}); err != nil {
		return fmt.Errorf("thaw %s: %w", h.spec.Machine, err)
	}
	return nil
}

// Outcome says what came of the quiesce. Between Quiesce and Thaw it is what the guest promised,
// after Thaw what it kept.
func (h *Held) Outcome() Outcome {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.out
}

// Guest returns what the guest agent said of the system inside, or nil if it was not asked or did
// not say.
func (h *Held) Guest() *point.GuestReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.guest
}

// Close lets the guard go. If the guest is still held it is released, and Close waits for that, but
// not for a guard whose guest is stuck: that outlives us.
func (h *Held) Close() error {
	if h.in == nil {
		return nil
	}
	h.in.Close()
	for h.Outcome().Stuck == "" {
		select {
		case <-h.ended:
			return nil
		case <-h.told:
		}
	}
	return nil
}

func (h *Held) isOver() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.over
}

// finish makes the outcome final, at crash consistency.
func (h *Held) finish(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.out = Outcome{Level: point.Crash, Reason: fmt.Sprintf(format, args...)}
	h.over = true
}

func (h *Held) stuck(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.out.Stuck = ""
	if err != nil {
		h.out.Stuck = err.Error()
	}
}

// send tells the guard what to do and waits for its next reply, or its end.
func (h *Held) send(ctx context.Context, r request) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, _ = h.in.Write(append(line, '\n')) // a guard that is gone has left a reply, or its end to see
	select {
	case <-h.told:
		return nil
	case <-h.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// kill ends a guard that was itself stopped; listen then does its work.
func (h *Held) kill() { _ = h.cmd.Process.Kill() }

// tail keeps the last bytes written to it.
type tail struct {
	mu   sync.Mutex
	data []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	if over := len(t.data) - 2048; over > 0 {
		t.data = t.data[over:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.data))
}
