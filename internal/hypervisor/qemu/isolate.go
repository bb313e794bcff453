package qemu

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/console"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/isolation"
)

const firstHub = 7000 // our hubs are numbered from here

var (
	// outwardDevices lead to the host or through it; those of hostDevice are left out of every
	// machine that is rebuilt.
	outwardDevices = []string{"virtio-9p", "vhost-", "ivshmem", "usb-host", "usb-redir", "usb-mtp", "usb-ccid",
		"ccid-card", "u2f-", "usb-bt-dongle",
		"vfio", "scsi-block", "scsi-generic", "pvrdma", "x-pci-proxy", "xen-", "isa-parallel", "virtio-input-host"}
	outwardObjects = []string{"can-host", "input-linux", "filter-", "colo-compare", "x-remote-object",
		"x-vfio-user-server", "vhost-user-backend", "cryptodev-vhost-user",
		"dbus-vmstate", "input-barrier", "memory-backend-epc", "rng-egd", "iommufd"}
	outwardOptions = wordSet(`virtfs fsdev smb redir tftp bootp usbdevice gdb s incoming spice vnc nographic curses sdl
		daemonize fda fdb sd cdrom-url plugin qtest qtest-log bt xen-domid parallel debugcon virtioconsole add-fd chroot`)
	// inwardChardevs stay inside QEMU or in a file.
	inwardChardevs = wordSet("null vc ringbuf memory testdev mux hub")
	networkDrivers = wordSet("nbd rbd ssh iscsi http https ftp ftps gluster nfs sheepdog vxhs nvme host_cdrom")
)

// isolate leaves the machine no way out. It runs last, and looks at what all else has made of the
// command line.
func (w *rewriter) isolate() {
	if !w.r.Isolated {
		return
	}
	w.dropOutward()
	w.cutNetworks()
	w.closeChardevs()
	w.closeLegacy()
	w.closeObjects()
	w.ejectRemote()
	w.protectFiles()
}

