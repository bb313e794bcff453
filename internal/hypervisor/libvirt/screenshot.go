package libvirt

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/console"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// maxPicture is the largest picture that is taken, in bytes.
const maxPicture = 128 << 20

var _ hypervisor.Screen = (*Host)(nil)

// Screenshot implements [hypervisor.Screen].
func (h *Host) Screenshot(ctx context.Context, m hypervisor.Machine) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	c, dom, err := h.Domain(ctx, m.Name)
	if err != nil {
		return nil, err
	}
	_, data, err := c.Screenshot(ctx, dom, maxPicture)
	var refused *rpc.Error
	if errors.As(err, &refused) {
		err = fmt.Errorf("%w: %w", hypervisor.ErrNoScreen, err)
	}
	if err == nil {
		data, err = console.PNG(data)
	}
	if err != nil {
		return nil, fmt.Errorf("take a screenshot of %s: %w", m.Name, err)
	}
	return data, nil
}
