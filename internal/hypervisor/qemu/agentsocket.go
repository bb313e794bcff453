package qemu

import "context"

// AgentSocket returns the path of the guest agent's socket, so that another process can open the
// agent without the monitor, which takes one client: what the URI names, else what QEMU's command
// line names, "" if neither does.
func (h *Host) AgentSocket(ctx context.Context) string {
	if h.agent != "" {
		return h.agent
	}
	return h.agentSocket(ctx)
}
