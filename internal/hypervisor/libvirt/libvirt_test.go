package libvirt_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
)

const size = 1 << 20

type lab struct {
	*testing.T
	ctx  context.Context
	dir  string
	host *libvirt.Host
	d    *libvirtd.Daemon
}

func newLab(t *testing.T) *lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	d := libvirtd.New(t)
	h, err := libvirt.New(d.URI)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return &lab{t, ctx, d.Dir, h, d}
}

func (l *lab) ok(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *lab) file(name, text string) string {
	l.Helper()
	path := filepath.Join(l.dir, name)
	l.ok(os.MkdirAll(filepath.Dir(path), 0o755))
	l.ok(os.WriteFile(path, []byte(text), 0o600))
	return path
}

func (l *lab) image(name string) string {
	l.Helper()
	path := filepath.Join(l.dir, name)
	l.ok(qcow2.Create(path, size, qcow2.CreateOptions{}))
	return path
}

const uuid = "0f4c6dd2-5e0d-4f3c-9b57-8d7f8a4f3a11"

// rich is a machine with all that a rebuild has to look at.
func (l *lab) rich() string {
	return fmt.Sprintf(`<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>old</name><uuid>%[2]s</uuid>
<genid>11111111-2222-4333-8444-555555555555</genid><metadata><a:x xmlns:a='urn:a'>kept</a:x></metadata>
<memory unit='MiB'>32</memory><vcpu>1</vcpu><iothreads>1</iothreads>
<sysinfo type='smbios'><system><entry name='uuid'>%[2]s</entry><entry name='serial'>S1</entry></system></sysinfo>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><loader readonly='yes' type='pflash'>%[3]s</loader>
<nvram template='/none/VARS.fd'>%[4]s</nvram><kernel>%[5]s</kernel><smbios mode='sysinfo'/></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' discard='unmap' iothread='1'/><source file='%[1]s/vda'/><target dev='vda' bus='virtio'/><serial>SN-A</serial></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%[1]s/sdb'/><target dev='sdb' bus='scsi'/><address type='drive' controller='0' bus='0' target='0' unit='1'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%[1]s/none'/><target dev='vdc' bus='virtio'/><readonly/></disk>
<disk type='file' device='cdrom'><source file='%[1]s/none.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
<controller type='scsi' index='0' model='virtio-scsi'><driver iothread='1'/></controller>
<interface type='network'><mac address='52:54:00:aa:bb:cc'/><source network='lan'/><model type='virtio'/></interface>
<interface type='bridge'><mac address='52:54:00:aa:bb:cd'/><source bridge='br0'/></interface>
<serial type='file'><source path='%[1]s/console.log'/><target port='0'/></serial>
<channel type='unix'><source mode='bind' path='%[1]s/ga.sock'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
<graphics type='vnc' port='5999' autoport='no' passwd='geheim'/>
<hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/><product id='0x5678'/></source></hostdev>
</devices></domain>`, l.dir, uuid, l.file("CODE.fd", "code"), l.file("VARS.fd", "variables"), l.file("vmlinuz", "kernel"))
}

func (l *lab) define(xml string) hypervisor.Machine {
	l.Helper()
	dom, err := l.d.Client().DomainDefine(l.ctx, xml, 0)
	l.ok(err)
	m, err := l.host.Machine(l.ctx, dom.Name)
	l.ok(err)
	return m
}

func (l *lab) defineRich() hypervisor.Machine {
	l.Helper()
	l.image("vda")
	l.ok(os.Truncate(l.file("sdb", "x"), size))
	l.file("c/libvirt/qemu/swtpm/"+uuid+"/tpm2/tpm2-00.permall", "tpm state")
	return l.define(l.rich())
}

