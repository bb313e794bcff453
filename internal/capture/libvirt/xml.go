package libvirt

import (
	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

const checkpointSizeFlags = rpc.CheckpointXMLSize | rpc.CheckpointXMLNoDomain

// jobXML describes a backup job of the capture's disks. Disks that are not captured are left out by
// name: libvirt would take them in otherwise.
func jobXML(s *capturing, mode string, place func(*etree.Element, *disk)) *etree.Document {
	doc := etree.NewDocument()
	root := doc.CreateElement("domainbackup")
	root.CreateAttr("mode", mode)
	if since := s.since(); since != "" {
		root.CreateElement("incremental").SetText(since)
	}
	disks := root.CreateElement("disks")
	for _, d := range s.disks {
		el := disks.CreateElement("disk")
		el.CreateAttr("name", d.Name)
		el.CreateAttr("backup", "yes")
		el.CreateAttr("type", "file")
		if d.since != "" {
			el.CreateAttr("backupmode", "incremental")
			el.CreateAttr("incremental", d.since)
		} else {
			el.CreateAttr("backupmode", "full")
		}
		place(el, d)
	}
	for _, name := range s.others {
		el := disks.CreateElement("disk")
		el.CreateAttr("name", name)
		el.CreateAttr("backup", "no")
	}
	return doc
}

// checkpointXML describes the checkpoint that begins at the instant; "" if no disk can have one.
func checkpointXML(s *capturing) string {
	if !s.tracks() {
		return ""
	}
	doc := etree.NewDocument()
	root := doc.CreateElement("domaincheckpoint")
	root.CreateElement("name").SetText(s.checkpoint())
	disks := root.CreateElement("disks")
	add := func(name, kind string) {
		el := disks.CreateElement("disk")
		el.CreateAttr("name", name)
		el.CreateAttr("checkpoint", kind)
	}
	for _, d := range s.disks {
		if s.begins(d) {
			add(d.Name, "bitmap")
		} else {
			add(d.Name, "no")
		}
	}
	for _, name := range s.others {
		add(name, "no")
	}
	return render(doc)
}

func render(doc *etree.Document) string {
	text, err := doc.WriteToString()
	if err != nil {
		panic(err) // a document made here, written to memory
	}
	return text
}

// since returns the checkpoint that any disk counts from.
func (s *capturing) since() string {
	for _, d := range s.disks {
		if d.since != "" {
			return d.since
		}
	}
	return ""
}
