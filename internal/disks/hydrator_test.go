package disks

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
)

// copier is a model of a host that copies disks: what it says of the copy is a script, of which the
// last goes on.
type copier struct {
	*model
	script  []hypervisor.Hydration
	started int // copies, and goings on
	target  string
	held    *int64 // of whom the machine stands still; nil if it runs
}

func (c *copier) Hydration(context.Context, hypervisor.Machine, hypervisor.HydrationTarget) (hypervisor.Hydration,
	error) {
	now := c.script[0]
	if len(c.script) > 1 {
		c.script = c.script[1:]
	}
	return now, nil
}

func (c *copier) Hydrate(_ context.Context, _ hypervisor.Machine, t hypervisor.HydrationTarget, _ int64) error {
	c.started, c.target = c.started+1, t.File
	return nil
}

func (c *copier) FinishHydration(_ context.Context, _ hypervisor.Machine, s hypervisor.Settlement) error {
	t := s.Targets[0]
	switch {
	case !s.StayPaused:
		return errors.New("it is let go on before that is recorded")
	case c.held == nil:
		ours := int64(7)
		if err := s.Noted(pause.Mark{Ran: ours}); err != nil {
			return err
		}
		c.held = &ours
	}
	c.has[t.File] = c.has[t.Overlay()]
	delete(c.has, t.Overlay())
	return nil
}

func (c *copier) Settled(context.Context, hypervisor.Machine, hypervisor.Settlement) (map[string]bool, error) {
	return nil, nil
}

func (c *copier) HydrationRate(context.Context, hypervisor.Machine, hypervisor.HydrationTarget, int64) error {
	return nil
}

// GoOn lets the machine go on if it stands still because of that mark.
func (c *copier) GoOn(_ context.Context, _ hypervisor.Machine, held pause.Mark) error {
	if c.held != nil && *c.held == held.Ran {
		c.held = nil
	}
	return nil
}

func (c *copier) Continue(context.Context, hypervisor.Machine) (bool, error) { return false, nil }
func (c *copier) Start(context.Context, hypervisor.Machine, string) error    { return nil }

// A copy that a hypervisor makes goes on after it stopped: once if it met an error, and as often as
// it takes if it lacked room.
func TestFillOfAnAttachedDisk(t *testing.T) {
	running := hypervisor.Hydration{Running: true, Done: 1, Total: 2}
	ready := hypervisor.Hydration{Running: true, Ready: true}
	stopped, full := running, running
	stopped.Err, full.Err = errors.New("input/output error"), hypervisor.ErrNoRoom
	for _, tt := range []struct {
		name    string
		script  []hypervisor.Hydration
		started int
		waits   int
		failed  bool
	}{
		{"begun", []hypervisor.Hydration{{}, running, ready}, 1, 0, false},
		{"went on by itself", []hypervisor.Hydration{running, ready}, 0, 0, false},
		{"stopped", []hypervisor.Hydration{stopped, running, ready}, 1, 0, false},
		{"stopped twice", []hypervisor.Hydration{stopped, running, stopped, running, ready}, 2, 0, false},
		{"stays stopped", []hypervisor.Hydration{stopped, stopped}, 1, 0, true},
		{"ended with an error", []hypervisor.Hydration{{Err: stopped.Err}, running, ready}, 1, 0, false},
		{"full", []hypervisor.Hydration{running, full, full, full, running, ready}, 3, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := context.Background()
			h := &copier{model: newModel(), script: tt.script}
			p, err := OpenPool(shortDir(t), Options{Open: func(string) (Host, error) { return h, nil }})
			ok(t, err)
			p.roomPause, p.checkpoint = time.Millisecond, 0
			c := sparse(2 * mib)
			d, err := p.CreateOverlay(ctx, CreateRequest{Name: "data", Format: "raw", Content: c})
			ok(t, err)
			kill(t, p, 3, HydrateRequest{Content: c, Serve: unserved}) // a part of our own copy is there
			h.has[p.Path(d)] = "vdb"
			ok(t, p.change("data", func(d *Disk) error {
				m := h.machine()
				d.Attached = &Attachment{Host: h.URI(), VM: m.Name, UUID: m.UUID, As: "vdb"}
				return nil
			}))
			waits := 0
			d, err = p.Hydrate(ctx, "data", HydrateRequest{Content: c, Serve: unserved, Waits: func(why error) {
				if waits++; !errors.Is(why, diskimage.ErrNoSpace) {
					t.Errorf("it waits for %v", why)
				}
			}})
			if tt.failed != (err != nil) || tt.failed && !strings.Contains(err.Error(), "input/output error") {
				t.Fatalf("filled: %v", err)
			}
			if h.started != tt.started || waits != tt.waits {
				t.Errorf("started %d times, waited %d times", h.started, waits)
			}
			if c := h.held; err == nil && (c != nil || d.Attached.Held != nil) {
				t.Errorf("the machine stands still: %v, %+v", c, d.Attached)
			}
			if err == nil && (d.Hydration != nil || h.has[p.Path(d)] != "vdb" || c.written.Load() > pieceSize*3) {
				t.Errorf("filled: %+v, %v, we copied %d bytes", d, h.has, c.written.Load())
			}
		})
	}
}

// A machine goes on when its disk has moved, wherever the command that stopped it for that was
// killed; one that an administrator has paused stays paused.
func TestMovedMachineGoesOn(t *testing.T) {
	ctx := context.Background()
	for _, paused := range []bool{false, true} {
		for at := 0; ; at++ {
			h := &copier{model: newModel(), script: []hypervisor.Hydration{{Running: true, Ready: true}}}
			p, err := OpenPool(shortDir(t), Options{Open: func(string) (Host, error) { return h, nil }})
			ok(t, err)
			c := sparse(mib)
			d, err := p.CreateOverlay(ctx, CreateRequest{Name: "data", Format: "raw", Content: c})
			ok(t, err)
			h.has[p.Path(d)] = "vdb"
			ok(t, p.change("data", func(d *Disk) error {
				m := h.machine()
				d.Attached = &Attachment{Host: h.URI(), VM: m.Name, UUID: m.UUID, As: "vdb"}
				return nil
			}))
			ok(t, p.truncateFinal(d))
			administrator := int64(9)
			if paused {
				h.held = &administrator
			}
			killed := kill(t, p, at, HydrateRequest{Content: c, Serve: unserved})
			if h.has[filepath.Join(p.dir, d.Hydration.Final)] != "" {
				h.script = []hypervisor.Hydration{{Local: true}}
			}
			_, err = p.Hydrate(ctx, "data", HydrateRequest{Content: c, Serve: unserved})
			ok(t, err)
			if d, err = p.Disk("data"); err != nil || d.Attached.Held != nil || d.Hydration != nil {
				t.Errorf("killed at step %d: the record is %+v, %v", at, d, err)
			}
			if stands := h.held != nil; stands != paused {
				t.Errorf("killed at step %d, paused before: %v; it stands still: %v", at, paused, stands)
			}
			if !killed {
				break
			}
		}
	}
}

// truncateFinal makes an image such as a hypervisor has copied the disk to.
func (p *Pool) truncateFinal(d *Disk) error {
	path := filepath.Join(p.dir, d.Hydration.Final)
	return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, d.Size))
}
