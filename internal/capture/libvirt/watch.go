package libvirt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/child"
	hostlibvirt "github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
)

// A machine that is suspended for the instant runs again even if this process is stopped or killed
// meanwhile: a process of its own, the watch, suspends and resumes it. Nothing that this process
// does later, when it goes on after it was stopped, can suspend the machine again. The two speak in
// lines: the watch says "ready", is told "suspend", says "suspended", is told "resume", and says
// "resumed".
const (
	sayReady     = "ready"
	tellSuspend  = "suspend"
	saySuspended = "suspended"
	sayStill     = "still" // somebody else has paused the machine: it stands still anyway
	tellResume   = "resume"
	sayResumed   = "resumed"
	sayWoken     = "woken" // it was resumed before it was told, because that took too long
)

const (
	// maxSuspended is how long the watch leaves a machine suspended. The instant itself takes about
	// 0.3 s.
	maxSuspended = 2 * time.Second
	// wakeEvery is the time between two tries to resume the machine.
	wakeEvery = 500 * time.Millisecond
	// queuedTime is how long libvirtd may take to suspend a machine after whoever asked has given
	// up.
	queuedTime = 30 * time.Second
)

// errWoken reports that the machine ran again while the instant was being taken.
var errWoken = errors.New("this process was stopped while the machine was suspended for the instant, and the " +
	"machine was resumed meanwhile; back it up again")

// watcher is a running watch.
type watcher struct {
	in    io.WriteCloser
	lines <-chan string // what it says; closed when it says no more
	kill  func()
	wait  func()
}

func (c *Capturer) startWatch(ctx context.Context, machine string) (*watcher, error) {
	w, err := c.runWatch(machine)
	if err != nil {
		return nil, fmt.Errorf("start the watch over the suspended machine: %w", err)
	}
	said, err := w.hear(ctx)
	if err == nil && said != sayReady {
		err = fmt.Errorf("start the watch over the suspended machine: it says %q", said)
	}
	if err != nil {
		w.kill()
		w.end()
		return nil, err
	}
	return w, nil
}

func (c *Capturer) runWatch(machine string) (*watcher, error) {
	if len(c.opts.Watch) == 0 {
		return watchHere(c.host.URI(), machine), nil
	}
	args := append(append([]string{}, c.opts.Watch[1:]...), c.host.URI(), machine)
	cmd := child.Command(c.opts.Watch[0], args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what stops us must not stop it
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &watcher{in: in, lines: linesOf(out), kill: func() { cmd.Process.Kill() }, wait: func() {
		_ = cmd.Wait() // it has said what there was to say
	}}, nil
}

// watchHere runs the watch in this process.
func watchHere(uri, machine string) *watcher {
	theirs, in := io.Pipe()
	out, ours := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := Watch(context.Background(), theirs, ours, uri, machine)
		ours.CloseWithError(err)
		theirs.CloseWithError(err)
	}()
	return &watcher{in: in, lines: linesOf(out), kill: func() { out.Close() }, wait: func() { <-ended }}
}

// linesOf reads lines until there are no more.
func linesOf(r io.Reader) <-chan string {
	lines := make(chan string, 4) // more is not said
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return lines
}

// hear returns the next line that the watch says.
func (w *watcher) hear(ctx context.Context) (string, error) {
	select {
	case line, ok := <-w.lines:
		if !ok {
			return "", errors.New("the watch over the suspended machine has ended")
		}
		return line, nil
	case <-ctx.Done():
		return "", fmt.Errorf("the watch over the suspended machine does not answer: %w", ctx.Err())
	}
}

// ask tells the watch something and returns its answer.
func (w *watcher) ask(ctx context.Context, line string) (string, error) {
	if _, err := io.WriteString(w.in, line+"\n"); err != nil {
		return "", fmt.Errorf("tell the watch over the suspended machine: %w", err)
	}
	return w.hear(ctx)
}

// end lets the watch go; one that has not done its work does it now.
func (w *watcher) end() {
	w.in.Close()
	for range w.lines {
	}
	w.wait()
}

