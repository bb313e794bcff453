package qemu

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// slot is a place where a disk can be plugged in while the machine runs.
type slot struct {
	driver string
	bus    string // "" lets QEMU choose
	prefix string // of the names of disks there
}

func (s slot) String() string {
	if s.bus == "" {
		return "a PCI slot"
	}
	return "bus " + s.bus
}

const (
	i440FX    = 0x1237 // device of the host bridge of a machine whose PCI slots take devices while it runs
	pciBridge = 0x0604 // class
	pciSlots  = 32
)

type pciDevice struct {
	QDev      string `json:"qdev_id"`
	Slot      int
	ClassInfo struct{ Class int } `json:"class_info"`
	ID        struct{ Device, Vendor int }
	Bridge    *struct {
		Bus     struct{ Number int }
		Devices []pciDevice
	} `json:"pci_bridge"`
}

// findSlots returns the free slots that QEMU offers, the better ones first.
func findSlots(ctx context.Context, c *qmp.Client) ([]slot, error) {
	var buses []struct {
		Bus     int
		Devices []pciDevice
	}
	err := c.Execute(ctx, "query-pci", nil, &buses)
	if err != nil && !qmp.Refused(err) { // a machine without PCI says so by a refusal
		return nil, err
	}
	var out []slot
	for _, b := range buses {
		if b.Bus == 0 {
			out = append(out, pciFree(b.Devices)...)
		}
	}
	scsi, err := scsiBuses(ctx, c)
	return append(out, scsi...), err
}

// pciFree returns the slots among the devices of the first bus: any of a pc, an empty root port of a q35.
func pciFree(devices []pciDevice) []slot {
	var out []slot
	used := map[int]bool{}
	hot := false
	for _, d := range devices {
		used[d.Slot] = true
		hot = hot || d.ID.Vendor == 0x8086 && d.ID.Device == i440FX
		if d.ClassInfo.Class == pciBridge && d.QDev != "" && d.Bridge != nil && len(d.Bridge.Devices) == 0 {
			out = append(out, slot{driver: "virtio-blk-pci", bus: d.QDev, prefix: "vd"})
		}
	}
	if hot && len(used) < pciSlots {
		out = append([]slot{{driver: "virtio-blk-pci", prefix: "vd"}}, out...)
	}
	return out
}

// scsiBuses returns the buses of virtio SCSI controllers that have an ID.
func scsiBuses(ctx context.Context, c *qmp.Client) ([]slot, error) {
	const peripheral = "/machine/peripheral"
	var children []struct{ Name, Type string }
	if err := c.Execute(ctx, "qom-list", map[string]any{"path": peripheral}, &children); err != nil {
		if qmp.Refused(err) {
			return nil, nil
		}
		return nil, err
	}
	var out []slot
	for _, child := range children {
		if strings.HasPrefix(child.Type, "child<virtio-scsi") {
			out = append(out, slot{driver: "scsi-hd", bus: path.Base(child.Name) + ".0", prefix: "sd"})
		}
	}
	return out, nil
}

// chooseSlot returns the first slot whose disks are named like name; any where none is, for a name is only a name.
func chooseSlot(slots []slot, name string) (slot, error) {
	for _, s := range slots {
		if name == "" || strings.HasPrefix(name, s.prefix) {
			return s, nil
		}
	}
	if len(slots) > 0 {
		return slots[0], nil
	}
	return slot{}, fmt.Errorf("%w: there is neither an empty pcie-root-port with an ID nor a virtio-scsi controller with an ID", hypervisor.ErrNoSlot)
}
