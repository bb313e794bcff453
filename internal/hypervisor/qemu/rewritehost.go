package qemu

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/devicekind"
)

// errConfigurationFile reports that a machine is defined in part by a file that the point lacks.
var errConfigurationFile = errors.New("part of the machine is defined by a file of QEMU's (-readconfig), which the " +
	"point does not have, and which could name images of the original; its disks can be restored one by one")

// copyOf reports whether the machine is another one than the one that was: the original, should it
// still be there, keeps all that only one of them can have.
func (w *rewriter) copyOf() bool { return !w.r.SameIdentity }

// dropForeign leaves out what is the host's or the original's, and what nobody can follow: it runs
// when disks, files and sockets have found their places.
func (w *rewriter) dropForeign() {
	if w.cl.has("readconfig") {
		w.refused = errConfigurationFile
	}
	w.dropForeignDevices()
	w.dropFolders()
	w.dropHostTPM()
	w.dropForeignObjects()
	w.leaveFiles()
	w.endChardevs()
	w.leaveNetworks()
	w.ownMemory()
	w.ownOutputs()
	w.dropFloppies()
	w.ownFlash()
	w.dropUnreferenced()
}

// leaves reports whether a device of that kind is left out.
func (w *rewriter) leaves(row devicekind.Row, p *props) bool {
	switch row.Kind {
	case "scsi-passthrough", "served-disk", "shared-memory", "error-records", "host-device", "served-device":
		return true
	case "pmem":
		return p.get("driver") != "cxl-type3" || p.get("volatile-memdev") == ""
	case "shared-folder":
		return w.leavesFolder(p)
	case "smartcard", "vsock":
		return w.copyOf()
	case devicekind.Unknown.Kind:
		return w.r.Isolated
	}
	return false
}

func (w *rewriter) dropForeignDevices() {
	gone := make(map[string]bool)
	w.cl.drop(func(o option) bool {
		if o.name != "device" {
			return false
		}
		p := parseProps(o.value, "driver")
		row := devicekind.Device(p.get("driver"))
		if !w.leaves(row, p) {
			if row.Kind == devicekind.Unknown.Kind {
				w.warn("device %s is of a kind that is not known: it is built as the command line says",
					p.get("driver"))
			}
			return false
		}
		if drive := p.get("drive"); drive != "" {
			gone[drive] = true
		}
		w.warn("%s (%s) is left out: %s", row.What, o.value, row.Why)
		return true
	})
	w.cl.drop(func(o option) bool { return o.name == "drive" && gone[parseProps(o.value, "").get("id")] })
	w.cl.edit("device", func(_ *option, p *props) {
		if p.get("driver") == "nvme" && p.get("pmrdev") != "" {
			dropKeys(p, "", "pmrdev")
			w.warn("the persistent memory of the NVMe device %s is left out", p.get("id"))
		}
	})
}

// leavesFolder reports whether a device with a folder of the host is left out: another process
// would serve it, or a copy would share it with the original, or it is not here.
func (w *rewriter) leavesFolder(p *props) bool {
	if strings.HasPrefix(p.get("driver"), "vhost-user") || w.copyOf() {
		return true
	}
	folder := p.get("rootdir")
	if id := p.get("fsdev"); id != "" {
		folder = w.cl.folder(id, nil)
	}
	return !isDirectory(w.old(folder))
}

func (w *rewriter) dropFolders() {
	w.cl.drop(func(o option) bool {
		if o.name != "virtfs" && o.name != "fsdev" {
			return false
		}
		p := parseProps(o.value, impliedKey[o.name])
		gone := w.copyOf() || p.get("path") != "" && !isDirectory(w.old(p.get("path")))
		if gone {
			w.warn("the shared folder %s is left out: it is the host's", p.get("path"))
		}
		return gone
	})
	w.cl.edit("netdev nic", func(_ *option, p *props) {
		if dir := p.get("smb"); dir != "" && w.copyOf() {
			dropKeys(p, "", "smb")
			w.warn("the shared folder %s is left out: it is the host's", dir)
		}
	})
	w.cl.drop(func(o option) bool {
		outside := o.name == "usbdevice" && !slices.Contains([]string{"tablet", "mouse", "keyboard", "wacom-tablet"},
			o.value)
		if outside {
			w.warn("USB device %s is left out: it is the host's", o.value)
		}
		return outside
	})
}

