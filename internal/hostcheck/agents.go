package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

const (
	askedAtOnce = 8
	namedAtMost = 5 // machines in a sentence
)

// checkAgents asks the guest agents of all running machines whether they are there.
func checkAgents(ctx context.Context, l *look) []Finding {
	var all []Finding
	for _, h := range l.met {
		if h.err == nil {
			all = append(all, checkAgentsOf(ctx, h))
		}
	}
	if len(all) == 0 {
		return one(Finding{Verdict: Unknown, Found: "no host answers, see the check hosts"})
	}
	return all
}

func checkAgentsOf(ctx context.Context, h met) Finding {
	f := Finding{Subject: h.URI(), Verdict: Works}
	states := make([]string, len(h.machines))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(askedAtOnce)
	for i, m := range h.machines {
		if m.State == hypervisor.Running {
			g.Go(func() error { states[i] = askAgent(gctx, h, m); return nil })
		}
	}
	_ = g.Wait() // nobody returns an error
	by := map[string][]string{}
	for i, m := range h.machines {
		by[states[i]] = append(by[states[i]], m.Name)
	}
	running := len(h.machines) - len(by[""])
	f.Found = fmt.Sprintf("answer: %d of %d running machines", len(by[answers]), running)
	for _, state := range []string{noChannel, silent, busy} {
		if names := by[state]; len(names) > 0 {
			f.Found += fmt.Sprintf("; %s: %s", state, some(names))
		}
	}
	switch {
	case running == 0:
		f.Verdict, f.Found = Unknown, "no machine runs"
	case len(by[noChannel])+len(by[silent]) > 0:
		f.Verdict = Limited
		f.Lost = "points of those are at most crash-consistent, and their drills never verified"
		f.Advice = "give the machine a channel org.qemu.guest_agent.0, install qemu-guest-agent in the guest and " +
			"start it"
	}
	return f
}

// What an agent can be.
const (
	answers   = "answer"
	noChannel = "no channel"
	silent    = "no answer"
	busy      = "in use by another program"
)

func askAgent(ctx context.Context, h met, m hypervisor.Machine) string {
	if !m.Agent {
		return noChannel
	}
	ctx, cancel := context.WithTimeout(ctx, hostTime)
	defer cancel()
	agent, err := h.OpenAgent(ctx, m)
	if errors.Is(err, guest.ErrInUse) {
		return busy
	}
	if err != nil {
		return silent
	}
	agent.Close()
	return answers
}

// some writes the first of many names.
func some(names []string) string {
	slices.Sort(names)
	text := strings.Join(names[:min(len(names), namedAtMost)], ", ")
	if more := len(names) - namedAtMost; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