// Disks are what a point calls disks, with their sizes, whether or not the machine runs.
func TestMachines(t *testing.T) {
	l := newLab(t)
	l.defineRich()
	list, err := l.host.Machines(l.ctx)
	l.ok(err)
	if len(list) != 1 {
		t.Fatalf("machines %+v", list)
	}
	m := list[0]
	if m.Name != "old" || m.UUID != uuid || m.State != hypervisor.Off || !m.Agent || m.Host != l.d.URI {
		t.Errorf("machine %+v", m)
	}
	var got []string
	for _, d := range m.Disks {
		got = append(got, fmt.Sprintf("%s %s %s %d iothread=%v ro=%v %s", d.Name, d.Bus, d.Format, d.Size, d.IOThread,
			d.ReadOnly, d.Serial))
	}
	want := []string{"vda virtio qcow2 1048576 iothread=true ro=false SN-A", "vdc virtio raw 0 iothread=false ro=true ",
		"sdb scsi raw 1048576 iothread=true ro=false "}
	if !slices.Equal(got, want) {
		t.Errorf("disks\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if m.Disks[2].Allocated == 0 || m.Disks[0].File != filepath.Join(l.dir, "vda") {
		t.Errorf("disks %+v", m.Disks)
	}
	if _, err := l.host.Machine(l.ctx, "none"); !errors.Is(err, hypervisor.ErrNoMachine) {
		t.Errorf("missing machine: %v", err)
	}
	if _, err := l.host.OpenAgent(l.ctx, m); !errors.Is(err, hypervisor.ErrNoAgent) {
		t.Errorf("agent of a machine that is off: %v", err)
	}
}

// A machine that was killed holds nothing any more; one that was saved goes on, held as it was.
func TestAgentOfMachineThatEnded(t *testing.T) {
	l := newLab(t)
	m := l.define(`<domain type='qemu'><name>one</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>`)
	for _, tt := range []struct {
		end  string
		gone bool
	}{{"managedsave", false}, {"destroy", true}} {
		for _, verb := range []string{"start", tt.end} {
			if out, err := exec.Command("virsh", "--quiet", "--connect", l.d.URI, verb,
				m.Name).CombinedOutput(); err != nil {
				t.Fatalf("virsh %s: %v: %s", verb, err, out)
			}
		}
		if _, err := l.host.OpenAgent(l.ctx, m); !errors.Is(err, hypervisor.ErrNoAgent) ||
			errors.Is(err, guest.ErrGone) != tt.gone {
			t.Errorf("agent after %s: %v", tt.end, err)
		}
	}
}

// A machine is described with its secrets, its files and a warning of all that stays behind.
func TestDescribe(t *testing.T) {
	l := newLab(t)
	about, err := l.host.Describe(l.ctx, l.defineRich())
	l.ok(err)
	def, files, warnings := about.Definition, about.Files, about.Warnings
	if def.Kind != point.ForLibvirt || def.MachineType != "pc-q35-7.2" ||
		!strings.Contains(def.InactiveXML, "geheim") ||
		def.LiveXML != "" {
		t.Errorf("definition %+v", def)
	}
	if !strings.HasPrefix(def.Hypervisor, "QEMU ") || !strings.Contains(def.Hypervisor, "libvirt ") {
		t.Errorf("hypervisor %q", def.Hypervisor)
	}
	var got []string
	for _, f := range files {
		got = append(got, fmt.Sprintf("%s/%s %d %o", f.Role, f.Name, f.Size, f.Mode))
	}
	slices.Sort(got)
	if want := []string{"kernel/vmlinuz 6 600", "nvram/VARS.fd 9 600",
		"tpm/tpm2/tpm2-00.permall 9 600"}; !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
	if !slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, "network lan") }) {
		t.Errorf("no warning of network lan in %q", warnings)
	}
	if len(about.NotHeld) != 2 || about.NotHeld[0].Kind != "host-device" || about.NotHeld[1].Kind != "medium" {
		t.Errorf("not held are %q", about.NotHeld)
	}
}

func (l *lab) rebuild(name string) hypervisor.Rebuild {
	l.Helper()
	about, err := l.host.Describe(l.ctx, l.defineRich())
	l.ok(err)
	def := about.Definition
	return hypervisor.Rebuild{
		Point: &point.RecoveryPoint{ID: point.NewID(), Definition: def}, Name: name,
		Disks:   map[string]string{"vda": l.image("new-vda"), "sdb": l.image("new-sdb")},
		Formats: map[string]string{"vda": "qcow2", "sdb": "qcow2"},
		Files: map[string]string{"nvram/VARS.fd": l.file("new.fd", "variables"),
			"kernel/vmlinuz":           l.file("new-vmlinuz", "kernel"),
			"tpm/tpm2/tpm2-00.permall": l.file("new-tpm", "tpm state")},
		Networks: map[string]string{"lan": "dr", "br0": "br9"},
	}
}

