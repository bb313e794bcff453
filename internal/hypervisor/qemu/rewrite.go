package qemu

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// rewriter turns the command line of a point into that of the machine that is rebuilt.
type rewriter struct {
	cl     commandLine
	r      hypervisor.Rebuild
	def    point.Definition
	socket string // QMP of the new machine
	agent  string // guest agent's of the new machine

	needed   map[string]bool // what the old command line refers to
	uuid     string
	tpm      *tpmStart
	copies   []fileCopy // to be made before the machine is started
	refused  error      // why the machine cannot be built
	warnings []string
}

// fileCopy is a file of the original of which the machine has a copy.
type fileCopy struct{ from, to string }

// tpmStart is the TPM emulator that must run before QEMU.
type tpmStart struct {
	dir, socket string
	version2    bool
}

func newRewriter(r hypervisor.Rebuild, socket, agent string) *rewriter {
	if agent == "" {
		agent = filepath.Join(r.StorageDir, r.Name+".qga.sock")
	}
	def := r.Point.Definition
	cl := parseCommandLine(def.Args)
	return &rewriter{cl: cl, r: r, def: def, socket: socket, agent: agent, needed: cl.references()}
}

func (w *rewriter) warn(format string, args ...any) {
	w.warnings = append(w.warnings, fmt.Sprintf(format, args...))
}

// rewrite does all of it.
func (w *rewriter) rewrite() {
	w.findProgram()
	w.pinMachine()
	w.pinAccelerator()
	w.setIdentity()
	w.replaceDisks()
	w.replaceFiles()
	w.dropStaleMedia()
	w.moveTPM()
	w.moveSockets()
	w.setNetworks()
	w.dropTransient()
	w.dropForeign()
	w.holdOnErrors()
	w.isolate()
	if w.r.Held {
		w.cl.options = append(w.cl.options, option{name: "S"})
	}
}

// old returns the absolute form of a path of the old command line.
func (w *rewriter) old(path string) string {
	path = strings.TrimPrefix(path, "file:")
	if path == "" || filepath.IsAbs(path) || isURI(path) {
		return path
	}
	return filepath.Join(w.def.Dir, path)
}

// own returns a path for a further file of the new machine.
func (w *rewriter) own(suffix string) string {
	return filepath.Join(w.r.StorageDir, w.r.Name+"."+suffix)
}