// dropHostTPM leaves out a TPM that is the host's own chip.
func (w *rewriter) dropHostTPM() {
	gone := make(map[string]bool)
	w.cl.drop(func(o option) bool {
		p := parseProps(o.value, impliedKey[o.name])
		if o.name != "tpmdev" || p.get("type") == "emulator" {
			return false
		}
		gone[p.get("id")] = true
		w.warn("the TPM %s is left out: it is the old host's own", p.get("id"))
		return true
	})
	w.cl.drop(func(o option) bool { return o.name == "device" && gone[parseProps(o.value, "driver").get("tpmdev")] })
}

// dropForeignObjects leaves out objects that lead to the host or to other processes, with the
// devices that need them, and what a copy would share with the original.
func (w *rewriter) dropForeignObjects() {
	gone := make(map[string]bool)
	w.cl.drop(func(o option) bool {
		if o.name != "object" {
			return false
		}
		p := parseProps(o.value, "qom-type")
		row := devicekind.Object(p.get("qom-type"))
		leave := row.Kind == "host-device" || row.Kind == "served-device" ||
			w.r.Isolated && row.Kind == devicekind.Unknown.Kind
		if leave {
			gone[p.get("id")] = true
			w.warn("object %s (%s) is left out: %s", p.get("qom-type"), p.get("id"), row.Why)
		}
		return leave
	})
	w.cl.drop(func(o option) bool {
		p := parseProps(o.value, "driver")
		return o.name == "device" && (gone[p.get("cryptodev")] || gone[p.get("vhost-user")])
	})
	w.cl.edit("object", func(_ *option, p *props) {
		if w.copyOf() && p.get("qom-type") == "rng-egd" {
			p.object, p.list = nil, []property{{key: "qom-type", value: "rng-random", bare: true, implied: true},
				{key: "id", value: p.get("id")}, {key: "filename", value: "/dev/urandom"}}
		}
	})
}

// leaveFiles warns of files that the machine reads when it starts, and that are not here.
func (w *rewriter) leaveFiles() {
	for _, o := range w.cl.options {
		if file := hostFile(o); file != "" && o.name != "mem-path" && o.name != "readconfig" && !exists(w.old(file)) {
			w.warn("%s of -%s is not in the point and not on this host", file, o.name)
		}
	}
}

// privateChardevs lead nowhere that the original could be.
var privateChardevs = wordSet("null vc ringbuf memory testdev mux hub stdio pty file pipe spicevmc spiceport msmouse " +
	"wctablet braille qemu-vdagent dbus")

// endChardevs ends nowhere what a copy would connect to, and the original is connected to.
func (w *rewriter) endChardevs() {
	w.cl.edit("chardev", func(_ *option, p *props) {
		if p.get("backend") == "pipe" {
			w.endIn(p, "file")
			p.set("path", w.own(p.get("id")+".log"))
		}
		if !w.copyOf() || privateChardevs[p.get("backend")] || serves(p) ||
			w.tpm != nil && p.get("path") == w.tpm.socket {
			return
		}
		w.warn("character device %s (%s) leads nowhere: the original may be connected to %s", p.get("id"),
			p.get("backend"), other(p))
		w.endIn(p, "null")
	})
	for i := range w.cl.options {
		o := &w.cl.options[i]
		if w.copyOf() && (o.name == "serial" || o.name == "parallel" || o.name == "monitor") && connects(o.value) {
			w.warn("-%s %s leads nowhere: the original may be connected to it", o.name, o.value)
			o.value = "null"
		}
	}
}

// other returns what a character device is connected to, in words.
func other(p *props) string {
	switch {
	case p.get("path") != "":
		return p.get("path")
	case p.get("host") != "":
		return p.get("host") + ":" + p.get("port")
	}
	return "it"
}