// A copy has its own identity, the restored files, and keeps whatever is not bound to the old host.
func TestDefineCopy(t *testing.T) {
	l := newLab(t)
	r := l.rebuild("new one")
	out, err := l.host.Define(l.ctx, r)
	l.ok(err)
	dom := l.xml("new one")
	check := func(path, key, want string) {
		t.Helper()
		el := dom.FindElement(path)
		switch {
		case el == nil:
			t.Errorf("%s is missing", path)
		case key == "" && el.Text() != want:
			t.Errorf("%s is %q, want %q", path, el.Text(), want)
		case key != "" && el.SelectAttrValue(key, "") != want:
			t.Errorf("%s %s is %q, want %q", path, key, el.SelectAttrValue(key, ""), want)
		}
	}
	check("name", "", "new one")
	check("uuid", "", out.UUID)
	check("sysinfo/system/entry[@name='uuid']", "", out.UUID)
	check("sysinfo/system/entry[@name='serial']", "", "S1")
	check("os/type", "machine", "pc-q35-7.2")
	check("os/nvram", "", r.Files["nvram/VARS.fd"])
	check("os/kernel", "", r.Files["kernel/vmlinuz"])
	check("devices/disk/target[@dev='vda']/../source", "file", r.Disks["vda"])
	check("devices/disk/target[@dev='vda']/../driver", "iothread", "1")
	check("devices/disk/target[@dev='vda']/../driver", "discard", "unmap")
	check("devices/disk/target[@dev='vda']/../serial", "", "SN-A")
	check("devices/disk/target[@dev='sdb']/../driver", "type", "qcow2")
	check("devices/interface/source[@network]", "network", "dr")
	check("devices/interface/source[@bridge]", "bridge", "br9")
	check("devices/serial", "type", "pty")
	check("devices/graphics", "autoport", "yes")
	check("metadata/x", "", "kept")
	for _, gone := range []string{"devices/hostdev", "devices/disk/target[@dev='vdc']",
		"devices/disk[@device='cdrom']/source",
		"devices/channel/source[@path='" + l.dir + "/ga.sock']",
		"devices/interface/mac[@address='52:54:00:aa:bb:cc']"} {
		if dom.FindElement(gone) != nil {
			t.Errorf("%s is still there", gone)
		}
	}
	if out.UUID == uuid || dom.SelectElement("genid").Text() == "11111111-2222-4333-8444-555555555555" {
		t.Error("the copy has the old identity")
	}
	state, err := os.ReadFile(filepath.Join(l.dir, "c/libvirt/qemu/swtpm", out.UUID, "tpm2/tpm2-00.permall"))
	if err != nil || string(state) != "tpm state" {
		t.Errorf("TPM state %q, %v", state, err)
	}
	for _, about := range []string{"disk vdc", "hostdev: device of the host", "none.iso", "network dr",
		"serial of type file"} {
		if !slices.ContainsFunc(out.Warnings, func(w string) bool { return strings.Contains(w, about) }) {
			t.Errorf("no warning of %s in %q", about, out.Warnings)
		}
	}
	if out.State != hypervisor.Off || !strings.Contains(out.Start, "new one") {
		t.Errorf("rebuilt %+v", out)
	}
}

func (l *lab) xml(name string) *etree.Element {
	l.Helper()
	c := l.d.Client()
	dom, err := c.DomainByName(l.ctx, name)
	l.ok(err)
	text, err := c.DomainXML(l.ctx, dom, rpc.XMLInactive|rpc.XMLSecure)
	l.ok(err)
	doc := etree.NewDocument()
	l.ok(doc.ReadFromString(text))
	return doc.Root()
}

// What exists is left alone, and a lost machine comes back as itself.
func TestDefineInPlace(t *testing.T) {
	l := newLab(t)
	r := l.rebuild("old")
	if _, err := l.host.Define(l.ctx, r); !errors.Is(err, hypervisor.ErrExists) {
		t.Errorf("name that exists: %v", err)
	}
	r.Name, r.SameIdentity = "other", true
	if _, err := l.host.Define(l.ctx, r); !errors.Is(err, hypervisor.ErrExists) {
		t.Errorf("UUID that exists: %v", err)
	}
	c := l.d.Client()
	dom, err := c.DomainByName(l.ctx, "old")
	l.ok(err)
	l.ok(c.DomainUndefine(l.ctx, dom, rpc.UndefineKeepNVRAM))
	// as an undefine that kept it leaves it
	l.ok(os.MkdirAll(filepath.Join(l.dir, "c/libvirt/qemu/swtpm", uuid), 0o700))
	r.Name = "old"
	if _, err := l.host.Define(l.ctx, r); !errors.Is(err, hypervisor.ErrExists) {
		t.Errorf("TPM state that exists: %v", err)
	}
	l.ok(os.RemoveAll(filepath.Join(l.dir, "c/libvirt/qemu/swtpm", uuid)))
	out, err := l.host.Define(l.ctx, r)
	l.ok(err)
	if out.UUID != uuid || l.xml("old").FindElement("devices/interface/mac[@address='52:54:00:aa:bb:cc']") == nil {
		t.Errorf("rebuilt %+v", out)
	}
	if l.xml("old").FindElement("devices/serial[@type='file']/source[@path='"+l.dir+"/console.log']") == nil {
		t.Error("the serial console went elsewhere")
	}
}

