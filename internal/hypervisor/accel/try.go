package accel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

const (
	stageTime = 3 * time.Second        // for a stage of the test guest, which takes a tenth of a second where it runs
	startTime = 2                      // times that, from the start of QEMU to the first letter
	lookPause = 500 * time.Millisecond // between two looks at a processor that is late
	lookTime  = 3 * time.Second        // for QEMU to answer
)

// Trial says how to run the test guest. The zero value of each field is its default.
type Trial struct {
	Accel   string        // KVM or TCG; "" means KVM
	Program string        // QEMU's; "" means that of the host
	CPU     string        // QEMU's word for the processor that the guest sees; "" means QEMU's default
	Time    time.Duration // for each stage of the guest; 0 means 3 s
	image   []byte        // instead of the test guest
}

// modes are the stages of the test guest, by the letter that begins each.
var modes = map[byte]string{letterReal: "16-bit code", letterProtected: "32-bit code", letterLong: "64-bit code"}

// Try runs the test guest and says what came of it, within a second where it runs. An error means
// that it could not be tried.
func Try(ctx context.Context, t Trial) (Result, error) {
	if t.Accel == "" {
		t.Accel = KVM
	}
	if t.Time == 0 {
		t.Time = stageTime
	}
	r := Result{Accel: t.Accel, CPU: t.CPU, Program: t.Program}
	if t.Accel == KVM {
		if err := Available(); err != nil {
			r.Verdict, r.Said = Missing, rootOf(err).Error()
			return r, nil
		}
	}
	if runtime.GOARCH != "amd64" {
		r.Verdict, r.Said = Untried, "there is no test guest for processors of kind "+runtime.GOARCH
		return r, nil
	}
	if err := t.run(ctx, &r); err != nil {
		return r, fmt.Errorf("try a guest under %s: %w", t.Accel, err)
	}
	return r, nil
}

// rootOf returns the error that others were made of.
func rootOf(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path
	}
	return err
}

func (t Trial) run(ctx context.Context, r *Result) (err error) {
	if r.Program == "" {
		if r.Program, err = Program(); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	image := t.image
	if image == nil {
		image = rom()
	}
	if err := os.WriteFile(filepath.Join(dir, "rom"), image, 0o600); err != nil {
		return err
	}
	g, err := t.start(ctx, r.Program, dir)
	if err != nil {
		return err
	}
	defer g.end()
	if err := g.watch(ctx, t.Time, r); err != nil {
		return err
	}
	if r.Verdict == "" {
		g.look(ctx, r)
	}
	return ctx.Err()
}

// guest is a test guest that runs.
type guest struct {
	cmd     *child.Cmd
	letters chan byte // closed when QEMU has ended or said nothing more
	stderr  bytes.Buffer
	monitor string
}

func (t Trial) start(ctx context.Context, program, dir string) (*guest, error) {
	g := &guest{letters: make(chan byte, 8), monitor: filepath.Join(dir, "qmp")}
	args := []string{"-machine", "q35", "-accel", t.Accel, "-m", "16", "-smp", "1", "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-bios", filepath.Join(dir, "rom"), "-serial", "stdio",
		"-qmp", "unix:" + g.monitor + ",server=on,wait=off"}
	if t.CPU != "" {
		args = append(args, "-cpu", t.CPU)
	}
	g.cmd = child.CommandContext(ctx, program, args...)
	g.cmd.Env = append(g.cmd.Env, "LC_ALL=C")
	g.cmd.Stderr = &g.stderr
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	console, err := g.cmd.StdoutPipe()
	if err == nil {
		err = g.cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	go g.read(console)
	return g, nil
}

// read hands out the letters of the guest.
func (g *guest) read(console io.Reader) {
	defer close(g.letters)
	buf := make([]byte, 1)
	for {
		if _, err := io.ReadFull(console, buf); err != nil {
			return
		}
		if modes[buf[0]] != "" || buf[0] == letterEnd {
			g.letters <- buf[0]
		}
	}
}

// end kills QEMU and waits until it and the reader of its console are gone.
func (g *guest) end() {
	g.cmd.Process.Kill()
	for range g.letters {
	}
	g.cmd.Wait() // that it was killed is no news
}

// watch follows the guest to its end. Without a verdict a stage took longer than limit.
func (g *guest) watch(ctx context.Context, limit time.Duration, r *Result) error {
	late := time.NewTimer(startTime * limit)
	defer late.Stop()
	var began time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			return nil
		case letter, more := <-g.letters:
			switch {
			case !more:
				r.Verdict, r.Said = Refused, g.lastWords()
				return nil
			case letter == letterEnd:
				r.Verdict, r.Mode, r.Seconds = Runs, "", time.Since(began).Seconds()
				return nil
			case began.IsZero():
				began = time.Now()
			}
			r.Mode = modes[letter]
			late.Reset(limit)
		}
	}
}

// lastWords is what QEMU said, and how it ended.
func (g *guest) lastWords() string {
	how := g.cmd.Wait()
	text := strings.TrimSpace(g.stderr.String())
	text = strings.ReplaceAll(text, filepath.Base(g.cmd.Path)+": ", "")
	if text = strings.ReplaceAll(text, "\n", "; "); text == "" {
		text = "it said nothing"
	}
	if how != nil {
		text += " (" + how.Error() + ")"
	}
	return text
}

// look tells a guest that stands still from one that crawls. One that cannot be asked stands still.
func (g *guest) look(ctx context.Context, r *Result) {
	r.Verdict = Stands
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	c, err := qmp.Dial(ctx, g.monitor)
	if err != nil {
		r.Said = "QEMU does not answer: " + err.Error()
		return
	}
	defer c.Close()
	first, err := g.processor(ctx, c)
	if err != nil {
		r.Said = err.Error()
		return
	}
	start := time.Now()
	select {
	case <-ctx.Done():
	case <-time.After(lookPause):
	}
	second, err := g.processor(ctx, c)
	if err != nil {
		r.Said = err.Error()
		return
	}
	r.At = second.String()
	if first.At == second.At && first.counter == second.counter {
		return
	}
	r.Verdict = Crawls
	if counted := float64(first.counter) - float64(second.counter); counted > 0 {
		r.Speed = counted / time.Since(start).Seconds()
	}
}

func (g *guest) processor(ctx context.Context, c *qmp.Client) (Processor, error) {
	all, err := Look(ctx, c)
	if err == nil && len(all) == 0 {
		err = errors.New("QEMU names no registers of an x86")
	}
	if err != nil {
		return Processor{}, err
	}
	return all[0], nil
}

// Trouble runs a test guest as a machine will run, and returns [hypervisor.ErrKVMUnfit] if that did
// not come to its end. A machine that does not run under KVM has no trouble with it, nor is it any
// that nothing could be tried, for want of permission or of room.
func Trouble(ctx context.Context, p hypervisor.Prospect) error {
	if p.Accel != KVM {
		return nil
	}
	t := Trial{Program: p.Program}
	if p.HostCPU {
		t.CPU = "host"
	}
	r, err := Try(ctx, t)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil || r.Verdict == Missing { // whoever runs the machine has other rights
		return nil
	}
	return r.Err()
}