// findProgram leaves the name without its directory where the directory has none.
func (w *rewriter) findProgram() {
	if strings.Contains(w.cl.program, "/") {
		w.cl.program = w.old(w.cl.program)
		if !exists(w.cl.program) {
			w.cl.program = filepath.Base(w.cl.program)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// pinMachine names the exact machine type.
func (w *rewriter) pinMachine() {
	if w.def.MachineType != "" {
		if !w.cl.has("machine") && !w.cl.has("M") {
			w.cl.set("machine", w.def.MachineType)
		}
		w.cl.edit("machine M", func(_ *option, p *props) { p.set("type", w.def.MachineType) })
	}
}

// setIdentity gives the machine its name, and a UUID and MAC addresses that are the old ones or
// fresh.
func (w *rewriter) setIdentity() {
	if !w.cl.has("name") {
		w.cl.set("name", "")
	}
	w.cl.edit("name", func(_ *option, p *props) {
		p.list = append([]property{{key: "guest", value: w.r.Name}}, p.without("guest")...)
	})
	w.uuid = w.cl.first("uuid")
	if w.uuid == "" {
		w.uuid = w.r.Point.MachineUUID
	}
	if w.r.SameIdentity {
		if w.uuid != "" {
			w.cl.set("uuid", w.uuid)
		}
		return
	}
	if w.uuid = w.r.UUID; w.uuid == "" {
		w.uuid = newUUID()
	}
	w.cl.set("uuid", w.uuid)
	w.cl.edit("smbios", func(_ *option, p *props) {
		if p.get("uuid") != "" {
			p.set("uuid", w.uuid)
		}
	})
	w.cl.edit("device", func(_ *option, p *props) {
		if p.get("driver") == "vmgenid" {
			p.set("guid", "auto")
		}
	})
	if !w.r.Isolated {
		w.setAddresses()
	}
}

// setAddresses gives every network card a fresh MAC address.
func (w *rewriter) setAddresses() {
	w.cl.edit("device", func(_ *option, p *props) {
		if p.get("netdev") != "" || p.get("mac") != "" {
			p.set("mac", newMAC())
		}
	})
	w.cl.edit("nic", func(_ *option, p *props) {
		if p.get("type") != "none" {
			p.set("mac", newMAC())
		}
	})
	w.cl.edit("net", func(_ *option, p *props) {
		if p.get("type") == "nic" {
			p.set("macaddr", newMAC())
		}
	})
}

// without returns the properties of the list form but those of a key.
func (p *props) without(key string) []property {
	var out []property
	for _, e := range p.list {
		if e.key != key {
			out = append(out, e)
		}
	}
	return out
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func newMAC() string {
	var b [3]byte
	rand.Read(b[:])
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2])
}

// replaceFiles puts the point's firmware variables, kernel and initrd in the place of the old ones.
func (w *rewriter) replaceFiles() {
	moved := make(map[string]string)
	for _, f := range w.r.Point.Files {
		if path := w.r.Files[f.Role+"/"+f.Name]; path != "" {
			moved[f.Path] = path
		}
	}
	move := func(p *props, key string) {
		if path := moved[w.old(p.get(key))]; path != "" {
			p.set(key, path)
		}
	}
	for i := range w.cl.options {
		o := &w.cl.options[i]
		if path := moved[w.old(o.value)]; path != "" && (o.name == "kernel" || o.name == "initrd" ||
			o.name == "pflash") {
			o.value = path
		}
	}
	w.cl.edit("machine M", func(_ *option, p *props) { move(p, roleKernel); move(p, roleInitrd) })
	w.cl.edit("device", func(_ *option, p *props) { move(p, "jsonfile") })
	w.cl.edit("drive blockdev", func(_ *option, p *props) {
		for _, key := range p.keys() {
			if key == "file" || key == "filename" || strings.HasSuffix(key, ".filename") {
				move(p, key)
			}
		}
	})
	var missing []string
	for _, f := range w.r.Point.Files {
		if f.Role != roleTPM && moved[f.Path] == "" && !exists(f.Path) {
			missing = append(missing, f.Path)
		}
	}
	sort.Strings(missing)
	for _, path := range missing {
		w.warn("%s was not restored and is not on this host", path)
	}
}

// moveTPM puts the restored state in a directory of its own emulator.
func (w *rewriter) moveTPM() {
	for _, v := range w.cl.values("tpmdev") {
		tpm := parseProps(v, "type")
		if tpm.get("type") != "emulator" {
			continue // it is left out
		}
		w.tpm = &tpmStart{dir: w.own("tpm"), socket: w.own("tpm.sock"), version2: true}
		w.cl.edit("chardev", func(_ *option, p *props) {
			if p.get("id") == tpm.get("chardev") {
				p.set("path", w.tpm.socket)
			}
		})
		w.findTPMState()
	}
}

func (w *rewriter) findTPMState() {
	for _, f := range w.r.Point.Files {
		if f.Role != roleTPM {
			continue
		}
		path := w.r.Files[roleTPM+"/"+f.Name]
		dir, ok := strings.CutSuffix(path, "/"+f.Name)
		if !ok {
			w.warn("the TPM's state %s was not restored: the machine gets an empty TPM", f.Name)
			continue
		}
		w.tpm.dir = dir
		if strings.HasPrefix(filepath.Base(f.Name), "tpm-") {
			w.tpm.version2 = false
		}
	}
}

// setNetworks maps bridges and interfaces, and gives up what only one machine of a host can have.
func (w *rewriter) setNetworks() {
	w.cl.edit("netdev nic net", func(_ *option, p *props) {
		for _, key := range []string{"br", "ifname", "bridge"} {
			old := p.get(key)
			switch to := w.r.Networks[old]; {
			case old == "":
			case to != "":
				p.set(key, to)
			case key == "ifname" && !w.r.SameIdentity:
				p.remove(func(k string) bool { return k == "ifname" })
			}
		}
		for _, key := range []string{"fd", "fds", "vhostfd", "vhostfds"} {
			if p.get(key) != "" {
				p.remove(func(k string) bool { return k == key })
				w.warn("network %s used a descriptor of the old process: check its settings", p.get("id"))
			}
		}
		if p.get("hostfwd") != "" && !w.r.SameIdentity {
			p.remove(func(k string) bool { return k == "hostfwd" })
			w.warn("forwarded ports of the host were left out: the original has them")
		}
	})
}

// dropTransient removes what belonged to the old process.
func (w *rewriter) dropTransient() {
	daemon := w.cl.has("daemonize")
	w.cl.drop(func(o option) bool {
		switch o.name {
		case "loadvm":
			w.warn("the saved state %s is not part of the point: the machine boots", o.value)
			return true
		case "incoming", "daemonize", "S", "s", "gdb", "add-fd", "set", "writeconfig":
			return true
		}
		return false
	})
	if daemon && !w.cl.has("display") && !w.cl.has("nographic") && !w.cl.has("vnc") && !w.cl.has("spice") {
		w.cl.set("display", "none")
	}
}
