package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/console"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

var _ hypervisor.Screen = (*Host)(nil)

// Screenshot implements [hypervisor.Screen]. QEMU writes the picture to a file beside its monitor's
// socket, where it surely may.
func (h *Host) Screenshot(ctx context.Context, m hypervisor.Machine) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	data, err := h.screenshot(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("take a screenshot of %s: %w", m.Name, err)
	}
	return data, nil
}

func (h *Host) screenshot(ctx context.Context, m hypervisor.Machine) ([]byte, error) {
	c, err := h.reach(ctx, m)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(filepath.Dir(h.socket), "."+filepath.Base(h.socket)+".screen")
	defer os.Remove(path)
	err = c.Execute(ctx, "screendump", map[string]string{"filename": path, "format": "png"}, nil)
	var refused *qmp.Error
	if errors.As(err, &refused) && ctx.Err() == nil { // no PNG before QEMU 7.1, or built without it
		err = c.Execute(ctx, "screendump", map[string]string{"filename": path}, nil)
	}
	if err != nil {
		if errors.As(err, &refused) {
			return nil, fmt.Errorf("%w: %w", hypervisor.ErrNoScreen, err)
		}
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return console.PNG(data)
}
