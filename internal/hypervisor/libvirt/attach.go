package libvirt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/nbd"
)

var _ hypervisor.Attacher = (*Host)(nil)

const (
	releaseTime  = 30 * time.Second       // that a guest has to let a disk go
	releasePause = 100 * time.Millisecond // between two looks
)

// devices is a domain with the disks of both its forms.
type devices struct {
	client *rpc.Client
	dom    rpc.Domain
	live   *etree.Element // nil while it is off
	config *etree.Element // nil if it has no definition
}

func (h *Host) devices(ctx context.Context, m hypervisor.Machine) (*devices, error) {
	c, dom, err := h.Domain(ctx, m.Name)
	if err != nil {
		return nil, err
	}
	d := &devices{client: c, dom: dom}
	state, err := c.DomainState(ctx, dom)
	if err != nil {
		return nil, err
	}
	if state.State != rpc.StateOff && state.State != rpc.StateCrashed {
		if d.live, err = readForm(ctx, c, dom, 0); err != nil {
			return nil, err
		}
	}
	// A transient domain answers with its live form: whether it has a definition is known only by
	// asking for a change of it.
	if d.config, err = readForm(ctx, c, dom, rpc.XMLInactive); err != nil {
		return nil, err
	}
	return d, nil
}

func readForm(ctx context.Context, c *rpc.Client, dom rpc.Domain, flags rpc.XMLFlags) (*etree.Element, error) {
	text, err := c.DomainXML(ctx, dom, flags)
	if err != nil {
		return nil, err
	}
	return parse(text)
}

// forms returns the forms that there are.
func (d *devices) forms() map[rpc.Affect]*etree.Element {
	out := map[rpc.Affect]*etree.Element{}
	if d.live != nil {
		out[rpc.AffectLive] = d.live
	}
	if d.config != nil {
		out[rpc.AffectConfig] = d.config
	}
	return out
}

// have returns the forms that have a disk of the image, and the disk's name.
func (d *devices) have(file string) (affect rpc.Affect, name string) {
	for form, el := range d.forms() {
		for _, disk := range diskElements(el) {
			if sourceOf(disk) == file {
				affect |= form
				name = attr(disk, "target", "dev")
			}
		}
	}
	return affect, name
}

// change makes a change to some forms, without the definition where the domain has none.
func (d *devices) change(affect rpc.Affect, do func(rpc.Affect) error) error {
	err := do(affect)
	if affect&rpc.AffectConfig != 0 && affect != rpc.AffectConfig && rpc.Is(err, rpc.OperationInvalid) &&
		strings.Contains(err.Error(), "transient") {
		err = do(affect &^ rpc.AffectConfig)
	}
	return err
}

// Attach implements [hypervisor.Attacher].
func (h *Host) Attach(ctx context.Context, m hypervisor.Machine, a hypervisor.Attachment) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	name, err := h.attach(ctx, m, a)
	if err != nil {
		return "", fmt.Errorf("attach %s to machine %s: %w", a.File, m.Name, err)
	}
	return name, nil
}

func (h *Host) attach(ctx context.Context, m hypervisor.Machine, a hypervisor.Attachment) (string, error) {
	d, err := h.devices(ctx, m)
	if err != nil {
		return "", err
	}
	if _, name := d.have(a.File); name != "" {
		return "", fmt.Errorf("the machine has the image as disk %s: %w", name, hypervisor.ErrExists)
	}
	taken := d.names()
	if a.Name == "" {
		a.Name = freeName(taken)
	}
	if slices.Contains(taken, a.Name) {
		return "", fmt.Errorf("disk %s: %w", a.Name, hypervisor.ErrExists)
	}
	affect := rpc.AffectConfig
	if d.live != nil {
		affect |= rpc.AffectLive
	}
	text, err := diskXML(a)
	if err != nil {
		return "", err
	}
	err = d.change(affect, func(affect rpc.Affect) error { return d.client.AttachDevice(ctx, d.dom, text, affect) })
	if err != nil && (strings.Contains(err.Error(), "No more available PCI slots") ||
		strings.Contains(err.Error(), "No more available PCI addresses")) {
		err = fmt.Errorf("%w: %w", hypervisor.ErrNoSlot, err)
	}
	return a.Name, err
}