// connects reports whether the short form of a character device names what somebody else may use.
func connects(value string) bool {
	value = strings.TrimPrefix(value, "mon:")
	kind, rest, _ := strings.Cut(value, ":")
	switch kind {
	case "tcp", "telnet", "websocket", "unix":
		return !strings.Contains(rest, "server")
	case "udp":
		return true
	}
	return strings.HasPrefix(value, "/dev/")
}

// leaveNetworks takes a copy out of networks that have room for one machine only, and gives no
// machine a network device of the host.
func (w *rewriter) leaveNetworks() {
	single := wordSet("vhost-user vhost-vdpa socket stream dgram l2tpv3")
	hub := firstHub + 500
	w.cl.edit("netdev nic", func(o *option, p *props) {
		kind := p.get("type")
		if !single[kind] || !w.copyOf() && kind != "vhost-vdpa" {
			return
		}
		hub++
		w.warn("network %s (%s) is left out: the original may be connected to it", p.get("id"), kind)
		kept := []property{{key: "type", value: "hubport", bare: true, implied: true},
			{key: "hubid", value: fmt.Sprint(hub)}}
		for _, key := range []string{"id", "model", "mac", "addr"} {
			if v := p.get(key); v != "" && (key == "id" || o.name == "nic") {
				kept = append(kept, property{key: key, value: v})
			}
		}
		p.object, p.list = nil, kept
	})
}

// ownMemory gives the machine memory of its own in the place of files, which the original may have.
// A directory is one of huge pages: a file that QEMU makes there has no name.
func (w *rewriter) ownMemory() {
	w.cl.edit("object", func(_ *option, p *props) {
		if p.get("qom-type") != "memory-backend-file" || isDirectory(w.old(p.get("mem-path"))) ||
			p.get("readonly") == "on" && exists(w.old(p.get("mem-path"))) {
			return
		}
		kind := "memory-backend-ram"
		if p.get("share") == "on" {
			kind = "memory-backend-memfd"
		}
		if w.uses(p.get("id")) {
			w.warn("memory %s was in the file %s: it is ordinary memory now", p.get("id"), p.get("mem-path"))
		}
		p.set("qom-type", kind)
		dropKeys(p, "", "mem-path", "align", "discard-data", "pmem", "readonly", "rom", "offset")
	})
	w.cl.drop(func(o option) bool {
		gone := o.name == "mem-path" && !isDirectory(w.old(o.value))
		if gone {
			w.warn("memory was in the file %s: it is ordinary memory now", o.value)
		}
		return gone
	})
}

// uses reports whether any option refers to an object.
func (w *rewriter) uses(id string) bool {
	found := false
	w.cl.edit("device machine M numa", func(_ *option, p *props) {
		for _, key := range p.keys() {
			found = found || key != "id" && p.get(key) == id
		}
	})
	return found
}

// ownOutputs moves what QEMU writes beside disks, and leaves out what writes elsewhere.
func (w *rewriter) ownOutputs() {
	w.cl.edit("audiodev audio", func(_ *option, p *props) {
		if p.get("driver") == "wav" {
			p.set("path", w.own(p.get("id")+".wav"))
		}
	})
	w.cl.edit("object", func(_ *option, p *props) {
		if p.get("qom-type") == "filter-dump" {
			p.set("file", w.own(p.get("id")+".pcap"))
		}
	})
	w.cl.edit("trace", func(_ *option, p *props) {
		if p.get("file") != "" {
			p.set("file", w.own("trace"))
		}
	})
	w.cl.edit("icount", func(_ *option, p *props) { dropKeys(p, "", "rr", "rrfile", "rrsnapshot") })
	w.cl.drop(func(o option) bool {
		switch o.name {
		case "dump-vmstate", "qtest", "qtest-log", "plugin":
			w.warn("-%s %s is left out", o.name, o.value)
			return true
		}
		return false
	})
}

