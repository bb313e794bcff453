package qemu

import (
	"context"
	"fmt"
	"slices"
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
	i440FX   = 0x1237 // device of the host bridge of a machine whose PCI slots take devices while it runs
	pciSlots = 32
)

type pciDevice struct {
	Slot int
	ID   struct{ Device, Vendor int }
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
		if b.Bus == 0 && takesAny(b.Devices) {
			out = append(out, slot{driver: "virtio-blk-pci", prefix: "vd"})
			break
		}
	}
	more, err := namedSlots(ctx, c)
	return append(out, more...), err
}

// takesAny reports whether the first bus takes a device at any free place while the machine runs,
// as that of a pc does.
func takesAny(devices []pciDevice) bool {
	used := map[int]bool{}
	hot := false
	for _, d := range devices {
		used[d.Slot] = true
		hot = hot || d.ID.Vendor == 0x8086 && d.ID.Device == i440FX
	}
	return hot && len(used) < pciSlots
}

// object is a device that was given on the command line or plugged in later.
type object struct {
	path, kind string
	bus        string // it sits on
}

// namedSlots returns the empty root ports and the SCSI controllers that have an ID. What sits where
// is asked of the devices: before the firmware has run, the buses below ports have no numbers.
func namedSlots(ctx context.Context, c *qmp.Client) ([]slot, error) {
	var all []object
	for _, dir := range []string{"/machine/peripheral", "/machine/peripheral-anon"} {
		some, err := listObjects(ctx, c, dir)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	var ports, scsi []slot
	for _, o := range all {
		id, named := strings.CutPrefix(o.path, "/machine/peripheral/")
		taken := slices.ContainsFunc(all, func(other object) bool { return strings.HasPrefix(other.bus, o.path+"/") })
		switch {
		case !named:
		case (o.kind == "pcie-root-port" || o.kind == "ioh3420") && !taken:
			ports = append(ports, slot{driver: "virtio-blk-pci", bus: id, prefix: "vd"})
		case strings.HasPrefix(o.kind, "virtio-scsi"):
			scsi = append(scsi, slot{driver: "scsi-hd", bus: id + ".0", prefix: "sd"})
		}
	}
	return append(ports, scsi...), nil
}

func listObjects(ctx context.Context, c *qmp.Client, dir string) ([]object, error) {
	var children []struct{ Name, Type string }
	if err := c.Execute(ctx, "qom-list", map[string]any{"path": dir}, &children); err != nil {
		if qmp.Refused(err) {
			return nil, nil
		}
		return nil, err
	}
	var out []object
	for _, child := range children {
		kind, ok := strings.CutPrefix(child.Type, "child<")
		if !ok {
			continue
		}
		o := object{path: dir + "/" + child.Name, kind: strings.TrimSuffix(kind, ">")}
		var err error
		if o.bus, err = qomString(ctx, c, o.path, "parent_bus"); err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

// chooseSlot returns the first slot whose disks are named like name; any where none is, for a name
// is only a name.
func chooseSlot(slots []slot, name string) (slot, error) {
	for _, s := range slots {
		if name == "" || strings.HasPrefix(name, s.prefix) {
			return s, nil
		}
	}
	if len(slots) > 0 {
		return slots[0], nil
	}
	return slot{}, fmt.Errorf("%w: there is neither an empty pcie-root-port with an ID nor a virtio-scsi controller "+
		"with an ID", hypervisor.ErrNoSlot)
}