// names returns the names of all drives of both forms.
func (d *devices) names() []string {
	var out []string
	for _, el := range d.forms() {
		for _, target := range el.FindElements("devices/disk/target") {
			out = append(out, target.SelectAttrValue("dev", ""))
		}
	}
	return out
}

func freeName(taken []string) string {
	for n := 0; ; n++ {
		name := "vd" + string(rune('a'+n%26))
		if n >= 26 {
			name = "vd" + string(rune('a'+n/26-1)) + string(rune('a'+n%26))
		}
		if !slices.Contains(taken, name) {
			return name
		}
	}
}

// diskXML describes the disk. Its name chooses the bus, as it does elsewhere in libvirt.
func diskXML(a hypervisor.Attachment) (string, error) {
	doc := etree.NewDocument()
	disk := doc.CreateElement("disk")
	disk.CreateAttr("type", "file")
	disk.CreateAttr("device", "disk")
	driver := disk.CreateElement("driver")
	driver.CreateAttr("name", "qemu")
	driver.CreateAttr("type", a.Format)
	driver.CreateAttr("discard", "unmap")
	disk.CreateElement("source").CreateAttr("file", a.File)
	if a.Backing != "" {
		driver.CreateAttr("error_policy", "stop")
		driver.CreateAttr("rerror_policy", "stop")
		if err := addBacking(disk, a.Backing); err != nil {
			return "", err
		}
	}
	target := disk.CreateElement("target")
	target.CreateAttr("dev", a.Name)
	target.CreateAttr("bus", busOf(a.Name))
	if a.ReadOnly {
		disk.CreateElement("readonly")
	}
	if a.Serial != "" {
		disk.CreateElement("serial").SetText(a.Serial)
	}
	return doc.WriteToString()
}

func busOf(name string) string {
	switch {
	case strings.HasPrefix(name, "sd"):
		return "scsi"
	case strings.HasPrefix(name, "hd"):
		return "ide"
	}
	return "virtio"
}

// Attached implements [hypervisor.Attacher].
func (h *Host) Attached(ctx context.Context, m hypervisor.Machine, file string) (string, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	d, err := h.devices(ctx, m)
	if err != nil {
		return "", false, fmt.Errorf("look for %s in machine %s: %w", file, m.Name, err)
	}
	affect, name := d.have(file)
	return name, affect&rpc.AffectLive != 0, nil
}

// Detach implements [hypervisor.Attacher].
func (h *Host) Detach(ctx context.Context, m hypervisor.Machine, file string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := h.detach(ctx, m, file); err != nil {
		return fmt.Errorf("detach %s from machine %s: %w", file, m.Name, err)
	}
	return nil
}

func (h *Host) detach(ctx context.Context, m hypervisor.Machine, file string) error {
	d, err := h.devices(ctx, m)
	if err != nil {
		return err
	}
	affect, name := d.have(file)
	if affect == 0 {
		return nil
	}
	text := fmt.Sprintf("<disk type='file' device='disk'><target dev='%s' bus='%s'/></disk>", name, busOf(name))
	err = d.change(affect, func(affect rpc.Affect) error { return d.client.DetachDevice(ctx, d.dom, text, affect) })
	if err != nil && !strings.Contains(err.Error(), "already in the process of unplug") {
		return err
	}
	if affect&rpc.AffectLive == 0 {
		return nil
	}
	return h.awaitRelease(ctx, m, file, name)
}

