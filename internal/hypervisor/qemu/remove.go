package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// Remove implements [hypervisor.Remover]: it kills QEMU. The definition of a plain QEMU is its start script, which is a file and stays.
func (h *Host) Remove(ctx context.Context, m hypervisor.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c, err := h.reach(ctx, m)
	if err != nil {
		return fmt.Errorf("remove machine %s: %w", m.Name, err)
	}
	pid := c.PeerPID()
	if pid <= 0 {
		return fmt.Errorf("remove machine %s: which process it is can not be told", m.Name)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("remove machine %s: kill QEMU (process %d): %w", m.Name, pid, err)
	}
	for {
		conn, err := net.Dial("unix", h.socket)
		if nobodyListens(err) {
			return nil
		}
		if err == nil {
			conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove machine %s: QEMU (process %d) does not end: %w", m.Name, pid, ctx.Err())
		case <-time.After(startPause):
		}
	}
}

// nobodyListens reports whether no process serves a socket.
func nobodyListens(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}
