package libvirt

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

const agentChannel = "org.qemu.guest_agent.0"

// Machines lists all machines with their disks.
func (h *Host) Machines(ctx context.Context) ([]hypervisor.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := h.Client(ctx)
	if err != nil {
		return nil, err
	}
	doms, err := c.Domains(ctx)
	if err != nil {
		return nil, fmt.Errorf("list machines at %s: %w", h.uri, err)
	}
	out := make([]hypervisor.Machine, 0, len(doms))
	for _, dom := range doms {
		m, err := h.machine(ctx, c, dom)
		if rpc.Is(err, rpc.NoDomain) {
			continue // gone since the list was made
		}
		if err != nil {
			return nil, fmt.Errorf("look at machine %s: %w", dom.Name, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// Machine returns one machine, or hypervisor.ErrNoMachine.
func (h *Host) Machine(ctx context.Context, name string) (hypervisor.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, dom, err := h.Domain(ctx, name)
	if err != nil {
		return hypervisor.Machine{}, err
	}
	m, err := h.machine(ctx, c, dom)
	if rpc.Is(err, rpc.NoDomain) { // gone since it was looked up
		return hypervisor.Machine{}, fmt.Errorf("%w: %s at %s", hypervisor.ErrNoMachine, name, h.uri)
	}
	if err != nil {
		return hypervisor.Machine{}, fmt.Errorf("look at machine %s: %w", name, err)
	}
	return m, nil
}

func (h *Host) machine(ctx context.Context, c *rpc.Client, dom rpc.Domain) (hypervisor.Machine, error) {
	state, err := c.DomainState(ctx, dom)
	if err != nil {
		return hypervisor.Machine{}, err
	}
	text, err := c.DomainXML(ctx, dom, 0)
	if err != nil {
		return hypervisor.Machine{}, err
	}
	doc, err := parse(text)
	if err != nil {
		return hypervisor.Machine{}, err
	}
	m := hypervisor.Machine{Name: dom.Name, UUID: formatUUID(dom.UUID), State: stateOf(state), Host: h.uri,
		Agent: doc.FindElement("devices/channel/target[@name='"+agentChannel+"']") != nil}
	for _, el := range diskElements(doc) {
		if capturable(el) {
			m.Disks = append(m.Disks, diskOf(ctx, c, dom, doc, el))
		}
	}
	return m, nil
}

func stateOf(s rpc.State) hypervisor.State {
	switch s.State {
	case rpc.StateRunning, rpc.StateBlocked, rpc.StateShutdown:
		return hypervisor.Running
	case rpc.StatePaused, rpc.StatePM:
		return hypervisor.Paused
	case rpc.StateOff:
		if s.Reason == rpc.OffCrashed {
			return hypervisor.Crashed
		}
		return hypervisor.Off
	}
	return hypervisor.Crashed
}

// parse returns the domain element of a domain's XML.
func parse(text string) (*etree.Element, error) {
	doc := etree.NewDocument()
	if err := doc.ReadFromString(text); err != nil {
		return nil, fmt.Errorf("domain XML: %w", err)
	}
	root := doc.SelectElement("domain")
	if root == nil {
		return nil, fmt.Errorf("domain XML has no domain element")
	}
	return root, nil
}

func formatUUID(u [16]byte) string {
	s := hex.EncodeToString(u[:])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}

// diskElements returns what a point calls disks: CD-ROMs and floppies are not.
func diskElements(dom *etree.Element) []*etree.Element {
	var out []*etree.Element
	for _, el := range dom.FindElements("devices/disk") {
		if device := el.SelectAttrValue("device", "disk"); device == "disk" || device == "lun" {
			out = append(out, el)
		}
	}
	return out
}

func diskOf(ctx context.Context, c *rpc.Client, dom rpc.Domain, doc, el *etree.Element) hypervisor.Disk {
	d := hypervisor.Disk{
		Name:     attr(el, "target", "dev"),
		Bus:      attr(el, "target", "bus"),
		Format:   attr(el, "driver", "type"),
		File:     sourceOf(el),
		Serial:   text(el, "serial"),
		IOThread: onIOThread(doc, el),
		ReadOnly: el.SelectElement("readonly") != nil,
	}
	d.Device, d.Encrypted = d.Name, encryptionOf(el)
	if d.Format == "" {
		d.Format = "raw"
	}
	d.Persistent = d.Format == "qcow2"
	if index := attr(el, "source", "index"); index != "" {
		d.Node = "libvirt-" + index + "-format"
	}
	// An image that cannot be looked at has size 0: whoever wants to read it finds out why.
	if info, err := c.DomainBlockInfo(ctx, dom, d.Name); err == nil {
		d.Size, d.Allocated = int64(info.Capacity), int64(info.Allocation)
	}
	for store := el.SelectElement("backingStore"); store != nil; store = store.SelectElement("backingStore") {
		d.Allocated += allocated(sourceOf(store))
	}
	return d
}

// encryptionOf returns how a disk's image, or one that it stands on, is encrypted; "" if none is.
func encryptionOf(el *etree.Element) string {
	for _, path := range []string{"encryption", "source/encryption", ".//backingStore/source/encryption"} {
		found := el.FindElement(path)
		if found == nil {
			continue
		}
		if format := found.SelectAttrValue("format", ""); strings.HasPrefix(format, "luks") {
			return "luks"
		}
		return "aes"
	}
	return ""
}

// sourceOf returns the path or name of a disk's image; "" if it has none.
func sourceOf(el *etree.Element) string {
	src := el.SelectElement("source")
	if src == nil {
		return ""
	}
	for _, key := range []string{"file", "dev", "volume", "name", "dir"} {
		if v := src.SelectAttrValue(key, ""); v != "" {
			if proto := src.SelectAttrValue("protocol", ""); proto != "" {
				return proto + ":" + v
			}
			return v
		}
	}
	return ""
}

// allocated returns the bytes that a file occupies, 0 if it cannot be told.
func allocated(path string) int64 {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// onIOThread reports whether a disk, or the SCSI controller it hangs on, is served by an iothread.
func onIOThread(doc, el *etree.Element) bool {
	if attr(el, "driver", "iothread") != "" || el.FindElement("driver/iothreads") != nil {
		return true
	}
	index, err := strconv.Atoi(attr(el, "address", "controller"))
	if err != nil || attr(el, "target", "bus") != "scsi" {
		return false
	}
	for _, ctl := range doc.FindElements("devices/controller[@type='scsi']") {
		if ctl.SelectAttrValue("index", "0") == strconv.Itoa(index) {
			return attr(ctl, "driver", "iothread") != "" || ctl.FindElement("driver/iothreads") != nil
		}
	}
	return false
}

// attr returns an attribute of a child, "" if either is missing.
func attr(el *etree.Element, child, key string) string {
	if c := el.SelectElement(child); c != nil {
		return c.SelectAttrValue(key, "")
	}
	return ""
}

// text returns the text of the element at path, "" if there is none.
func text(el *etree.Element, path string) string {
	if c := el.FindElement(path); c != nil {
		return strings.TrimSpace(c.Text())
	}
	return ""
}
