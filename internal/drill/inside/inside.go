// Package inside runs commands in a guest through its agent.
//
// A [Guest] is not safe for concurrent use. What the guest says is not trusted: output is cut to a
// limit and made printable.
package inside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// ErrNoExec reports that the agent runs no commands: whoever set up the guest has forbidden it, or
// its agent is too old.
var ErrNoExec = errors.New("the guest agent runs no commands")

const (
	pollPause = 100 * time.Millisecond
	// maxOutput is how much of a command's output is kept: its end.
	maxOutput = 2000
)

// Command is what to run in a guest.
type Command struct {
	Path  string
	Args  []string
	Input []byte // standard input
	Shown string // what it is, for people
}

// Outcome is what a command came to.
type Outcome struct {
	Status int    // exit status; -1 if a signal ended it
	Output string // the end of what it wrote, standard output first
}

// Guest is a machine's system, as its agent lets it be reached.
type Guest struct {
	agent   hypervisor.Agent
	windows bool
	name    string
}

// Open asks the guest what it is. A guest that does not say is taken for a Unix.
func Open(ctx context.Context, agent hypervisor.Agent) (*Guest, error) {
	g := &Guest{agent: agent}
	var info struct {
		ID     string `json:"id"`
		Name   string `json:"name"`
		Pretty string `json:"pretty-name"`
	}
	raw, err := agent.Command(ctx, "guest-get-osinfo", nil)
	var refused *guest.Error
	if errors.As(err, &refused) {
		return g, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &info)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the guest what it is: %w", err)
	}
	g.windows = info.ID == "mswindows"
	if g.name = printable(info.Pretty); g.name == "" {
		g.name = printable(info.Name)
	}
	return g, nil
}

// Windows reports whether the guest is a Windows.
func (g *Guest) Windows() bool { return g.windows }

// System is what the guest calls itself, "" if it does not say.
func (g *Guest) System() string { return g.name }

// Run runs a command to its end. It returns [ErrNoExec], an error of the guest's, such as that
// there is no such program, or ctx's when that ends first; the command then goes on in the guest.
func (g *Guest) Run(ctx context.Context, c Command) (Outcome, error) {
	pid, err := g.start(ctx, c)
	if err != nil {
		return Outcome{}, err
	}
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for {
		done, out, err := g.poll(ctx, pid)
		if err != nil || done {
			return out, err
		}
		select {
		case <-ctx.Done():
			return Outcome{}, fmt.Errorf("it does not end: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func (g *Guest) start(ctx context.Context, c Command) (pid int, err error) {
	args := struct {
		Path    string   `json:"path"`
		Args    []string `json:"arg,omitempty"`
		Input   []byte   `json:"input-data,omitempty"` // base64, as JSON has bytes
		Capture bool     `json:"capture-output"`
	}{c.Path, c.Args, c.Input, true}
	raw, err := g.agent.Command(ctx, "guest-exec", args)
	var refused *guest.Error
	if errors.As(err, &refused) && refused.Disabled() {
		return 0, fmt.Errorf("%w: %s", ErrNoExec, refused.Desc)
	}
	if err != nil {
		return 0, err
	}
	var started struct{ PID int }
	if err := json.Unmarshal(raw, &started); err != nil {
		return 0, fmt.Errorf("%w: reply to guest-exec: %w", guest.ErrProtocol, err)
	}
	return started.PID, nil
}

func (g *Guest) poll(ctx context.Context, pid int) (done bool, out Outcome, err error) {
	raw, err := g.agent.Command(ctx, "guest-exec-status", map[string]int{"pid": pid})
	if err != nil {
		return false, out, err
	}
	var status struct {
		Exited   bool   `json:"exited"`
		ExitCode int    `json:"exitcode"`
		Signal   int    `json:"signal"`
		Out      []byte `json:"out-data"`
		Err      []byte `json:"err-data"`
	}
	if err := json.Unmarshal(raw, &status); err != nil {
		return false, out, fmt.Errorf("%w: reply to guest-exec-status: %w", guest.ErrProtocol, err)
	}
	out.Status = status.ExitCode
	if status.Signal != 0 {
		out.Status = -1
	}
	out.Output = Tail(string(status.Out)+string(status.Err), maxOutput)
	return status.Exited, out, nil
}

// Tail returns the printable end of a text, of max bytes at most.
func Tail(text string, max int) string {
	text = strings.TrimSpace(printable(text))
	if len(text) <= max {
		return text
	}
	text = text[len(text)-max:]
	if _, rest, ok := strings.Cut(text, "\n"); ok {
		return rest
	}
	return strings.ToValidUTF8(text, "")
}

// printable leaves out what could steer a terminal.
func printable(s string) string {
	s = strings.ReplaceAll(s, "\r\n", "\n")
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, ""))
}
