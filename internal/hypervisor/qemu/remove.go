package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// Remove implements [hypervisor.Remover]: it kills QEMU. The definition of a plain QEMU is its
// start script, which is a file and stays.
func (h *Host) Remove(ctx context.Context, m hypervisor.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c, err := h.reach(ctx, m)
	if err != nil {
		return fmt.Errorf("remove machine %s: %w", m.Name, err)
	}
	pid := c.PeerPID()
	if pid <= 0 {
		return fmt.Errorf("remove machine %s: which process it is cannot be told", m.Name)
	}
	if err := kill(ctx, pid); err != nil {
		return fmt.Errorf("remove machine %s: kill QEMU (process %d): %w", m.Name, pid, err)
	}
	return nil
}

// kill ends a process and waits until it is gone with all that it held: of a process that is
// ending, the socket on which it listens closes before its connections and the locks of its images.
func kill(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for {
		gone, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(startPause.Milliseconds()))
		if gone > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("it does not end: %w", ctx.Err())
		}
	}
}

// nobodyListens reports whether no process serves a socket.
func nobodyListens(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}
