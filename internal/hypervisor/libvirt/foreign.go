package libvirt

import (
	"strings"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/devicekind"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/qemu"
)

// copyOf reports whether the machine is another one than the one that was: the original, should it
// still be there, keeps all that only one of them can have.
func (b *builder) copyOf() bool { return !b.rebuild.SameIdentity }

// foreign leaves out what is the host's or the original's, and what nobody can follow.
func (b *builder) foreign() {
	devices := b.dom.SelectElement("devices")
	for _, el := range devices.ChildElements() {
		row := rowOf(el)
		switch {
		case b.leaves(el, row):
			b.warn("%s: %s is left out: %s", el.Tag, row.Omit(nameOf(el), behind(el)).Title(), row.Why)
			devices.RemoveChild(el)
		case row.Kind == devicekind.Unknown.Kind:
			b.warn("device %s is of a kind that is not known: it is built as the definition says", el.Tag)
		}
	}
	b.readOnlyLoader()
	b.foreignArguments()
	if !b.copyOf() {
		return
	}
	for _, el := range devices.SelectElements("interface") {
		b.leaveNetwork(el)
	}
	for _, el := range devices.SelectElements("audio") {
		if el.SelectAttrValue("type", "") == "file" {
			b.quiet(el)
		}
	}
	for _, el := range devices.SelectElements("rng") {
		ownRandomness(el)
	}
	b.endPorts(devices)
}

// leaves reports whether a device is left out.
func (b *builder) leaves(el *etree.Element, row devicekind.Row) bool {
	switch row.Kind {
	case "host-device", "scsi-passthrough", "served-disk", "pmem", "error-records", "shared-memory", "host-tpm":
		return true
	case "shared-folder":
		return b.copyOf() || missing(behind(el))
	case "smartcard":
		return b.copyOf()
	case devicekind.Unknown.Kind:
		return b.rebuild.Isolated
	}
	switch el.Tag {
	case "lease": // of a disk or a machine that only one may hold
		return b.copyOf()
	case "redirdev":
		return b.copyOf() && el.SelectAttrValue("type", "") != "spicevmc"
	}
	return false
}

// readOnlyLoader keeps the machine from writing to a firmware image that is not its own.
func (b *builder) readOnlyLoader() {
	loader := b.dom.FindElement("os/loader")
	if loader == nil || loader.SelectAttrValue("readonly", "yes") == "yes" {
		return
	}
	loader.CreateAttr("readonly", "yes")
	b.warn("firmware %s could be written by the machine: it is read-only now", strings.TrimSpace(loader.Text()))
}

// foreignArguments leaves out QEMU arguments of the definition's own if any names something of the
// host, such as an image.
func (b *builder) foreignArguments() {
	args := qemu.NotHeldArguments(arguments(b.dom))
	if len(args) == 0 {
		return
	}
	for _, el := range b.dom.SelectElements("commandline") {
		b.dom.RemoveChild(el)
	}
	b.warn("QEMU arguments of the definition's own are left out, for they name what is the host's: %s",
		strings.Join(args, ", "))
}

// leaveNetwork takes a copy out of networks that have room for one machine only.
func (b *builder) leaveNetwork(el *etree.Element) {
	if target := el.SelectElement("target"); target != nil {
		target.RemoveAttr("dev")
	}
	switch kind := el.SelectAttrValue("type", ""); kind {
	case "vhostuser", "server", "client", "udp":
		b.warn("network card of type %s is on no network: the original may be connected there", kind)
	case "ethernet":
		if attr(el, "target", "managed") != "no" {
			return
		}
		b.warn("network card on a device of the host is on no network: the original may be connected there")
	default:
		return
	}
	b.cutInterface(el)
	child(el, "link").CreateAttr("state", "down")
}

// ownRandomness gives a random number generator the kernel's numbers in the place of a daemon's.
func ownRandomness(el *etree.Element) {
	backend := el.SelectElement("backend")
	if backend == nil || backend.SelectAttrValue("model", "") != "egd" {
		return
	}
	fresh := etree.NewElement("backend")
	fresh.CreateAttr("model", "random")
	fresh.SetText("/dev/urandom")
	el.RemoveChild(backend)
	el.AddChild(fresh)
}

// endPorts keeps a copy from the files, sockets and logs of ports and displays that the original
// has.
func (b *builder) endPorts(devices *etree.Element) {
	for _, tag := range []string{"serial", "console", "parallel", "channel", "redirdev"} {
		for _, el := range devices.SelectElements(tag) {
			for _, log := range el.SelectElements("log") {
				el.RemoveChild(log)
			}
		}
	}
	for _, el := range devices.SelectElements("channel") {
		switch kind := el.SelectAttrValue("type", ""); kind {
		case "file", "pipe", "tcp", "udp", "dev", "nmdm":
			b.warn("channel %s of type %s, which the old machine may use, leads nowhere", attr(el, "target", "name"),
				kind)
			el.CreateAttr("type", "null")
			for _, c := range []string{"source", "protocol"} {
				for _, old := range el.SelectElements(c) {
					el.RemoveChild(old)
				}
			}
		}
	}
	for _, el := range devices.FindElements("graphics/listen[@type='socket']") {
		el.RemoveAttr("socket") // libvirt makes one
	}
}