// dropFloppies leaves out floppies, memory cards and flash of the board that can be written.
func (w *rewriter) dropFloppies() {
	gone := make(map[string]bool)
	w.cl.drop(func(o option) bool {
		p := parseProps(o.value, "")
		leave := false
		switch o.name {
		case "fda", "fdb", "sd", "mtdblock":
			leave = true
		case "drive":
			kind := p.get("if")
			leave = (kind == "floppy" || kind == "sd" || kind == "mtd") &&
				!(p.get("readonly") == "on" && exists(w.old(p.get("file"))))
		}
		if leave {
			gone[p.get("id")] = o.name == "drive" && p.get("id") != ""
			w.warn("-%s %s is left out: the point does not hold it, and the original may write it", o.name, o.value)
		}
		return leave
	})
	w.cl.drop(func(o option) bool { return o.name == "device" && gone[parseProps(o.value, "driver").get("drive")] })
}

// ownFlash gives the machine a copy of firmware variables that were not restored and are here.
func (w *rewriter) ownFlash() {
	own := func(path string) string {
		path = w.old(path)
		if path == "" || w.isOwn(path) || !exists(path) {
			return ""
		}
		to := w.own("flash-" + filepath.Base(path))
		w.copies = append(w.copies, fileCopy{path, to})
		w.warn("firmware variables %s are not in the point: the machine has a copy of those that are here now", path)
		return to
	}
	w.cl.edit("drive", func(_ *option, p *props) {
		if p.get("if") == "pflash" && p.get("readonly") != "on" {
			if to := own(p.get("file")); to != "" {
				p.set("file", to)
			}
		}
	})
	for i, flashes := 0, 0; i < len(w.cl.options); i++ {
		o := &w.cl.options[i]
		if o.name != "pflash" {
			continue
		}
		if flashes++; flashes > 1 { // the first is the code
			if to := own(o.value); to != "" {
				o.value = to
			}
		}
	}
	for _, name := range w.flashNodes() {
		i, p := w.node(name)
		for _, key := range []string{"filename", "file.filename"} {
			if i >= 0 && p.get("read-only") != "on" && p.get(key) != "" {
				if to := own(p.get(key)); to != "" {
					p.set(key, to)
					w.cl.options[i].value = p.String()
				}
			}
		}
	}
	w.cl.edit("device", func(_ *option, p *props) {
		if strings.HasPrefix(p.get("driver"), "uefi-vars") && p.get("jsonfile") != "" {
			if to := own(p.get("jsonfile")); to != "" {
				p.set("jsonfile", to)
			}
		}
	})
}

// flashNodes returns the nodes of the board's flash, those below them too.
func (w *rewriter) flashNodes() (names []string) {
	w.cl.edit("machine M", func(_ *option, p *props) {
		for _, key := range []string{"pflash0", "pflash1"} {
			for name := p.get(key); name != ""; {
				names = append(names, name)
				_, node := w.node(name)
				if node == nil || node.get("read-only") == "on" || slices.Contains(names, node.get("file")) {
					break
				}
				name = node.get("file")
			}
		}
	})
	return names
}

// dropUnreferenced leaves out what only something needed that is gone: memory, keys and character
// devices. A file behind one that stayed might be missing, or be the original's.
func (w *rewriter) dropUnreferenced() {
	w.dropUnused()
	for {
		used := w.cl.references()
		before := len(w.cl.options)
		w.cl.drop(func(o option) bool {
			if o.name != "chardev" && o.name != "object" {
				return false
			}
			p := parseProps(o.value, impliedKey[o.name])
			id, kind := p.get("id"), p.get("qom-type")
			return w.needed[id] && !used[id] && (o.name == "chardev" || kind == "secret" || kind == "secret_keyring" ||
				strings.HasPrefix(kind, "tls-creds-") || strings.HasPrefix(kind, "memory-backend-"))
		})
		if len(w.cl.options) == before {
			return
		}
	}
}

// references returns whatever options refer to, among other values.
func (cl *commandLine) references() map[string]bool {
	used := make(map[string]bool)
	for _, o := range cl.options {
		p := parseProps(o.value, impliedKey[o.name])
		for _, key := range p.keys() {
			if key != "id" {
				used[strings.TrimPrefix(strings.TrimPrefix(p.get(key), "mon:"), "chardev:")] = true
			}
		}
		if strings.Contains(o.value, "chardev:") { // -serial and its like
			used[o.value[strings.Index(o.value, "chardev:")+len("chardev:"):]] = true
		}
	}
	return used
}
