package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

var _ hypervisor.Attacher = (*Host)(nil)

const (
	releaseTime = 30 * time.Second      // that a guest has to let a disk go
	nodePause   = 20 * time.Millisecond // between two tries to remove a node that is being let go
	nodePrefix  = "disk-"               // begins the names of the nodes that Attach makes
)

// plugged is a disk device of a running QEMU, read-only ones included.
type plugged struct {
	name string // of the disk
	id   string // of the device, as device_del takes it
	node string
	file string
}

// Attach implements [hypervisor.Attacher]. A plain QEMU keeps no definition: the disk stays for the
// life of its process.
func (h *Host) Attach(ctx context.Context, m hypervisor.Machine, a hypervisor.Attachment) (string, error) {
	c, err := h.Client(ctx)
	if err != nil {
		return "", err
	}
	name, err := h.attach(ctx, c, a)
	if err != nil {
		return "", fmt.Errorf("attach %s to machine %s: %w", a.File, m.Name, err)
	}
	return name, nil
}

func (h *Host) attach(ctx context.Context, c *qmp.Client, a hypervisor.Attachment) (string, error) {
	have, err := h.plugged(ctx, c)
	if err != nil {
		return "", err
	}
	for _, p := range have {
		if p.name == a.Name {
			return "", fmt.Errorf("disk %s: %w", a.Name, hypervisor.ErrExists)
		}
		if sameFile(p.file, a.File) {
			return "", fmt.Errorf("the machine has the image as disk %s: %w", p.name, hypervisor.ErrExists)
		}
	}
	slots, err := findSlots(ctx, c)
	if err != nil {
		return "", err
	}
	s, err := chooseSlot(slots, a.Name)
	if err != nil {
		return "", err
	}
	if a.Name == "" {
		a.Name = freeName(s.prefix, have)
	}
	return a.Name, plug(ctx, c, s, a)
}

// sameFile reports whether two paths lead to one file.
func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// freeName returns the first name that no disk has.
func freeName(prefix string, have []plugged) string {
	for n := 0; ; n++ {
		name := prefix + letters(n)
		if !slices.ContainsFunc(have, func(p plugged) bool { return p.name == name }) {
			return name
		}
	}
}

// plug adds node and device, or neither.
func plug(ctx context.Context, c *qmp.Client, s slot, a hypervisor.Attachment) error {
	node := nodePrefix + a.Name
	if err := c.Execute(ctx, "blockdev-add", nodeOf(node, a), nil); err != nil {
		return fmt.Errorf("open the image: %w", err)
	}
	device := map[string]any{"driver": s.driver, "id": a.Name, "drive": node}
	if s.bus != "" {
		device["bus"] = s.bus
	}
	if a.Serial != "" {
		device["serial"] = a.Serial
	}
	if a.Backing != "" {
		device["rerror"], device["werror"] = "stop", "stop"
	}
	err := c.Execute(ctx, "device_add", device, nil)
	if err == nil {
		return nil
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandTime)
	defer cancel()
	return errors.Join(fmt.Errorf("plug it into %s: %w", s, err), dropNode(clean, c, node))
}

func nodeOf(node string, a hypervisor.Attachment) map[string]any {
	driver := "file"
	if info, err := os.Stat(a.File); err == nil && info.Mode()&os.ModeDevice != 0 {
		driver = "host_device"
	}
	return map[string]any{"node-name": node, "driver": a.Format, "read-only": a.ReadOnly, "discard": "unmap",
		"file": map[string]any{"driver": driver, "filename": a.File, "discard": "unmap", "read-only": a.ReadOnly}}
}

// dropNode removes a node that its device has let go, or is about to. One that is not there is not
// an error.
func dropNode(ctx context.Context, c *qmp.Client, node string) error {
	for {
		err := c.Execute(ctx, "blockdev-del", map[string]any{"node-name": node}, nil)
		if err == nil || !qmp.Refused(err) || !strings.Contains(err.Error(), "in use") {
			if qmp.Refused(err) && strings.Contains(err.Error(), "Failed to find node") {
				return nil
			}
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("close the image: %w", err)
		case <-time.After(nodePause):
		}
	}
}

