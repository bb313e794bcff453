package devicekind

import (
	"path"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/point"
)

// Fate is what becomes of a kind of device.
type Fate string

// Fates of a device.
const (
	Captured Fate = "captured" // its content is in the point
	Rebuilt  Fate = "rebuilt"  // it has no content of its own, and is built again
	LeftOut  Fate = "left out" // the point does not hold it, or not what is in it
)

// Row is a kind of device. Names are separated by spaces; an asterisk stands for any text.
type Row struct {
	Kind    string // for programs: it does not change
	What    string // in words
	Devices string // of QEMU's -device
	Objects string // of QEMU's -object
	Options string // further options of QEMU's command line
	Libvirt string // elements of a domain, with their subtype: memory/nvdimm
	Fate    Fate
	Why     string // what a point has of it, and why no more
	Restore string // what a restore and a drill make of it
}

// Device returns the row of a driver of QEMU's -device, such as "virtio-blk-pci".
func Device(driver string) Row {
	return find(driver, func(r Row) string { return r.Devices })
}

// Object returns the row of a type of QEMU's -object, such as "memory-backend-file".
func Object(kind string) Row {
	return find(kind, func(r Row) string { return r.Objects })
}

// Option returns the row of an option of QEMU's command line, without its dashes.
func Option(name string) Row {
	return find(name, func(r Row) string { return r.Options })
}

// Element returns the row of a libvirt element: by tag and subtype, such as "memory/nvdimm", else
// by the tag where all subtypes are alike.
func Element(tag, subtype string) Row {
	if r := find(tag+"/"+subtype, func(r Row) string { return r.Libvirt }); r.Kind != Unknown.Kind {
		return r
	}
	return find(tag, func(r Row) string { return r.Libvirt })
}

// find prefers a name that is written out, then the longest pattern.
func find(name string, of func(Row) string) Row {
	out, best := Unknown, ""
	for _, r := range Table {
		for pattern := range strings.FieldsSeq(of(r)) {
			if pattern == name {
				return r
			}
			if ok, err := path.Match(pattern, name); ok && err == nil && len(pattern) > len(best) {
				out, best = r, pattern
			}
		}
	}
	return out
}

// Omit returns what a point says of a device of this kind that it does not hold. name is what the
// hypervisor calls it, source what of the host is behind it; either may be "".
func (r Row) Omit(name, source string) point.Omission {
	return point.Omission{Kind: r.Kind, What: r.What, Name: name, Source: source, Why: r.Why}
}

// ReadOnlyDisk returns the row of disks that the machine cannot write.
func ReadOnlyDisk() Row { return find("disk/readonly", func(r Row) string { return r.Libvirt }) }
