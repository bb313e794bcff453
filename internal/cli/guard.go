package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	capturelibvirt "github.com/holdfast-vm/holdfast/internal/capture/libvirt"
	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/protect"
)

const guardName = "guard"

// guardCommand is the process that holds a guest and outlives us; nobody types it.
func (a *app) guardCommand() *cobra.Command {
	return &cobra.Command{
		Use: guardName, Hidden: true, Short: "Hold a guest on behalf of another holdfast", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return guest.GuardMain(cmd.Context(), a.env.Stdin, a.env.Stdout, openAgent)
		},
	}
}

const watchName = "watch"

// watchCommand is the process that resumes a machine if we cannot; nobody types it.
func (a *app) watchCommand() *cobra.Command {
	return &cobra.Command{
		Use: watchName + " URI MACHINE", Hidden: true,
		Short: "Watch over a suspended machine on behalf of another holdfast", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return capturelibvirt.Watch(cmd.Context(), a.env.Stdin, a.env.Stdout, args[0], args[1])
		},
	}
}

// agentAddress tells another of our processes how to open the agent of a machine.
type agentAddress struct {
	Socket  string `json:"socket,omitempty"` // of the agent itself, where we know it: a plain QEMU's monitor takes only one client
	Host    string `json:"host,omitempty"`
	Machine string `json:"machine,omitempty"`
	UUID    string `json:"uuid,omitempty"`
}

func (d agentAddress) String() string {
	data, err := json.Marshal(d)
	if err != nil {
		panic(err) // strings always encode
	}
	return string(data)
}

// openAgent opens the agent that an agentAddress names.
func openAgent(ctx context.Context, address string) (hypervisor.Agent, error) {
	var d agentAddress
	if err := json.Unmarshal([]byte(address), &d); err != nil {
		return nil, fmt.Errorf("open guest agent %q: %w", address, err)
	}
	if d.Socket != "" {
		conn, err := guest.DialUnix(ctx, d.Socket)
		if err != nil {
			return nil, err
		}
		return conn, nil
	}
	h, err := openHost(d.Host, guest.StateDir())
	if err != nil {
		return nil, err
	}
	agent, err := h.OpenAgent(ctx, hypervisor.Machine{Name: d.Machine, UUID: d.UUID, Host: d.Host})
	if err != nil {
		h.Close()
		return nil, err
	}
	return &agentOfHost{agent, h}, nil
}

// agentOfHost is an agent that closes its host with it.
type agentOfHost struct {
	hypervisor.Agent
	host host
}

func (a *agentOfHost) Close() error {
	err := a.Agent.Close()
	if hostErr := a.host.Close(); err == nil {
		err = hostErr
	}
	return err
}

// addressOf returns how a guard opens the agent of m.
func addressOf(ctx context.Context, h host, m hypervisor.Machine) agentAddress {
	if s, ok := h.Host.(hypervisor.AgentListener); ok {
		if path := s.AgentSocket(ctx); path != "" {
			return agentAddress{Socket: path}
		}
	}
	return agentAddress{Host: h.URI(), Machine: m.Name, UUID: m.UUID}
}

// noteName names a machine in the notes of guests that are held: the same however it is found.
func noteName(m hypervisor.Machine) string {
	if m.UUID != "" {
		return strings.ToLower(m.UUID)
	}
	return m.Host + " " + m.Name
}

// guestDeps gives protect its way to the guests of a host.
func (a *app) guestDeps(d *protect.Deps, h host, stateDir string) {
	d.OpenGuest = func(ctx context.Context, m hypervisor.Machine, want point.Consistency) (protect.Guest, error) {
		guard := guest.Guard{Command: a.env.Guard, StateDir: stateDir, Open: openAgent}
		held, err := guard.Start(ctx, guest.GuardSpec{Machine: noteName(m), Agent: addressOf(ctx, h, m).String(),
			Want: want})
		if err != nil {
			return nil, err
		}
		return held, nil
	}
	d.Leftovers = func(ctx context.Context, m hypervisor.Machine) ([]string, error) {
		thawed, err := guest.ThawLeftover(ctx, func(ctx context.Context) (hypervisor.Agent, error) {
			return openAgent(ctx, addressOf(ctx, h, m).String())
		}, stateDir, noteName(m))
		if thawed {
			return []string{"released the guest, which a killed backup had left holding its writes"}, err
		}
		return nil, err
	}
}
