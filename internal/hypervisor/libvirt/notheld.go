package libvirt

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/devicekind"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/qemu"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// NotHeld lists what of the machine a point does not hold, by its live definition if it runs.
func (h *Host) NotHeld(ctx context.Context, m hypervisor.Machine) ([]point.Omission, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, dom, err := h.Domain(ctx, m.Name)
	if err != nil {
		return nil, err
	}
	text, err := c.DomainXML(ctx, dom, 0)
	if err != nil {
		return nil, fmt.Errorf("look at the devices of machine %s: %w", m.Name, err)
	}
	doc, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("look at the devices of machine %s: %w", m.Name, err)
	}
	return notHeld(doc), nil
}

// notHeld lists what of a domain a point does not hold.
func notHeld(dom *etree.Element) (out []point.Omission) {
	if all := dom.SelectElement("devices"); all != nil {
		for _, el := range all.ChildElements() {
			if row := rowOf(el); row.Fate == devicekind.LeftOut && !emptyDrive(el) {
				name := nameOf(el)
				if row.Kind == devicekind.Unknown.Kind {
					name = strings.TrimSpace(el.Tag + " " + name)
				}
				out = append(out, row.Omit(name, behind(el)))
			}
		}
	}
	for tag, path := range map[string]string{"dtb": "os/dtb", "shim": "os/shim", "acpi": "os/acpi/table"} {
		for _, el := range dom.FindElements(path) {
			out = append(out, devicekind.Element("os", tag).Omit(el.Tag, strings.TrimSpace(el.Text())))
		}
	}
	for _, el := range dom.FindElements("sysinfo[@type='fwcfg']/entry[@file]") {
		out = append(out, devicekind.Element("sysinfo", "fwcfg").Omit(el.SelectAttrValue("name", ""),
			el.SelectAttrValue("file", "")))
	}
	if attrAt(dom, "memoryBacking/source", "type") == "file" {
		out = append(out, devicekind.Element("memoryBacking", "file").Omit("", ""))
	}
	for _, arg := range qemu.NotHeldArguments(arguments(dom)) {
		out = append(out, devicekind.Element("commandline", "").Omit(arg, ""))
	}
	slices.SortStableFunc(out, func(a, b point.Omission) int { return strings.Compare(a.Kind, b.Kind) })
	return out
}

// rowOf returns what becomes of a device.
func rowOf(el *etree.Element) devicekind.Row {
	return devicekind.Element(el.Tag, subtype(el))
}

// subtype is what the rows tell devices of one tag apart by.
func subtype(el *etree.Element) string {
	kind := el.SelectAttrValue("type", "")
	switch el.Tag {
	case "disk":
		device := el.SelectAttrValue("device", "disk")
		if device == "disk" && strings.HasPrefix(kind, "vhost") {
			return kind
		}
		return device
	case "memory":
		return el.SelectAttrValue("model", "")
	case "tpm":
		return attr(el, "backend", "type")
	}
	return kind
}

// capturable reports whether a point can hold what is in a disk.
func capturable(el *etree.Element) bool { return rowOf(el).Fate == devicekind.Captured }

// emptyDrive reports whether el is a drive for media with nothing in it.
func emptyDrive(el *etree.Element) bool {
	device := el.SelectAttrValue("device", "disk")
	return el.Tag == "disk" && (device == "cdrom" || device == "floppy") && behind(el) == ""
}

// nameOf returns what libvirt calls a device, "" if nothing.
func nameOf(el *etree.Element) string {
	for _, at := range []struct{ child, key string }{{"target", "dev"}, {"target", "dir"}, {"alias", "name"}} {
		if v := attr(el, at.child, at.key); v != "" {
			return v
		}
	}
	return el.SelectAttrValue("name", "")
}

// behind returns what of the host a device stands on, in words; "" if it does not say.
func behind(el *etree.Element) string {
	source := el.SelectElement("source")
	for _, path := range []string{"source/path", "path"} {
		if v := text(el, path); v != "" {
			return v
		}
	}
	if source == nil {
		return attrAt(el, "backend/device", "path")
	}
	if v := sourceOf(el); v != "" {
		return v
	}
	for _, key := range []string{"path", "socket", "usage", "wwpn", "evdev"} {
		if v := source.SelectAttrValue(key, ""); v != "" {
			return v
		}
	}
	var words []string
	for _, c := range source.ChildElements() {
		for _, a := range c.Attr {
			words = append(words, a.Key+" "+a.Value)
		}
	}
	return strings.Join(words, ", ")
}

// arguments returns the QEMU arguments of a definition's own.
func arguments(dom *etree.Element) (args []string) {
	for _, el := range dom.FindElements("commandline/arg") {
		args = append(args, el.SelectAttrValue("value", ""))
	}
	return args
}
