package qemu

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// blockDevice is an entry of query-block.
type blockDevice struct {
	Device    string // name of the drive, "" for a -blockdev
	QDev      string // ID or QOM path of the guest's device, "" if none uses it
	Removable bool
	Inserted  *struct {
		File     string
		NodeName string `json:"node-name"`
		Driver   string `json:"drv"`
		ReadOnly bool   `json:"ro"`
		Cache    struct {
			Direct  bool
			NoFlush bool `json:"no-flush"`
		}
		Image imageInfo
	}
}

type imageInfo struct {
	Format         string
	Filename       string
	VirtualSize    int64 `json:"virtual-size"`
	ActualSize     int64 `json:"actual-size"`
	Encrypted      bool
	FormatSpecific struct {
		Data struct {
			Compat  string
			Encrypt struct{ Format string }
		}
	} `json:"format-specific"`
	Backing *imageInfo `json:"backing-image"`
}

// encryption returns how the image or one that it stands on is encrypted, "" if none is.
func (i *imageInfo) encryption() string {
	for ; i != nil; i = i.Backing {
		switch {
		case i.Format == "luks":
			return "luks"
		case i.Encrypted:
			return cmp.Or(i.FormatSpecific.Data.Encrypt.Format, "aes")
		}
	}
	return ""
}

// allocated sums what all layers occupy.
func (i *imageInfo) allocated() int64 {
	var n int64
	for ; i != nil; i = i.Backing {
		n += i.ActualSize
	}
	return n
}

func queryBlock(ctx context.Context, c *qmp.Client) ([]blockDevice, error) {
	var list []blockDevice
	err := c.Execute(ctx, "query-block", nil, &list)
	return list, err
}

// listDisks returns the writable, fixed disks. p resolves relative paths and may be nil.
func listDisks(ctx context.Context, c *qmp.Client, p *process) ([]hypervisor.Disk, error) {
	list, err := queryBlock(ctx, c)
	if err != nil {
		return nil, err
	}
	var disks []hypervisor.Disk
	var labels []string
	for _, b := range list {
		if b.Removable || b.Inserted == nil || b.QDev == "" || b.Inserted.ReadOnly {
			continue
		}
		d, ok, err := describeDisk(ctx, c, b)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", b.QDev, err)
		}
		if !ok {
			continue
		}
		d.File = p.resolve(imageFile(b))
		disks = append(disks, d)
		labels = append(labels, diskLabel(b))
	}
	for i, name := range nameDisks(labels) {
		disks[i].Name = name
	}
	return disks, nil
}

// describeDisk returns the disk of b, and false for firmware flash and memory cards.
func describeDisk(ctx context.Context, c *qmp.Client, b blockDevice) (hypervisor.Disk, bool, error) {
	dev := qomPath(b.QDev)
	kind, err := qomString(ctx, c, dev, "type")
	if err != nil {
		return hypervisor.Disk{}, false, err
	}
	bus, ok := busOf(kind)
	if !ok {
		return hypervisor.Disk{}, false, nil
	}
	in := b.Inserted
	image := &in.Image
	if in.Driver == "copy-before-write" && image.Backing != nil { // a backup is running: its filter is on top
		image = image.Backing
	}
	d := hypervisor.Disk{Size: image.VirtualSize, Allocated: image.allocated(), Format: image.Format, Node: in.NodeName,
		Device: dev, Bus: bus}
	d.Encrypted = image.encryption()
	d.Persistent = in.Driver == "qcow2" && image.FormatSpecific.Data.Compat == "1.1"
	if d.Serial, err = qomString(ctx, c, dev, "serial"); err != nil {
		return hypervisor.Disk{}, false, err
	}
	d.IOThread, err = onIOThread(ctx, c, dev)
	return d, true, err
}

// qomPath returns the object path of a device that query-block names by ID or by path.
func qomPath(qdev string) string {
	if strings.HasPrefix(qdev, "/") {
		return qdev
	}
	return "/machine/peripheral/" + qdev
}

// qomString returns a property as text, "" where the object has no such property.
func qomString(ctx context.Context, c *qmp.Client, object, property string) (string, error) {
	var v any
	err := c.Execute(ctx, "qom-get", map[string]any{"path": object, "property": property}, &v)
	if qmp.Refused(err) {
		return "", nil
	}
	s, _ := v.(string)
	return s, err
}

// busOf returns the bus that a device type sits on, and false for a device that is not a disk.
func busOf(kind string) (string, bool) {
	switch {
	case strings.Contains(kind, "pflash"), strings.Contains(kind, "sd-card"), strings.Contains(kind, "floppy"),
		strings.HasSuffix(kind, "-cd"):
		return "", false
	case kind == "scsi-block", kind == "scsi-generic": // what the guest writes goes past QEMU's block layer
		return "", false
	case strings.HasPrefix(kind, "virtio-blk"), strings.HasPrefix(kind, "vmapple-virtio-blk"):
		return "virtio", true
	}
	bus, _, _ := strings.Cut(kind, "-")
	return bus, bus == "scsi" || bus == "ide" || bus == "nvme" || bus == "usb" || bus == "ufs"
}

// onIOThread asks the device and the controllers above it.
func onIOThread(ctx context.Context, c *qmp.Client, dev string) (bool, error) {
	for object := dev; object != ""; {
		thread, err := qomString(ctx, c, object, "iothread")
		if err != nil || thread != "" {
			return thread != "", err
		}
		bus, err := qomString(ctx, c, object, "parent_bus")
		if err != nil || bus == "" {
			return false, err
		}
		object = path.Dir(bus)
	}
	return false, nil
}

var diskName = regexp.MustCompile(`^(vd|sd|hd|xvd|nvme)[a-z0-9]+$`)

// diskLabel returns the name that the user gave the disk's device or drive, if it is one for a
// disk; else "".
func diskLabel(b blockDevice) string {
	id := strings.TrimSuffix(b.QDev, "/virtio-backend")
	if rest, ok := strings.CutPrefix(id, "/machine/peripheral/"); ok {
		id = rest
	}
	for _, s := range []string{id, b.Device} {
		if diskName.MatchString(s) {
			return s
		}
	}
	return ""
}

// nameDisks keeps labels and gives each disk without one, or with a label that came before, the
// first free name of vda, vdb, …
func nameDisks(labels []string) []string {
	taken := make(map[string]bool)
	names := make([]string, len(labels))
	for i, label := range labels {
		if label != "" && !taken[label] {
			names[i], taken[label] = label, true
		}
	}
	next := 0
	for i := range names {
		for names[i] == "" {
			if name := "vd" + letters(next); !taken[name] {
				names[i], taken[name] = name, true
			}
			next++
		}
	}
	return names
}

// letters counts a, b, … z, aa, ab, …
func letters(n int) string {
	s := string(rune('a' + n%26))
	if n >= 26 {
		return letters(n/26-1) + s
	}
	return s
}