// Watch is the other end. It suspends the machine when it is told to, and resumes it when it is
// told to, when in ends, or when that takes too long.
func Watch(ctx context.Context, in io.Reader, out io.Writer, uri, machine string) error {
	host, err := hostlibvirt.New(uri)
	if err != nil {
		return err
	}
	defer host.Close()
	if _, _, err := host.Domain(ctx, machine); err != nil {
		return err
	}
	lines := linesOf(in)
	if _, err := io.WriteString(out, sayReady+"\n"); err != nil {
		return err
	}
	if <-lines != tellSuspend {
		return nil // nothing came of it
	}
	say := func(line string) { _, _ = io.WriteString(out, line+"\n") } // whoever suspends must resume, heard or not
	mark, err := suspend(ctx, host, machine)
	switch {
	case errors.Is(err, errStill):
		say(sayStill)
		return nil
	case err != nil:
		say("it cannot be suspended: " + oneLine(err))
		return errors.Join(err, wake(ctx, host, machine, mark, !answered(err)))
	}
	say(saySuspended)
	return watchSuspended(ctx, host, machine, mark, lines, say)
}

// errStill reports a machine that stands still already.
var errStill = errors.New("the machine is paused")

// suspend suspends a machine that runs, and returns the mark of that, also of a failure.
func suspend(ctx context.Context, host *hostlibvirt.Host, machine string) (pause.Mark, error) {
	ctx, cancel := context.WithTimeout(ctx, suspendedTimeout/2) // whoever waits for it has as long as that
	defer cancel()
	client, dom, err := host.Domain(ctx, machine)
	if err != nil {
		return pause.Mark{}, err
	}
	st, err := client.DomainState(ctx, dom)
	if err != nil {
		return pause.Mark{}, err
	}
	if !runs(st) {
		return pause.Mark{}, errStill
	}
	mark := hostlibvirt.Mark(dom)
	if err := client.DomainSuspend(ctx, dom); err != nil {
		return mark, err
	}
	return mark.Standing(), nil
}

// answered reports whether an error is libvirtd's answer: else what was asked for may still happen.
func answered(err error) bool {
	var e *rpc.Error
	return errors.As(err, &e)
}

func watchSuspended(ctx context.Context, host *hostlibvirt.Host, machine string, mark pause.Mark,
	lines <-chan string, say func(string)) error {
	timer := time.NewTimer(maxSuspended)
	defer timer.Stop()
	verdict := sayResumed
	for {
		select {
		case line := <-lines:
			var err error
			if verdict != sayWoken {
				verdict, err = awake(ctx, host, machine, mark)
			}
			if line == tellResume { // else whoever waited for it is dead
				say(verdict)
			}
			return err
		case <-timer.C:
			if _, err := awake(ctx, host, machine, mark); err != nil {
				return err
			}
			verdict = sayWoken
		case <-ctx.Done():
			_, err := awake(ctx, host, machine, mark)
			return err
		}
	}
}

// awake resumes the machine and returns what to say of that: one that somebody has resumed, and
// paused since, has not stood still all the time.
func awake(ctx context.Context, host *hostlibvirt.Host, machine string, mark pause.Mark) (string, error) {
	err := wake(ctx, host, machine, mark, false)
	switch {
	case errors.Is(err, pause.ErrOthers):
		return sayWoken, nil
	case err != nil:
		return "it cannot be resumed: " + oneLine(err), err
	}
	return sayResumed, nil
}

// wake resumes the machine if it stands still because of us, once, whatever becomes of ctx. It
// keeps trying for a while: libvirtd may be busy or starting. Where it is not known whether the
// machine is still to be suspended, it waits for that.
func wake(ctx context.Context, host *hostlibvirt.Host, machine string, mark pause.Mark, unsure bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	began := time.Now()
	for {
		client, dom, err := host.Domain(ctx, machine)
		resumed := false
		if err == nil {
			resumed, err = endPause(ctx, client, dom, mark)
		}
		if errors.Is(err, pause.ErrOthers) {
			return err
		}
		if err == nil && (resumed || !unsure || time.Since(began) > queuedTime) {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wakeEvery):
		}
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
