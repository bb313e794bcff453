package qemu

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// Host is what a Capturer needs of a hypervisor host: the machine and the connection to its
// monitor, which stays the host's.
type Host interface {
	Machines(ctx context.Context) ([]hypervisor.Machine, error)
	Client(ctx context.Context) (*qmp.Client, error)
}

// Options tunes a Capturer. The zero value of each field is its default.
type Options struct {
	// where unfinished captures are noted; "" means $HOLDFAST_STATE, else /run/holdfast or the
	// user's run directory
	StateDir string
	Floor    int64 // least scratch space that slices are tried with, in bytes; 0 means 64 MiB
}

// Capturer captures the one machine of a host.
type Capturer struct {
	host Host
	opts Options
	open func(ctx context.Context) (monitor, error)
}

var _ capture.Capturer = (*Capturer)(nil)

// New returns a Capturer of the machine of host.
func New(host Host, opts Options) *Capturer {
	if opts.StateDir == "" {
		opts.StateDir = capture.DefaultStateDir()
	}
	if opts.Floor == 0 {
		opts.Floor = 64 << 20
	}
	return &Capturer{host: host, opts: opts, open: func(ctx context.Context) (monitor, error) {
		c, err := host.Client(ctx)
		if err != nil {
			return nil, err
		}
		return c, nil
	}}
}

// cleanupTime bounds the removal of what a failed capture left.
const cleanupTime = 60 * time.Second

// Capture implements [capture.Capturer]. Call the result's DropOlder or DropNew: until then no
// other capture of the machine begins.
func (c *Capturer) Capture(ctx context.Context, machine string, plan capture.Plan, hooks capture.Hooks,
	sink capture.Sink) (*capture.Result, error) {
	res, err := c.capture(ctx, machine, withDefaults(plan), hooks, sink)
	if err != nil {
		return nil, fmt.Errorf("capture machine %s: %w", machine, err)
	}
	return res, nil
}

func withDefaults(plan capture.Plan) capture.Plan {
	if plan.Log == nil {
		plan.Log = func(string, ...any) {}
	}
	if plan.Progress == nil {
		plan.Progress = func(int64, int64) {}
	}
	return plan
}

func (c *Capturer) capture(ctx context.Context, machine string, plan capture.Plan, hooks capture.Hooks,
	sink capture.Sink) (*capture.Result, error) {
	m, err := c.machine(ctx, machine)
	if err != nil {
		return nil, err
	}
	state, err := lockState(c.opts.StateDir, m)
	if err != nil {
		return nil, err
	}
	s := &capturing{capturer: c, plan: plan, hooks: hooks, sink: sink, state: state}
	res, err := s.capture(ctx, m)
	if err == nil {
		return res, nil
	}
	cleanCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if cleanErr := s.cleanUp(cleanCtx); cleanErr != nil {
		err = fmt.Errorf("%w; clean up after it: %w", err, cleanErr)
	}
	return nil, err
}

func (c *Capturer) machine(ctx context.Context, name string) (hypervisor.Machine, error) {
	list, err := c.host.Machines(ctx)
	if err != nil {
		return hypervisor.Machine{}, err
	}
	for _, m := range list {
		if m.Name == name {
			return m, nil
		}
	}
	return hypervisor.Machine{}, hypervisor.ErrNoMachine
}
