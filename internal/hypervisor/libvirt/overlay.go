package libvirt

import (
	"fmt"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/nbd"
)

const (
	metadataSpace   = "https://holdfast-vm.github.io/instant"
	metadataElement = "holdfast:instant"
	reconnectSince  = 9_002_000 // libvirt that knows the delay of an NBD client
	reconnectDelay  = "10"      // seconds
)

// policies are the attributes of a disk that decide what an I/O error does.
var policies = []string{"error_policy", "rerror_policy"}

// stackDisk puts a disk that is an overlay on its export, and has it stop the machine on an error.
// What it did on errors before is noted in the machine's metadata.
func (b *builder) stackDisk(el *etree.Element, name string) error {
	uri := b.rebuild.Backing[name]
	if uri == "" {
		return nil
	}
	export, socket, err := nbd.ParseUnixURI(uri)
	if err != nil {
		return fmt.Errorf("disk %s: %w", name, err)
	}
	driver := child(el, "driver")
	note := b.note().CreateElement("holdfast:disk")
	note.CreateAttr("name", name)
	for _, key := range append(policies, "discard") {
		if old := driver.SelectAttrValue(key, ""); old != "" {
			note.CreateAttr(key, old)
		}
	}
	for _, key := range policies {
		driver.CreateAttr(key, "stop")
	}
	driver.CreateAttr("discard", "unmap")
	backing := el.CreateElement("backingStore")
	backing.CreateAttr("type", "network")
	backing.CreateElement("format").CreateAttr("type", "raw")
	source := backing.CreateElement("source")
	source.CreateAttr("protocol", "nbd")
	source.CreateAttr("name", export)
	at := source.CreateElement("host")
	at.CreateAttr("transport", "unix")
	at.CreateAttr("socket", socket)
	if b.libVersion >= reconnectSince {
		source.CreateElement("reconnect").CreateAttr("delay", reconnectDelay)
	}
	backing.CreateElement("backingStore")
	return nil
}

// note returns our element in the machine's metadata.
func (b *builder) note() *etree.Element {
	meta := child(b.dom, "metadata")
	if el := noteOf(b.dom); el != nil {
		return el
	}
	el := meta.CreateElement(metadataElement)
	el.CreateAttr("xmlns:holdfast", metadataSpace)
	return el
}

func noteOf(dom *etree.Element) *etree.Element {
	if meta := dom.SelectElement("metadata"); meta != nil {
		return meta.SelectElement(metadataElement)
	}
	return nil
}

// settleDisks puts targets in the place of their overlays in a definition, and reports whether that
// changed anything.
func settleDisks(dom *etree.Element, targets []hypervisor.HydrationTarget) (changed bool, err error) {
	for _, t := range targets {
		el := diskElement(dom, t.Disk)
		if el == nil {
			return changed, fmt.Errorf("the definition has no disk %s any more", t.Disk)
		}
		switch sourceOf(el) {
		case t.File:
			// libvirt may have put it there itself; the rest is still ours to do
		case t.Overlay():
		default:
			return changed, fmt.Errorf("disk %s of the definition is %s: it was edited", t.Disk, sourceOf(el))
		}
		changed = settleDisk(dom, el, t) || changed
	}
	if note := noteOf(dom); note != nil && len(note.ChildElements()) == 0 {
		meta := dom.SelectElement("metadata")
		meta.RemoveChild(note)
		if len(meta.ChildElements()) == 0 {
			dom.RemoveChild(meta)
		}
		changed = true
	}
	return changed, nil
}

func settleDisk(dom, el *etree.Element, t hypervisor.HydrationTarget) (changed bool) {
	for _, c := range el.SelectElements("backingStore") {
		el.RemoveChild(c)
		changed = true
	}
	if source := child(el, "source"); source.SelectAttrValue("file", "") != t.File {
		source.CreateAttr("file", t.File)
		changed = true
	}
	driver := child(el, "driver")
	if driver.SelectAttrValue("type", "") != t.Format {
		driver.CreateAttr("type", t.Format)
		changed = true
	}
	note := noteOf(dom)
	if note == nil {
		return changed
	}
	for _, n := range note.ChildElements() {
		if n.SelectAttrValue("name", "") != t.Disk {
			continue
		}
		for _, key := range append(policies, "discard") {
			if old := n.SelectAttrValue(key, ""); old != "" {
				driver.CreateAttr(key, old)
			} else {
				driver.RemoveAttr(key)
			}
		}
		note.RemoveChild(n)
		changed = true
	}
	return changed
}

func diskElement(dom *etree.Element, name string) *etree.Element {
	for _, el := range diskElements(dom) {
		if attr(el, "target", "dev") == name {
			return el
		}
	}
	return nil
}
