package qemu

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

const noUUID = "00000000-0000-0000-0000-000000000000"

// Machines returns the one machine of the host.
func (h *Host) Machines(ctx context.Context) ([]hypervisor.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c, err := h.Client(ctx)
	if err != nil {
		return nil, err
	}
	m, err := h.machine(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("ask the QEMU of %s about itself: %w", h.socket, err)
	}
	return []hypervisor.Machine{m}, nil
}

// Machine returns the machine if it has that name, or [hypervisor.ErrNoMachine] if nobody listens
// or it is another.
func (h *Host) Machine(ctx context.Context, name string) (hypervisor.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c, err := h.reach(ctx, hypervisor.Machine{Name: name})
	if err != nil {
		return hypervisor.Machine{}, err
	}
	m, err := h.machine(ctx, c)
	if err != nil {
		return hypervisor.Machine{}, fmt.Errorf("ask the QEMU of %s about itself: %w", h.socket, err)
	}
	return m, nil
}

func (h *Host) machine(ctx context.Context, c *qmp.Client) (hypervisor.Machine, error) {
	var name struct{ Name string }
	var id struct{ UUID string }
	var status struct{ Status string }
	for command, result := range map[string]any{"query-name": &name, "query-uuid": &id, "query-status": &status} {
		if err := c.Execute(ctx, command, nil, result); err != nil {
			return hypervisor.Machine{}, err
		}
	}
	m := hypervisor.Machine{Name: name.Name, UUID: id.UUID, State: state(status.Status), Host: h.uri}
	if m.Name == "" {
		base := filepath.Base(h.socket)
		m.Name = strings.TrimSuffix(base, filepath.Ext(base))
	}
	if m.UUID == noUUID {
		m.UUID = ""
	}
	p, err := readProcess(c.PeerPID())
	if err == nil {
		cl := parseCommandLine(p.args)
		m.Agent = h.agent != "" || cl.agentSocket() != ""
	}
	m.Disks, err = listDisks(ctx, c, p)
	return m, err
}

// state maps QEMU's run states. A machine that waits for storage or for cont has its disks at rest:
// it is paused.
func state(status string) hypervisor.State {
	switch status {
	case "running":
		return hypervisor.Running
	case "shutdown":
		return hypervisor.Off
	case "guest-panicked", "internal-error":
		return hypervisor.Crashed
	}
	return hypervisor.Paused
}
