package libvirt

import (
	"context"
	"errors"
	"fmt"

	hostlibvirt "github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
)

// suspend has the machine stand still, unless somebody else has it do so already: then it returns
// nil. That it is about to be suspended is noted before. On error it runs.
func (s *capturing) suspend(ctx context.Context) (*watcher, error) {
	w, err := s.startWatch(ctx, s.dom.Name)
	if err != nil {
		return nil, err
	}
	mark := hostlibvirt.Mark(s.dom)
	if err := s.state.note(func(r *record) { r.Pause = &mark }); err != nil {
		w.end()
		return nil, err
	}
	said, err := w.ask(ctx, tellSuspend)
	switch {
	case err != nil:
		w.kill()
		w.end()
		return nil, errors.Join(fmt.Errorf("suspend it for the instant: %w", err), s.endSuspension(true))
	case said == sayStill:
		w.end()
		return nil, s.state.note(func(r *record) { r.Pause = nil })
	case said != saySuspended:
		w.end()
		return nil, errors.Join(fmt.Errorf("suspend it for the instant: %s", said), s.endSuspension(false))
	}
	mark = mark.Standing()
	if err := s.state.note(func(r *record) { r.Pause = &mark }); err != nil {
		return nil, errors.Join(err, s.resume(w))
	}
	return w, nil
}

// resume lets the machine run. It returns errWoken if it has run before that.
func (s *capturing) resume(w *watcher) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	said, err := w.ask(ctx, tellResume)
	if err != nil {
		w.kill()
	}
	w.end()
	if err == nil && (said == sayResumed || said == sayWoken) {
		err = s.state.note(func(r *record) { r.Pause = nil })
		if said == sayWoken {
			err = errors.Join(errWoken, err)
		}
		return err
	}
	s.plan.Log("the watch over the suspended machine says %q: %v; the machine is resumed without it", said, err)
	return s.endSuspension(false)
}

// endSuspension does what the watch should have done. It returns errWoken if the machine was not
// found as it was noted.
func (s *capturing) endSuspension(unsure bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	if s.state.record.Pause == nil {
		return nil
	}
	if err := s.reconnect(ctx); err != nil {
		return fmt.Errorf("resume the machine: %w", err)
	}
	resumed, err := endPause(ctx, s.client, s.dom, *s.state.record.Pause)
	if err == nil && !resumed && unsure {
		err = wake(ctx, s.host, s.dom.Name, *s.state.record.Pause, true)
	}
	if err != nil && !errors.Is(err, pause.ErrOthers) {
		return err
	}
	if !resumed {
		err = errors.Join(errWoken, err)
	}
	return errors.Join(err, s.state.note(func(r *record) { r.Pause = nil }))
}

// endPause resumes the machine if it stands still because of the pause of mark, and reports whether
// it did. A machine that somebody else has paused is [pause.ErrOthers].
func endPause(ctx context.Context, c *rpc.Client, dom rpc.Domain, mark pause.Mark) (bool, error) {
	dom, err := c.DomainByUUID(ctx, dom.UUID)
	var st rpc.State
	if err == nil {
		st, err = c.DomainState(ctx, dom)
	}
	if err != nil {
		return false, fmt.Errorf("resume the machine: %w", err)
	}
	if st.State != rpc.StatePaused {
		return false, nil
	}
	if st.Reason != rpc.PausedUser {
		return false, fmt.Errorf("%w, or an error has", pause.ErrOthers)
	}
	if err := mark.Holds(hostlibvirt.Mark(dom)); err != nil {
		return false, err
	}
	if err := c.DomainResume(ctx, dom); err != nil {
		return false, fmt.Errorf("resume the machine: %w", err)
	}
	return true, nil
}

// runs reports whether a machine's processors do.
func runs(st rpc.State) bool { return st.State == rpc.StateRunning || st.State == rpc.StateBlocked }
