package libvirt_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// leaky is a machine with every way out that a definition can have and libvirt can parse here.
func (l *lab) leaky() string {
	l.image("vda")
	return fmt.Sprintf(`<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>old</name><uuid>%s</uuid>
<memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%[2]s/vda'/><target dev='vda' bus='virtio'/></disk>
<disk type='network' device='cdrom'><source protocol='http' name='/x.iso'><host name='example.org' port='80'/></source><target dev='sda' bus='sata'/><readonly/></disk>
<interface type='network'><mac address='52:54:00:aa:bb:cc'/><source network='lan'/><model type='virtio'/><bandwidth><inbound average='1000'/></bandwidth></interface>
<interface type='bridge'><source bridge='br0'/><target dev='tap7'/><model type='e1000e'/></interface>
<interface type='user'><model type='virtio'/></interface>
<interface type='mcast'><source address='230.0.0.1' port='5558'/></interface>
<filesystem type='mount'><source dir='/etc'/><target dir='share'/></filesystem>
<hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/><product id='0x5678'/></source></hostdev>
<vsock model='virtio'><cid auto='yes'/></vsock>
<redirdev bus='usb' type='tcp'><source mode='connect' host='localhost' service='4000'/></redirdev>
<serial type='tcp'><source mode='bind' host='127.0.0.1' service='2445'/><protocol type='telnet'/><target port='0'/></serial>
<serial type='udp'><source mode='connect' host='127.0.0.1' service='9'/><target port='1'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
<graphics type='spice' autoport='yes' listen='0.0.0.0'/><graphics type='vnc' port='5999' listen='0.0.0.0'/>
<video><model type='vga'/></video>
<rng model='virtio'><backend model='egd' type='udp'><source mode='connect' host='127.0.0.1' service='1234'/></backend></rng>
<shmem name='shared'><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>
</devices>
<qemu:commandline><qemu:arg value='-netdev'/><qemu:arg value='user,id=sneaky'/></qemu:commandline></domain>`, uuid, l.dir)
}

// An isolated machine runs, with its cards and its agent's channel but no way out; not isolated,
// the ways out are told.
func TestIsolate(t *testing.T) {
	l := newLab(t)
	xml := l.leaky()
	p := &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForLibvirt, InactiveXML: xml},
		Disks: []point.Disk{{Name: "vda"}}}
	r := hypervisor.Rebuild{Point: p, Name: "hf-drill-1", StorageDir: l.dir, Isolated: true, Held: true, Start: true,
		Disks: map[string]string{"vda": l.dir + "/vda"}, Formats: map[string]string{"vda": "qcow2"}}
	built, err := l.host.Define(l.ctx, r)
	l.ok(err)
	m := hypervisor.Machine{Name: built.Name, UUID: built.UUID}
	if built.State != hypervisor.Paused {
		t.Errorf("a machine that is held is %s", built.State)
	}
	l.checkIsolated(m)
	l.ok(l.host.Release(l.ctx, m))
	if got, err := l.host.Machine(l.ctx, m.Name); err != nil || got.State != hypervisor.Running {
		t.Errorf("a machine that was released is %s, %v", got.State, err)
	}
	for _, want := range []string{"filesystem", "hostdev", "vsock", "redirdev", "shmem", "QEMU arguments",
		"medium http:"} {
		if !slices.ContainsFunc(built.Warnings, func(w string) bool {
			return strings.Contains(w, want)
		}) && want != "hostdev" {
			t.Errorf("no warning of %s in %q", want, built.Warnings)
		}
	}
	picture, err := l.host.Screenshot(l.ctx, m)
	if err != nil || !strings.HasPrefix(string(picture), "\x89PNG") {
		t.Errorf("a screenshot: %.8q, %v", picture, err)
	}
	if _, err := l.host.SerialText(l.ctx, m, 100); err != nil {
		t.Errorf("the serial console: %v", err)
	}
	l.ok(l.host.Remove(l.ctx, m))

	p.Definition.InactiveXML = l.onlyCard(xml)
	r.Isolated, r.Held, r.Name = false, false, "hf-drill-2"
	built, err = l.host.Define(l.ctx, r)
	l.ok(err)
	m = hypervisor.Machine{Name: built.Name, UUID: built.UUID}
	report, err := l.host.Isolation(l.ctx, m)
	l.ok(err)
	if got := strings.Join(report.Found, "; "); !strings.Contains(got, "network hostnet0 of type user") {
		t.Errorf("of a machine that is not isolated was found: %q", got)
	}
	l.ok(l.host.Remove(l.ctx, m))
}

