package drill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/drill/inside"
	"github.com/holdfast-vm/holdfast/internal/drill/role"
)

// runner runs commands in a guest.
type runner interface {
	Run(ctx context.Context, c inside.Command) (inside.Outcome, error)
	Windows() bool
}

// pending is a check with how it stands.
type pending struct {
	role.Check
	result *CheckResult
	final  bool // trying again cannot help
}

// check tries all checks, round after round, until all have passed or the deadline has come.
// Services come up in an order of their own, after the agent.
func (r *run) check(ctx context.Context, guest runner, deadline time.Time) error {
	all := append([]role.Check{role.FileSystems()}, r.req.Checks...)
	r.res.Checks = make([]CheckResult, len(all))
	list := make([]*pending, len(all))
	for i, c := range all {
		r.res.Checks[i].Name = c.Name
		list[i] = &pending{Check: c, result: &r.res.Checks[i]}
	}
	for {
		open, err := r.round(ctx, guest, list, deadline)
		if err != nil {
			return err
		}
		if open == 0 {
			break
		}
		late, err := r.late(ctx, deadline)
		if err != nil {
			return err
		}
		if late {
			return r.unmet()
		}
		if err := r.pause(ctx); err != nil {
			return err
		}
		if _, err := r.watch(ctx); err != nil {
			return err
		}
	}
	if err := r.unmet(); err != nil {
		return err
	}
	r.res.ServiceSeconds = r.since(r.started)
	return nil
}

// round tries every check that has not passed once, and returns how many may still pass.
func (r *run) round(ctx context.Context, guest runner, list []*pending, deadline time.Time) (open int, err error) {
	for _, c := range list {
		if c.result.OK || c.final {
			continue
		}
		if err := r.try(ctx, guest, c, deadline); err != nil {
			return 0, err
		}
		switch {
		case c.result.OK:
			r.o.Log("check passed after %.1f s: %s", c.result.Seconds, c.Name)
		case c.final:
			r.o.Log("check failed: %s", c.Name)
		default:
			open++
		}
	}
	return open, nil
}

// minCheckTime is the least time any check is given, even near the deadline.
const minCheckTime = 5 * time.Second

// try runs a check once. An error is ctx's, or a verdict.
func (r *run) try(ctx context.Context, guest runner, c *pending, deadline time.Time) error {
	res := c.result
	command, err := c.For(guest.Windows())
	if err != nil {
		res.Output, c.final = err.Error(), true
		return nil
	}
	res.Command = command.Shown
	limited, cancel := context.WithTimeout(ctx, r.left(deadline, minCheckTime))
	defer cancel()
	out, err := guest.Run(limited, command)
	res.Tries++
	res.Seconds = r.since(r.started)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, inside.ErrNoExec):
		return failed("the checks could not be run: %v; allow guest-exec and guest-exec-status in the guest's "+
			"settings of qemu-ga (BLACKLIST_RPC, FILTER_RPC_ARGS, --block-rpcs)", err)
	case err != nil:
		res.Output = err.Error()
	default:
		res.OK, res.Output = out.Status == 0, out.Output
		c.final = out.Status == role.Final
		if !res.OK && res.Output == "" {
			res.Output = fmt.Sprintf("exit status %d", out.Status)
		}
	}
	return nil
}

// unmet returns the verdict of checks that have not passed, nil if all have.
func (r *run) unmet() error {
	var names []string
	for _, c := range r.res.Checks {
		if !c.OK {
			text := c.Name
			if line, _, _ := strings.Cut(c.Output, "\n"); line != "" {
				text += " (" + line + ")"
			}
			names = append(names, text)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return failed("%d of %d checks failed: %s", len(names), len(r.res.Checks), list(names))
}
