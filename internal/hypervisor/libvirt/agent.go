package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

const (
	// agentTimeout bounds a command whose context has no deadline.
	agentTimeout = 60 * time.Second
	// pingTimeout is how long OpenAgent waits for a sign of life.
	pingTimeout = 3 * time.Second
)

// agent is the guest agent of one domain, through libvirtd, which owns the channel and speaks to it
// one command at a time.
type agent struct {
	host *Host
	dom  rpc.Domain
}

// OpenAgent opens the machine's guest agent, or returns ErrNoAgent. An error is [guest.ErrGone] if
// the machine has ended.
func (h *Host) OpenAgent(ctx context.Context, m hypervisor.Machine) (hypervisor.Agent, error) {
	c, dom, err := h.Domain(ctx, m.Name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*pingTimeout)
	defer cancel()
	// libvirt's own agent calls, such as those of other tools, must not wait for ever either.
	if err := c.SetAgentTimeout(ctx, dom, agentTimeout); err != nil && !rpc.Is(err, rpc.OperationInvalid) {
		return nil, fmt.Errorf("guest agent of %s: %w", m.Name, err)
	}
	a := &agent{host: h, dom: dom}
	ping, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if _, err := a.Command(ping, "guest-ping", nil); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("guest agent of %s: %w", m.Name, err)
		}
		return nil, fmt.Errorf("%w of %s: %w", hypervisor.ErrNoAgent, m.Name, err)
	}
	return a, nil
}

// Close releases the agent; the channel is libvirtd's.
func (a *agent) Close() error { return nil }

// reply is what the guest agent answers.
type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *guest.Error    `json:"error"`
}

// gone reports whether the domain has ended for good, its guest's memory with it: one that was
// saved or moved goes on, held as it was. After the end of a QEMU that was killed libvirt can take
// the channel of the next one for broken, until the guest opens it anew: whoever waits for an agent
// to say that nothing is held would wait in vain.
func (a *agent) gone(ctx context.Context, c *rpc.Client) bool {
	now, err := c.DomainState(ctx, a.dom)
	ended := now.Reason == rpc.OffShutdown || now.Reason == rpc.OffDestroyed || now.Reason == rpc.OffCrashed
	return err == nil && now.State == rpc.StateOff && ended
}

// Command runs one guest agent command. An error is [guest.ErrGone] if the domain has ended.
func (a *agent) Command(ctx context.Context, name string, args any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	c, err := a.host.Client(ctx)
	if err != nil {
		return nil, err
	}
	command, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{name, args})
	if err != nil {
		return nil, fmt.Errorf("guest agent command %s: %w", name, err)
	}
	deadline, _ := ctx.Deadline()
	text, err := c.AgentCommand(ctx, a.dom, string(command), time.Until(deadline))
	if err != nil && a.gone(ctx, c) {
		return nil, fmt.Errorf("guest agent command %s: %w: %w", name, guest.ErrGone, err)
	}
	if err != nil {
		return nil, agentError(ctx, name, err)
	}
	var r reply
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return nil, fmt.Errorf("%w: reply to %s: %w", guest.ErrProtocol, name, err)
	}
	if r.Error != nil {
		return nil, r.Error
	}
	return r.Return, nil
}

// agentError tells what the guest answered from what libvirt says: it turns the agent's own errors
// into its words.
func agentError(ctx context.Context, name string, err error) error {
	var e *rpc.Error
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("guest agent command %s: %w", name, ctx.Err())
	case rpc.Is(err, rpc.AgentUnresponsive), rpc.Is(err, rpc.OperationTimeout), rpc.Is(err, rpc.AgentUnsynced):
		return fmt.Errorf("guest agent command %s: %w: %w", name, guest.ErrSilent, err)
	case errors.As(err, &e):
		if _, words, ok := strings.Cut(e.Message, agentRefusal); ok {
			return guestError(words)
		}
		return fmt.Errorf("guest agent command %s: %w", name, err)
	}
	return err
}

// agentRefusal begins libvirt's account of an error that the agent answered.
const agentRefusal = "unable to execute QEMU agent command "

// guestError rebuilds what the agent answered from libvirt's "'command': description", which lacks
// the class.
func guestError(words string) *guest.Error {
	if _, desc, ok := strings.Cut(words, ": "); ok {
		words = desc
	}
	class := "GenericError"
	if strings.Contains(words, "not been found") || strings.Contains(words, "been disabled") {
		class = "CommandNotFound"
	}
	return &guest.Error{Class: class, Desc: words}
}