// plugged lists the disk devices that QEMU has now.
func (h *Host) plugged(ctx context.Context, c *qmp.Client) ([]plugged, error) {
	list, err := queryBlock(ctx, c)
	if err != nil {
		return nil, err
	}
	p, err := readProcess(c.PeerPID())
	if err != nil {
		p = nil // paths then stay as QEMU has them
	}
	writable, err := listDisks(ctx, c, p)
	if err != nil {
		return nil, err
	}
	var out []plugged
	for _, b := range list {
		if b.Inserted == nil || b.QDev == "" {
			continue
		}
		d := plugged{name: diskLabel(b), id: deviceID(b.QDev), node: b.Inserted.NodeName, file: p.resolve(imageFile(b))}
		for _, w := range writable { // there the names are final
			if w.Device == qomPath(b.QDev) {
				d.name = w.Name
			}
		}
		out = append(out, d)
	}
	return out, nil
}

// imageFile returns the path of a drive's top image. QEMU writes the name of an image over another
// one as JSON.
func imageFile(b blockDevice) string {
	name := b.Inserted.File
	text, ok := strings.CutPrefix(name, "json:")
	if !ok {
		return name
	}
	var node imageNode
	if json.Unmarshal([]byte(text), &node) != nil {
		return name
	}
	for n := &node; n != nil; n = n.File {
		if n.Filename != "" {
			return n.Filename
		}
	}
	return name
}

// imageNode is the name of an image as JSON: a file, or a node above one.
type imageNode struct {
	Filename string
	File     *imageNode
}

// deviceID returns what device_del takes for a device that query-block names by ID or by path.
func deviceID(qdev string) string {
	qdev = strings.TrimSuffix(qdev, "/virtio-backend")
	if id, ok := strings.CutPrefix(qdev, "/machine/peripheral/"); ok {
		return id
	}
	return qdev
}

func (h *Host) find(ctx context.Context, file string) (*qmp.Client, plugged, bool, error) {
	c, err := h.Client(ctx)
	if err != nil {
		return nil, plugged{}, false, err
	}
	have, err := h.plugged(ctx, c)
	if err != nil {
		return nil, plugged{}, false, err
	}
	for _, p := range have {
		if sameFile(p.file, file) {
			return c, p, true, nil
		}
	}
	return c, plugged{}, false, nil
}

// Attached implements [hypervisor.Attacher].
func (h *Host) Attached(ctx context.Context, m hypervisor.Machine, file string) (string, bool, error) {
	_, p, ok, err := h.find(ctx, file)
	if err != nil {
		return "", false, fmt.Errorf("look for %s in machine %s: %w", file, m.Name, err)
	}
	return p.name, ok, nil
}

// Resize implements [hypervisor.Attacher].
func (h *Host) Resize(ctx context.Context, m hypervisor.Machine, file string, size int64) error {
	c, p, ok, err := h.find(ctx, file)
	if err == nil && !ok {
		err = hypervisor.ErrNoDisk
	}
	if err == nil {
		err = c.Execute(ctx, "block_resize", map[string]any{"node-name": p.node, "size": size}, nil)
	}
	if err != nil {
		return fmt.Errorf("resize %s in machine %s: %w", file, m.Name, err)
	}
	return nil
}

// Detach implements [hypervisor.Attacher].
func (h *Host) Detach(ctx context.Context, m hypervisor.Machine, file string) error {
	c, p, ok, err := h.find(ctx, file)
	if err == nil && ok {
		err = unplug(ctx, c, p)
	}
	if err != nil {
		return fmt.Errorf("detach %s from machine %s: %w", file, m.Name, err)
	}
	return nil
}

// unplug asks the guest to let the device go, waits until it has, and closes the image.
func unplug(ctx context.Context, c *qmp.Client, p plugged) error {
	events := c.Subscribe()
	defer events.Close()
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	err := c.Execute(ctx, "device_del", map[string]any{"id": p.id}, nil)
	if err != nil && !strings.Contains(err.Error(), "already in the process of unplug") {
		return fmt.Errorf("ask for disk %s: %w", p.name, err)
	}
	if err := awaitDeleted(ctx, events, p); err != nil {
		return err
	}
	return dropNode(ctx, c, p.node)
}

func awaitDeleted(ctx context.Context, events *qmp.Subscription, p plugged) error {
	for {
		e, err := events.Next(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("disk %s: %w in %d s: is it in use there, or does the guest not run?", p.name,
				hypervisor.ErrNotReleased, int(releaseTime.Seconds()))
		}
		if err != nil {
			return err
		}
		var d struct{ Device, Path string }
		if json.Unmarshal(e.Data, &d) != nil || d.Device != p.id && d.Path != p.id {
			continue
		}
		switch e.Name {
		case "DEVICE_DELETED":
			return nil
		case "DEVICE_UNPLUG_GUEST_ERROR":
			return fmt.Errorf("disk %s: %w: it refused", p.name, hypervisor.ErrNotReleased)
		}
	}
}
