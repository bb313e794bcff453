package accel

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/holdfast-vm/holdfast/internal/child"
)

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
