package libvirt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"
	"time"

	hypervisor "github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt"
)

// A machine that is suspended for the instant runs again even if this process is stopped or killed
// meanwhile: a process of its own watches. The two speak in lines: the watch says "ready", is told
// "suspending" and then "resumed", and answers "unharmed" or "woken".

// maxSuspended is how long the watch leaves a machine suspended. The instant itself takes about 0.3
// s.
const maxSuspended = 2 * time.Second

// wakeEvery is how often the watch looks again, once it had to wake the machine: a process that was
// only stopped may go on and suspend it after all.
const wakeEvery = 500 * time.Millisecond

// errWoken reports that the watch resumed the machine while the instant was being taken, because
// this process was stopped for too long.
var errWoken = errors.New("this process was stopped while the machine was suspended for the instant, and the machine " +
	"was resumed meanwhile; back it up again")

// WithWatch names the command, this program's, that runs [Watch] with two more arguments, the
// host's URI and the machine. Without it a machine stays suspended if this process dies at the
// wrong moment, until Reconcile.
func (c *Capturer) WithWatch(command ...string) *Capturer {
	c.watch = command
	return c
}

// watcher is a running watch, nil if there is none.
type watcher struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (c *Capturer) startWatch(machine string) (*watcher, error) {
	if len(c.watch) == 0 {
		return nil, nil
	}
	args := append(append([]string{}, c.watch[1:]...), c.host.URI(), machine)
	cmd := exec.Command(c.watch[0], args...)
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
		return nil, fmt.Errorf("start the watch over the suspended machine: %w", err)
	}
	w := &watcher{cmd: cmd, in: in, out: bufio.NewReader(out)}
	if err := w.expect("ready"); err != nil {
		w.end()
		return nil, fmt.Errorf("start the watch over the suspended machine: %w", err)
	}
	return w, nil
}

func (w *watcher) expect(want string) error {
	line, err := w.out.ReadString('\n')
	if err != nil {
		return err
	}
	if line == "woken\n" {
		return errWoken
	}
	if line != want+"\n" {
		return fmt.Errorf("it says %q", line)
	}
	return nil
}

func (w *watcher) suspending() error {
	if w == nil {
		return nil
	}
	_, err := io.WriteString(w.in, "suspending\n")
	return err
}

// resumed ends the watch, and returns errWoken if it had to act.
func (w *watcher) resumed() error {
	if w == nil {
		return nil
	}
	defer w.end()
	if _, err := io.WriteString(w.in, "resumed\n"); err != nil {
		return errors.Join(errWoken, err)
	}
	return w.expect("unharmed")
}

func (w *watcher) end() {
	w.in.Close()
	_ = w.cmd.Wait() // it has said what there was to say
}

// Watch is the other end: it runs until in ends or says that the machine was resumed, and resumes
// the machine if that does not happen in time.
func Watch(ctx context.Context, in io.Reader, out io.Writer, uri, machine string) error {
	host, err := hypervisor.New(uri)
	if err != nil {
		return err
	}
	defer host.Close()
	if _, _, err := host.Domain(ctx, machine); err != nil {
		return err
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			lines <- s.Text()
		}
	}()
	if _, err := io.WriteString(out, "ready\n"); err != nil {
		return err
	}
	if <-lines != "suspending" {
		return nil // nothing came of it
	}
	return watchSuspended(ctx, host, machine, lines, out)
}

func watchSuspended(ctx context.Context, host *hypervisor.Host, machine string, lines <-chan string,
	out io.Writer) error {
	verdict := "unharmed\n"
	timer := time.NewTimer(maxSuspended)
	defer timer.Stop()
	for {
		select {
		case line := <-lines:
			if line == "resumed" {
				_, err := io.WriteString(out, verdict)
				return err
			}
			return wake(ctx, host, machine) // whoever suspended it is dead
		case <-timer.C:
			verdict = "woken\n"
			_ = wake(ctx, host, machine) // tried again
			timer.Reset(wakeEvery)
		}
	}
}

// wake resumes the machine if it is suspended. It keeps trying for a while: libvirtd may be busy or
// starting.
func wake(ctx context.Context, host *hypervisor.Host, machine string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for {
		client, dom, err := host.Domain(ctx, machine)
		if err == nil {
			err = resumeIfPaused(ctx, client, dom)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wakeEvery):
		}
	}
}