// awaitRelease waits until the running machine has the disk no more.
func (h *Host) awaitRelease(ctx context.Context, m hypervisor.Machine, file, name string) error {
	limit, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	for {
		d, err := h.devices(ctx, m)
		if err != nil {
			return err
		}
		if affect, _ := d.have(file); affect&rpc.AffectLive == 0 {
			return nil
		}
		select {
		case <-limit.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("disk %s: %w in %d s: is it in use there, or does the guest not run?", name,
				hypervisor.ErrNotReleased, int(releaseTime.Seconds()))
		case <-time.After(releasePause):
		}
	}
}

// Resize implements [hypervisor.Attacher].
func (h *Host) Resize(ctx context.Context, m hypervisor.Machine, file string, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	d, err := h.devices(ctx, m)
	if err == nil {
		affect, name := d.have(file)
		if affect&rpc.AffectLive == 0 {
			err = hypervisor.ErrNoDisk
		} else {
			err = d.client.BlockResize(ctx, d.dom, name, uint64(size))
		}
	}
	if err != nil {
		return fmt.Errorf("resize %s in machine %s: %w", file, m.Name, err)
	}
	return nil
}

// ErrNoPool reports that libvirt has no such storage pool, or one that is not a directory.
var ErrNoPool = errors.New("no such storage pool")

// PoolDir returns the directory of a storage pool of type dir.
func (h *Host) PoolDir(ctx context.Context, name string) (string, error) {
	c, p, err := h.pool(ctx, name)
	if err != nil {
		return "", err
	}
	text, err := c.StoragePoolXML(ctx, p)
	if err != nil {
		return "", fmt.Errorf("storage pool %s: %w", name, err)
	}
	doc := etree.NewDocument()
	if err := doc.ReadFromString(text); err != nil {
		return "", fmt.Errorf("storage pool %s: its definition: %w", name, err)
	}
	root := doc.SelectElement("pool")
	if root == nil {
		return "", fmt.Errorf("storage pool %s: its definition has no pool element", name)
	}
	path := root.FindElement("target/path")
	if kind := root.SelectAttrValue("type", ""); path == nil || kind != "dir" && kind != "fs" && kind != "netfs" {
		return "", fmt.Errorf("%w: pool %s is of type %s, and only a directory can hold managed disks", ErrNoPool, name,
			kind)
	}
	return strings.TrimSpace(path.Text()), nil
}

// RefreshPool has libvirt list the volumes that a storage pool has now.
func (h *Host) RefreshPool(ctx context.Context, name string) error {
	c, p, err := h.pool(ctx, name)
	if err != nil {
		return err
	}
	if err := c.StoragePoolRefresh(ctx, p); err != nil {
		return fmt.Errorf("refresh storage pool %s: %w", name, err)
	}
	return nil
}

func (h *Host) pool(ctx context.Context, name string) (*rpc.Client, rpc.StoragePool, error) {
	c, err := h.Client(ctx)
	if err != nil {
		return nil, rpc.StoragePool{}, err
	}
	p, err := c.StoragePoolByName(ctx, name)
	if rpc.Is(err, rpc.NoStoragePool) {
		return nil, p, fmt.Errorf("%w: %s at %s", ErrNoPool, name, h.uri)
	}
	if err != nil {
		return nil, p, fmt.Errorf("look up storage pool %s: %w", name, err)
	}
	return c, p, nil
}

// addBacking says that a disk's overlay stands on an NBD export. libvirt would find that out from
// the image, but not that the server may be opened.
func addBacking(disk *etree.Element, uri string) error {
	export, socket, err := nbd.ParseUnixURI(uri)
	if err != nil {
		return err
	}
	store := disk.CreateElement("backingStore")
	store.CreateAttr("type", "network")
	store.CreateElement("format").CreateAttr("type", "raw")
	source := store.CreateElement("source")
	source.CreateAttr("protocol", "nbd")
	source.CreateAttr("name", export)
	at := source.CreateElement("host")
	at.CreateAttr("transport", "unix")
	at.CreateAttr("socket", socket)
	store.CreateElement("backingStore")
	return nil
}