func startsWithAny(s string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// dropOutward leaves out what would show the guest something of the host or listen there.
func (w *rewriter) dropOutward() {
	nographic := w.cl.has("nographic")
	w.cl.drop(func(o option) bool {
		what := ""
		switch {
		case outwardOptions[o.name]:
			what = "-" + o.name + " " + o.value
		case o.name == "device" && startsWithAny(parseProps(o.value, "driver").get("driver"), outwardDevices):
			what = "device " + o.value
		case o.name == "display":
			return true
		}
		switch o.name {
		case "", "nographic", "daemonize", "vnc", "spice", "curses", "sdl":
		default:
			if what != "" {
				w.warn("isolated: %s is left out", strings.TrimSpace(what))
			}
		}
		return what != ""
	})
	w.cl.set("display", "none")
	if nographic && !w.cl.has("serial") {
		w.cl.set("serial", "file:"+w.ownEscaped("serial.log"))
	}
	w.cl.edit("audiodev", func(_ *option, p *props) {
		id := p.get("id")
		p.object, p.list = nil, []property{{key: "driver", value: "none", bare: true, implied: true},
			{key: "id", value: id}}
	})
}

func (w *rewriter) ownEscaped(suffix string) string {
	return strings.ReplaceAll(w.own(suffix), ",", ",,")
}

// cutNetworks gives every network card a hub that nothing else is plugged into.
func (w *rewriter) cutNetworks() {
	hub := firstHub
	next := func() string {
		hub++
		return fmt.Sprint(hub)
	}
	had := w.cl.has("nic") || w.cl.has("netdev") || w.cl.has("net")
	w.cl.edit("netdev", func(_ *option, p *props) {
		p.object, p.list = nil, []property{{key: "type", value: "hubport", bare: true, implied: true},
			{key: "id", value: p.get("id")}, {key: "hubid", value: next()}}
	})
	var added []option
	w.cl.edit("nic", func(_ *option, p *props) {
		if p.get("type") == "none" {
			return
		}
		kept := []property{{key: "type", value: "hubport", bare: true, implied: true}, {key: "hubid", value: next()}}
		for _, key := range []string{"id", "model", "mac", "addr", "vectors"} {
			if v := p.get(key); v != "" {
				kept = append(kept, property{key: key, value: v})
			}
		}
		p.object, p.list = nil, kept
	})
	w.cl.edit("net", func(_ *option, p *props) {
		if p.get("type") != "nic" || p.get("netdev") != "" {
			return
		}
		id := next()
		added = append(added, option{name: "netdev", value: "hubport,id=hfhub" + id + ",hubid=" + id, hasValue: true})
		p.set("netdev", "hfhub"+id)
	})
	w.cl.drop(func(o option) bool {
		kind := parseProps(o.value, "type").get("type")
		return o.name == "net" && kind != "nic" && kind != "none"
	})
	w.cl.options = append(w.cl.options, added...)
	if !had && !w.cl.has("nodefaults") { // QEMU would add a card on a network of its own making
		id := next()
		w.cl.options = append(w.cl.options,
			option{name: "netdev", value: "hubport,id=hfhub" + id + ",hubid=" + id, hasValue: true},
			option{name: "net", value: "nic,netdev=hfhub" + id, hasValue: true})
	}
	w.cl.edit("device", func(_ *option, p *props) {
		if p.get("netdev") != "" {
			dropKeys(p, "", "failover", "failover_pair_id", "mq", "vectors", "rss", "hash")
		}
	})
}

// closeChardevs leaves monitors, the guest agent and the TPM as they are, and ends all others in a
// file or nowhere.
func (w *rewriter) closeChardevs() {
	keep := make(map[string]bool)
	for _, id := range w.monitorChardevs() {
		keep[id] = true
	}
	agent := ""
	if p := w.cl.agentChardev(); p != nil {
		agent = p.get("id")
	}
	serial := w.serialChardevs()
	w.cl.edit("chardev", func(_ *option, p *props) {
		id, backend := p.get("id"), p.get("backend")
		switch {
		case w.tpm != nil && p.get("path") == w.tpm.socket:
		case id == agent:
			p.object, p.list = nil, []property{{key: "backend", value: "socket", bare: true, implied: true},
				{key: "id", value: id}}
			listen(p, w.agent)
		case keep[id] && backend == "socket" && serves(p) && p.get("path") != "":
		case inwardChardevs[backend]:
		case serial[id] || backend == "file":
			w.endIn(p, "file")
			p.set("path", w.own(id+".log"))
		default:
			w.endIn(p, "null")
		}
	})
}

// endIn replaces the other end of a character device.
func (w *rewriter) endIn(p *props, backend string) {
	id, mux := p.get("id"), p.get("mux")
	p.object, p.list = nil, []property{{key: "backend", value: backend, bare: true, implied: true},
		{key: "id", value: id}}
	if mux != "" {
		p.set("mux", mux)
	}
}

// serialChardevs returns the character devices behind serial ports and consoles.
func (w *rewriter) serialChardevs() map[string]bool {
	ids := make(map[string]bool)
	for _, v := range w.cl.values("device") {
		p := parseProps(v, "driver")
		switch p.get("driver") {
		case "isa-serial", "pci-serial", "virtconsole", "sclpconsole", "spapr-vty", "usb-serial":
			ids[p.get("chardev")] = true
		}
	}
	for _, v := range w.cl.values("serial") {
		if id, ok := strings.CutPrefix(v, "chardev:"); ok {
			ids[id] = true
		}
	}
	return ids
}

// closeLegacy ends serial ports in files, and monitors other than QMP nowhere.
func (w *rewriter) closeLegacy() {
	for i := range w.cl.options {
		o := &w.cl.options[i]
		switch o.name {
		case "serial":
			if o.value == "none" || strings.HasPrefix(o.value, "chardev:") || strings.HasPrefix(o.value, "file:") {
				continue
			}
			o.value = "file:" + w.ownEscaped(fmt.Sprintf("serial%d.log", i))
		case "monitor":
			o.value = "none"
		}
	}
}

// closeObjects leaves out objects that talk to others, or puts harmless ones in their place.
func (w *rewriter) closeObjects() {
	w.cl.edit("object", func(_ *option, p *props) {
		if p.get("qom-type") == "rng-egd" {
			id := p.get("id")
			p.object, p.list = nil, []property{{key: "qom-type", value: "rng-random", bare: true, implied: true},
				{key: "id", value: id}, {key: "filename", value: "/dev/urandom"}}
		}
	})
	w.cl.drop(func(o option) bool {
		kind := parseProps(o.value, "qom-type").get("qom-type")
		drop := o.name == "object" && startsWithAny(kind, outwardObjects)
		if drop {
			w.warn("isolated: object %s is left out", kind)
		}
		return drop
	})
}

// ejectRemote empties removable drives whose media are elsewhere.
func (w *rewriter) ejectRemote() {
	w.cl.edit("drive", func(_ *option, p *props) {
		if file := p.get("file"); p.get("media") == "cdrom" && (isURI(strings.TrimPrefix(file, "file:")) ||
			strings.HasPrefix(file, "/dev/")) {
			w.warn("isolated: medium %s is left out", file)
			p.remove(func(key string) bool {
				return key == "file" || key == "format" || strings.HasPrefix(key, "file.")
			})
		}
	})
	w.cl.drop(func(o option) bool {
		gone := o.name == "cdrom" && (isURI(o.value) || strings.HasPrefix(o.value, "/dev/"))
		if gone {
			w.warn("isolated: medium %s is left out", o.value)
		}
		return gone
	})
	w.cl.edit("device", func(_ *option, p *props) {
		drive := p.get("drive")
		if i, _ := w.node(drive); i >= 0 && w.isRemote(drive) {
			w.warn("isolated: medium %s is left out", drive)
			p.remove(func(key string) bool { return key == "drive" })
		}
	})
	w.dropUnused()
}

// isRemote reports whether a node reads from the network or a device of the host.
func (w *rewriter) isRemote(name string) bool {
	for range 16 {
		i, p := w.node(name)
		if i < 0 {
			return false
		}
		for _, key := range p.keys() {
			if (key == "driver" || strings.HasSuffix(key, ".driver")) && networkDrivers[p.get(key)] {
				return true
			}
		}
		name = p.get("file")
	}
	return false
}

// protectFiles keeps the machine from writing to files of the original that are not part of the
// point: floppies, cards, firmware variables.
func (w *rewriter) protectFiles() {
	w.cl.edit("drive", func(_ *option, p *props) {
		if p.get("if") == "pflash" && p.get("readonly") != "on" && !w.isOwn(p.get("file")) {
			p.set("snapshot", "on") // what is written goes to a file without a name
		}
	})
}

// isOwn reports whether a file was made for this machine. The original's may lie beside it.
func (w *rewriter) isOwn(path string) bool {
	if strings.HasPrefix(path, w.own("")) {
		return true
	}
	for _, files := range []map[string]string{w.r.Files, w.r.Disks} {
		for _, file := range files {
			if abs, err := filepath.Abs(file); err == nil && abs == path {
				return true
			}
		}
	}
	return false
}

// Isolation looks at the QEMU process, and asks it for its networks.
func (h *Host) Isolation(ctx context.Context, m hypervisor.Machine) (isolation.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c, err := h.reach(ctx, m)
	if err != nil {
		return isolation.Report{}, fmt.Errorf("check that %s is isolated: %w", m.Name, err)
	}
	report, err := isolation.Inspect(c.PeerPID(), []string{filepath.Dir(h.socket)})
	if err != nil {
		return report, fmt.Errorf("check that %s is isolated: %w", m.Name, err)
	}
	var info string
	if err := c.Execute(ctx, "human-monitor-command", map[string]string{"command-line": "info network"},
		&info); err != nil {
		return report, fmt.Errorf("check that %s is isolated: %w", m.Name, err)
	}
	return report.Add(isolation.Backends(info)...), nil
}

// Release lets a machine run that was built to be held.
func (h *Host) Release(ctx context.Context, m hypervisor.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c, err := h.reach(ctx, m)
	if err == nil {
		err = c.Execute(ctx, "cont", nil, nil)
	}
	if err != nil {
		return fmt.Errorf("let machine %s run: %w", m.Name, err)
	}
	return nil
}

// SerialText returns the last max bytes that the machine wrote to its first serial port, "" if that
// is not kept in a file.
func (h *Host) SerialText(ctx context.Context, m hypervisor.Machine, max int64) (string, error) {
	c, err := h.reach(ctx, m)
	if err != nil {
		return "", err
	}
	p, err := readProcess(c.PeerPID())
	if err != nil {
		return "", err
	}
	cl := parseCommandLine(p.args)
	path := cl.serialFile()
	if path == "" {
		return "", nil
	}
	return console.Tail(p.resolve(path), max)
}

// serialFile returns the file behind the first serial port.
func (cl *commandLine) serialFile() string {
	var ids []string
	for _, v := range cl.values("serial") {
		if path, ok := strings.CutPrefix(v, "file:"); ok {
			return strings.ReplaceAll(path, ",,", ",")
		}
		if id, ok := strings.CutPrefix(v, "chardev:"); ok {
			ids = append(ids, id)
		}
	}
	for _, v := range cl.values("device") {
		switch p := parseProps(v, "driver"); p.get("driver") {
		case "isa-serial", "pci-serial", "virtconsole", "sclpconsole", "spapr-vty":
			ids = append(ids, p.get("chardev"))
		}
	}
	for _, id := range ids {
		if p := cl.byID("chardev", id); p != nil && p.get("backend") == "file" {
			return p.get("path")
		}
	}
	return ""
}