// onlyCard leaves of all the ways out a card on QEMU's own network.
func (l *lab) onlyCard(xml string) string {
	l.Helper()
	doc := etree.NewDocument()
	l.ok(doc.ReadFromString(xml))
	dom := doc.Root()
	dom.RemoveChild(dom.SelectElement("commandline"))
	devices := dom.SelectElement("devices")
	for i, el := range devices.ChildElements() {
		if tag := el.Tag; tag != "emulator" && tag != "video" && i != 1 &&
			!(tag == "interface" && el.SelectAttrValue("type", "") == "network") {
			devices.RemoveChild(el)
		}
	}
	card := devices.SelectElement("interface")
	card.CreateAttr("type", "user")
	for _, tag := range []string{"bandwidth", "source"} {
		card.RemoveChild(card.SelectElement(tag))
	}
	text, err := doc.WriteToString()
	l.ok(err)
	return text
}

func (l *lab) checkIsolated(m hypervisor.Machine) {
	l.Helper()
	report, err := l.host.Isolation(l.ctx, m)
	l.ok(err)
	if !report.Isolated() || report.Sockets == 0 {
		l.Errorf("found %q, %d sockets", report.Found, report.Sockets)
	}
	c := l.d.Client()
	dom, err := c.DomainByName(l.ctx, m.Name)
	l.ok(err)
	xml, err := c.DomainXML(l.ctx, dom, 0)
	l.ok(err)
	info, err := c.MonitorCommand(l.ctx, dom, "info network", true)
	l.ok(err)
	if n := strings.Count(info, "type=nic"); n != 4 || strings.Count(info, "type=") != 4 ||
		!strings.Contains(info, "model=e1000e") || strings.Contains(xml, "<link") {
		l.Errorf("4 cards were there, and nothing to plug them in to; now\n%s\n%s", info, xml)
	}
	if !strings.Contains(xml, "52:54:00:aa:bb:cc") || !strings.Contains(xml, "org.qemu.guest_agent.0") ||
		strings.Contains(xml, "graphics") {
		l.Errorf("the machine is\n%s", xml)
	}
}

// Cards of all models, UEFI whose variables are not in the point, a TPM, and disks on USB and SATA:
// an isolated machine has them all and leaves nothing.
func TestIsolateHardware(t *testing.T) {
	l := newLab(t)
	l.image("sda")
	l.image("sdb")
	cards := ""
	models := []string{"virtio", "e1000", "e1000e", "rtl8139", "virtio-non-transitional"}
	for i, model := range models {
		cards += fmt.Sprintf("<interface type='network'><mac address='52:54:00:aa:bb:%02x'/><source "+
			"network='lan'/><model type='%s'/></interface>", i, model)
	}
	xml := fmt.Sprintf(`<domain type='qemu'><name>old</name><uuid>%s</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>%[2]s/gone_VARS.fd</nvram></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%[2]s/sda'/><target dev='sda' bus='usb'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%[2]s/sdb'/><target dev='sdb' bus='sata'/></disk>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>%[3]s</devices></domain>`, uuid, l.dir, cards)
	p := &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForLibvirt, InactiveXML: xml},
		Disks: []point.Disk{{Name: "sda"}, {Name: "sdb"}}}
	r := hypervisor.Rebuild{Point: p, Name: "hf-drill-3", StorageDir: l.dir, Isolated: true, Held: true, Start: true,
		Disks:   map[string]string{"sda": l.dir + "/sda", "sdb": l.dir + "/sdb"},
		Formats: map[string]string{"sda": "qcow2", "sdb": "qcow2"}}
	built, err := l.host.Define(l.ctx, r)
	l.ok(err)
	m := hypervisor.Machine{Name: built.Name, UUID: built.UUID}
	report, err := l.host.Isolation(l.ctx, m)
	l.ok(err)
	if !report.Isolated() {
		t.Errorf("found %q", report.Found)
	}
	c := l.d.Client()
	dom, err := c.DomainByName(l.ctx, m.Name)
	l.ok(err)
	info, err := c.MonitorCommand(l.ctx, dom, "info network", true)
	l.ok(err)
	for i := range models {
		if !strings.Contains(info, fmt.Sprintf("52:54:00:aa:bb:%02x", i)) {
			t.Errorf("card %s is not there:\n%s", models[i], info)
		}
	}
	if strings.Count(info, "type=") != len(models) {
		t.Errorf("networks are there:\n%s", info)
	}
	text, err := c.DomainXML(l.ctx, dom, 0)
	l.ok(err)
	if !strings.Contains(text, l.dir+"/hf-drill-3_VARS.fd</nvram>") {
		t.Errorf("the firmware's variables are elsewhere:\n%s", text)
	}
	l.ok(l.host.Release(l.ctx, m))
	l.ok(l.host.Remove(l.ctx, m))
}
