package libvirt

import (
	"context"
	"fmt"
	"strings"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

const (
	overrideSince = 8_002_000 // libvirt that lets a definition change the properties of a device
	qemuSpace     = "http://libvirt.org/schemas/domain/qemu/1.0"
	cardAlias     = "ua-hf-card" // begins the aliases of an isolated machine's network cards; libvirt wants the ua-
)

// cutInterfaces connects every network card to nothing. libvirt has no card without a network (of
// type null it makes none that QEMU gets, and 9.0 dies of it), so each is on a QEMU network of its
// own, and the property that plugs it in there is taken from the card; [Host.unplug] then removes
// the networks. The guest sees a card of the same model and address with its link up. An older
// libvirt holds the link down instead.
func (b *builder) cutInterfaces(devices *etree.Element) {
	var override *etree.Element
	for i, el := range devices.SelectElements("interface") {
		b.cutInterface(el)
		if b.libVersion < overrideSince || b.onBoard(el) {
			el.CreateElement("link").CreateAttr("state", "down")
			continue
		}
		alias := fmt.Sprint(cardAlias, i)
		child(el, "alias").CreateAttr("name", alias)
		if override == nil {
			b.dom.CreateAttr("xmlns:qemu", qemuSpace)
			override = b.dom.CreateElement("qemu:override")
		}
		device := override.CreateElement("qemu:device")
		device.CreateAttr("alias", alias)
		property := device.CreateElement("qemu:frontend").CreateElement("qemu:property")
		property.CreateAttr("name", "netdev")
		property.CreateAttr("type", "remove")
	}
}

// onBoard reports whether a card is part of the board, not a device of its own: those of some ARM
// machines.
func (b *builder) onBoard(el *etree.Element) bool {
	arch := attrAt(b.dom, "os/type", "arch")
	return (strings.HasPrefix(arch, "arm") || arch == "aarch64") && el.SelectElement("address") == nil
}

// cutInterface leaves of a network card what the guest sees of it.
func (b *builder) cutInterface(el *etree.Element) {
	keep := map[string]bool{"mac": true, "model": true, "address": true, "boot": true, "rom": true, "acpi": true}
	for _, c := range el.ChildElements() {
		if !keep[c.Tag] {
			el.RemoveChild(c)
		}
	}
	el.Attr = nil
	el.CreateAttr("type", "user")
}

// unplug removes the networks that no card of an isolated machine is plugged in to.
func unplug(ctx context.Context, c *rpc.Client, dom rpc.Domain, definition *etree.Element) error {
	for _, el := range definition.FindElements("devices/interface") {
		alias := attr(el, "alias", "name")
		if !strings.HasPrefix(alias, cardAlias) {
			continue
		}
		said, err := c.MonitorCommand(ctx, dom, "netdev_del host"+alias, true)
		if said = strings.TrimSpace(said); err == nil && said != "" {
			err = fmt.Errorf("QEMU says %q", said)
		}
		if err != nil {
			return fmt.Errorf("remove the network of card %s: %w", alias, err)
		}
	}
	return nil
}

// linksDown returns QEMU's names of the networks whose cards have their links down.
func linksDown(dom *etree.Element) []string {
	var ids []string
	for _, el := range dom.FindElements("devices/interface[@type='user']") {
		if alias := attr(el, "alias", "name"); alias != "" && attr(el, "link", "state") == "down" {
			ids = append(ids, "host"+alias)
		}
	}
	return ids
}
