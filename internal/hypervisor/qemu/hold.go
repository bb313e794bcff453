package qemu

import (
	"context"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// hold has the machine stand still and reports whether that is because of us, this attempt or the
// one before.
func hold(ctx context.Context, c *qmp.Client, s hypervisor.Settlement) (ours bool, err error) {
	status, mark, err := markOf(ctx, c)
	if err != nil {
		return false, err
	}
	if status != "running" {
		return heldBy(status, s.Held, mark), nil
	}
	if err := s.Noted(mark); err != nil {
		return false, err
	}
	if err := c.Execute(ctx, "stop", nil, nil); err != nil {
		return true, standsStill(err)
	}
	return true, s.Noted(mark.Standing())
}

// heldBy reports whether a machine that stands still may be let go on: what was noted has stopped
// it, or it waits for a disk, which it gets.
func heldBy(status string, held *pause.Mark, now pause.Mark) bool {
	return status == "io-error" || status == "paused" && held != nil && held.Holds(now) == nil
}

// markOf returns what the machine does, and its mark.
func markOf(ctx context.Context, c *qmp.Client) (status string, mark pause.Mark, err error) {
	var does struct{ Status string }
	var cpus []struct {
		Thread int `json:"thread-id"`
	}
	if err := c.Execute(ctx, "query-status", nil, &does); err != nil {
		return "", mark, err
	}
	if err := c.Execute(ctx, "query-cpus-fast", nil, &cpus); err != nil {
		return "", mark, err
	}
	var threads []int
	for _, cpu := range cpus {
		threads = append(threads, cpu.Thread)
	}
	return does.Status, pause.Of(c.PeerPID(), threads), nil
}

// GoOn implements [hypervisor.Hydrator].
func (h *Host) GoOn(ctx context.Context, m hypervisor.Machine, held pause.Mark) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c, err := h.reach(ctx, m)
	var status string
	var now pause.Mark
	if err == nil {
		status, now, err = markOf(ctx, c)
	}
	if err == nil && heldBy(status, &held, now) {
		err = c.Execute(ctx, "cont", nil, nil)
	}
	if err != nil {
		return fmt.Errorf("let machine %s go on: %w", m.Name, err)
	}
	return nil
}
