package libvirt

import (
	"context"
	"errors"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// libvirt's account of what the agent answered becomes the agent's own error, silence becomes
// silence, and the caller's deadline its own.
func TestAgentErrors(t *testing.T) {
	refused := &rpc.Error{Code: 1,
		Message: "internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze': failed to open /mnt: " +
			"Permission denied"}
	var e *guest.Error
	if err := agentError(t.Context(), "x", refused); !errors.As(err, &e) ||
		e.Desc != "failed to open /mnt: Permission denied" || e.Disabled() {
		t.Errorf("refused: %v", err)
	}
	unknown := &rpc.Error{Code: 1,
		Message: "internal error: unable to execute QEMU agent command 'guest-x': The command guest-x has not been " +
			"found"}
	if err := agentError(t.Context(), "x", unknown); !errors.As(err, &e) || !e.Disabled() {
		t.Errorf("unknown command: %v", err)
	}
	if err := agentError(t.Context(), "x", &rpc.Error{Code: rpc.AgentUnresponsive, Message: "m"}); !errors.Is(err,
		guest.ErrSilent) || errors.As(err, &e) {
		t.Errorf("silent: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := agentError(ctx, "x", refused); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
