package qemu

import (
	"context"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// stopDrivers are the devices that can stop the machine on an error, each with its own name for a
// global property.
var stopDrivers = []string{"virtio-blk-device", "scsi-hd", "scsi-block", "ide-hd"}

// stopOptions are the globals that make every disk stop the machine on an error.
func stopOptions() []option {
	var out []option
	for _, driver := range stopDrivers {
		for _, property := range []string{"rerror", "werror"} {
			out = append(out, option{name: "global", value: "driver=" + driver + ",property=" + property +
				",value=stop", hasValue: true})
		}
	}
	return out
}

// holdOnErrors makes disks on an export stop the machine on an error.
func (w *rewriter) holdOnErrors() {
	if len(w.r.Backing) == 0 {
		return
	}
	w.cl.options = append(w.cl.options, stopOptions()...)
	w.cl.edit("device", func(_ *option, p *props) {
		driver := p.get("driver")
		if strings.HasPrefix(driver, "nvme") || strings.HasPrefix(driver, "usb-storage") {
			w.warn("a disk on %s tells the guest of I/O errors: should the export be away for long, the guest sees "+
				"them", driver)
		}
		for _, key := range []string{"rerror", "werror"} {
			if v := p.get(key); v != "" && v != "stop" {
				p.set(key, "stop")
				w.warn("device %s had %s=%s: it stops the machine on errors from now on", p.get("id"), key, v)
			}
		}
	})
}

// dropStops is the reverse of holdOnErrors.
func (cl *commandLine) dropStops() {
	ours := stopOptions()
	cl.drop(func(o option) bool { return slices.Contains(ours, o) })
}

// settleArgs tells of a machine whose disks became local while it ran as if it had been started
// from them.
func (cl *commandLine) settleArgs(ctx context.Context, c *qmp.Client, proc *process) error {
	if !cl.hasOverlays() {
		return nil
	}
	disks, err := listDisks(ctx, c, proc)
	if err != nil {
		return err
	}
	for _, d := range disks {
		if strings.HasPrefix(d.Node, localPrefix) {
			cl.settle(hypervisor.HydrationTarget{Disk: d.Name, File: d.File, Format: d.Format})
		}
	}
	if !cl.hasOverlays() {
		cl.dropStops()
	}
	return nil
}

func (cl *commandLine) hasOverlays() bool {
	return slices.ContainsFunc(cl.options, func(o option) bool {
		return strings.Contains(o.value, hypervisor.OverlaySuffix)
	})
}