// A machine that comes back where the directory of its console was lost with it starts
// nevertheless.
func TestDefineInPlaceWithoutConsole(t *testing.T) {
	l := newLab(t)
	r := l.rebuild("old")
	r.SameIdentity = true
	r.Point.Definition.InactiveXML = strings.ReplaceAll(r.Point.Definition.InactiveXML, "/console.log",
		"/gone/console.log")
	c := l.d.Client()
	dom, err := c.DomainByName(l.ctx, "old")
	l.ok(err)
	l.ok(c.DomainUndefine(l.ctx, dom, rpc.UndefineNVRAM))
	l.ok(os.RemoveAll(filepath.Join(l.dir, "c/libvirt/qemu/swtpm", uuid)))
	out, err := l.host.Define(l.ctx, r)
	l.ok(err)
	if l.xml("old").FindElement("devices/serial[@type='pty']") == nil ||
		!slices.ContainsFunc(out.Warnings, func(w string) bool { return strings.Contains(w, l.dir+"/gone") }) {
		t.Errorf("no console in its place; warnings %q", out.Warnings)
	}
}

// Definitions that this host cannot run are refused before anything is made.
func TestDefineRefusals(t *testing.T) {
	l := newLab(t)
	good := l.rebuild("new").Point.Definition.InactiveXML
	for name, tt := range map[string]struct{ from, to, want string }{
		"machine type": {"pc-q35-7.2", "pc-q35-99.0", "machine type pc-q35-99.0"},
		"no disk":      {"dev='vda'", "dev='vdq'", "no disk vda"},
		"not XML":      {"<name>", "<name", "domain XML"},
	} {
		r := hypervisor.Rebuild{Name: "new", Disks: map[string]string{"vda": "/a", "sdb": "/b"},
			Point: &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForLibvirt,
				InactiveXML: strings.Replace(good, tt.from, tt.to, 1)}}}
		if _, err := l.host.Define(l.ctx, r); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := hypervisor.Rebuild{Name: "new", Point: &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForQEMU}}}
	if _, err := l.host.Define(l.ctx, r); err == nil {
		t.Error("a definition of another kind was taken")
	}
	if list, err := l.host.Machines(l.ctx); err != nil || len(list) != 1 {
		t.Errorf("machines %v, %v", list, err)
	}
}

// A running machine is described in all three forms, and its copy starts beside it.
func TestCopyRuns(t *testing.T) {
	l := newLab(t)
	m := l.define(fmt.Sprintf(`<domain type='qemu'><name>one</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>`, l.image("a")))
	c := l.d.Client()
	dom, err := c.DomainByName(l.ctx, "one")
	l.ok(err)
	_, err = c.DomainCreate(l.ctx, dom, 0)
	l.ok(err)
	m, err = l.host.Machine(l.ctx, m.Name)
	l.ok(err)
	if m.State != hypervisor.Running || m.Disks[0].Node == "" || m.Disks[0].Size != size {
		t.Errorf("machine %+v", m)
	}
	if _, err := l.host.OpenAgent(l.ctx, m); !errors.Is(err, hypervisor.ErrNoAgent) || errors.Is(err, guest.ErrGone) {
		t.Errorf("agent of a machine without a guest: %v", err)
	}
	about, err := l.host.Describe(l.ctx, m)
	l.ok(err)
	def := about.Definition
	if !strings.Contains(def.LiveXML, "id='") || def.MigratableXML == "" ||
		!strings.HasPrefix(def.MachineType, "pc-q35-") {
		t.Errorf("definition %+v", def)
	}
	out, err := l.host.Define(l.ctx,
		hypervisor.Rebuild{Name: "two", Start: true, Point: &point.RecoveryPoint{Definition: def},
			Disks: map[string]string{"vda": l.image("b")}, Formats: map[string]string{"vda": "qcow2"}})
	l.ok(err)
	if out.State != hypervisor.Running {
		t.Errorf("rebuilt %+v", out)
	}
}

// URIs of other hosts are refused with words, and a daemon that is not there is told.
func TestNew(t *testing.T) {
	for _, uri := range []string{"qemu+ssh://host/system", "xen:///system", "qemu:///other", "qemu:///", "%"} {
		if _, err := libvirt.New(uri); err == nil {
			t.Errorf("%s was taken", uri)
		}
	}
	h, err := libvirt.New("qemu+unix:///session?socket=" + filepath.Join(t.TempDir(), "none"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Machines(t.Context()); err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("no daemon: %v", err)
	}
}
