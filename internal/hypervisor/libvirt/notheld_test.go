package libvirt_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// outside is a machine with something of everything that a point does not hold.
func (l *lab) outside() string {
	l.Helper()
	l.image("vda")
	l.file("share/f", "theirs")
	l.file("ro", strings.Repeat("x", size))
	for _, name := range []string{"nv", "pm", "card.iso", "floppy"} {
		l.file(name, strings.Repeat("\x00", size))
	}
	return fmt.Sprintf(`<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>old</name><uuid>%[2]s</uuid>
<maxMemory slots='4' unit='MiB'>4096</maxMemory><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>
<sysinfo type='fwcfg'><entry name='opt/com.coreos/config' file='%[1]s/ignition'/></sysinfo>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><features><acpi/></features>
<cpu><numa><cell id='0' cpus='0' memory='64' unit='MiB'/></numa></cpu>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%[1]s/vda'/><target dev='vda' bus='virtio'/></disk>
<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/><source type='unix' path='%[1]s/vu.sock'/><target dev='vdb' bus='virtio'/></disk>
<disk type='block' device='lun'><driver name='qemu' type='raw'/><source dev='/dev/disk/by-id/hf-none'/><target dev='sdc' bus='scsi'/></disk>
<disk type='file' device='cdrom'><source file='%[1]s/card.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
<disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>
<disk type='file' device='floppy'><source file='%[1]s/floppy'/><target dev='fda' bus='fdc'/></disk>
<filesystem type='mount'><source dir='%[1]s/share'/><target dir='work'/></filesystem>
<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' bus='0x06' slot='0x02' function='0x0'/></source></hostdev>
<hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/><product id='0x5678'/></source></hostdev>
<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host9'/><address bus='0' target='0' unit='0'/></source></hostdev>
<hostdev mode='subsystem' type='scsi_host'><source protocol='vhost' wwpn='naa.5123456789abcde0'/></hostdev>
<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>
<shmem name='shared'><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>
<memory model='nvdimm'><source><path>%[1]s/nv</path></source><target><size unit='MiB'>128</size><node>0</node></target></memory>
<memory model='virtio-pmem'><source><path>%[1]s/pm</path></source><target><size unit='MiB'>128</size></target></memory>
<input type='passthrough' bus='virtio'><source evdev='/dev/input/event1'/></input>
<interface type='user'><model type='virtio'/></interface>
<serial type='file'><source path='%[1]s/console.log'/><target port='0'/></serial>
</devices><qemu:commandline><qemu:arg value='-drive'/><qemu:arg value='file=%[1]s/secretly,if=none,id=x'/><qemu:arg value='-global'/>
<qemu:arg value='kvm-pit.lost_tick_policy=delay'/></qemu:commandline></domain>`, l.dir, uuid)
}

// Everything that a point does not hold is listed, with what of the host is behind it.
func TestNotHeld(t *testing.T) {
	l := newLab(t)
	m := l.define(l.outside())
	list, err := l.host.NotHeld(l.ctx, m)
	l.ok(err)
	var got []string
	for _, o := range list {
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s", o.Kind, o.Name,
			strings.ReplaceAll(o.Source, l.dir+"/", ""))))
	}
	slices.Sort(got)
	want := []string{
		"floppy fda floppy", "host-device  domain 0x0000, bus 0x06, slot 0x02, function 0x0",
		"host-device  /dev/input/event1",
		"host-device  id 0x1234, id 0x5678", "host-file opt/com.coreos/config ignition", "host-tpm  /dev/tpm0",
		"medium sda card.iso", "memory-file",
		"pmem  nv", "pmem  pm", "qemu-arguments -drive file=" + l.dir + "/secretly,if=none,id=x",
		"scsi-passthrough  name scsi_host9, bus 0, target 0, unit 0", "scsi-passthrough sdc /dev/disk/by-id/hf-none",
		"served-disk  naa.5123456789abcde0", "served-disk vdb vu.sock", "shared-folder work share",
		"shared-memory shared",
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("not held are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(m.Disks) != 1 || m.Disks[0].Name != "vda" {
		t.Errorf("disks are %+v", m.Disks)
	}
	about, err := l.host.Describe(l.ctx, m)
	l.ok(err)
	if len(about.NotHeld) != len(list) {
		t.Errorf("described are %d, listed %d", len(about.NotHeld), len(list))
	}
}

// Beside the original a copy and a drill start that have none of it, and hold nothing of the
// original's that they could write.
func TestOriginalIsLeftAlone(t *testing.T) {
	l := newLab(t)
	xml := l.outside()
	l.file("ignition", "{}")
	for _, line := range []string{
		"<filesystem type='mount'><source dir='/none'/><target dir='gone'/></filesystem>",
		"<rng model='virtio'><backend model='egd' type='unix'><source mode='connect' path='" + l.dir +
			"/egd'/></backend></rng>",
		"<serial type='pty'><log file='" + l.dir + "/serial.log' append='on'/><target port='1'/></serial>",
		"<channel type='file'><source path='" + l.dir + "/channel'/><target type='virtio' name='x.y'/></channel>",
		"<interface type='vhostuser'><source type='unix' path='" + l.dir +
			"/ovs' mode='server'/><model type='virtio'/></interface>",
		"<interface type='ethernet'><target dev='hf-tap' managed='no'/><model type='virtio'/></interface>",
		"<graphics type='vnc'><listen type='socket' socket='" + l.dir + "/vnc'/></graphics>",
		"<audio id='1' type='file' path='" + l.dir + "/sound.wav'/>",
	} {
		xml = strings.Replace(xml, "</devices>", line+"</devices>", 1)
	}
	original := l.define(xml)
	about, err := l.host.Describe(l.ctx, original)
	l.ok(err)
	for _, isolated := range []bool{false, true} {
		name := fmt.Sprintf("copy-%t", isolated)
		l.ok(os.MkdirAll(l.dir+"/"+name, 0o755))
		p := &point.RecoveryPoint{Definition: about.Definition, Disks: []point.Disk{{Name: "vda"}}}
		r := hypervisor.Rebuild{Point: p, Name: name, StorageDir: l.dir + "/" + name, Isolated: isolated, Held: true,
			Start: true,
			Disks: map[string]string{"vda": l.image(name + "/vda")}, Formats: map[string]string{"vda": "qcow2"}}
		built, err := l.host.Define(l.ctx, r)
		l.ok(err)
		m := hypervisor.Machine{Name: built.Name, UUID: built.UUID}
		report, err := l.host.Isolation(l.ctx, m)
		l.ok(err)
		for _, found := range report.Found {
			if isolated || strings.Contains(found, l.dir) && !strings.Contains(found, name) {
				t.Errorf("%s: found %s", name, found)
			}
		}
		for _, file := range []string{"egd", "serial.log", "channel", "ovs", "vnc", "sound.wav"} {
			if _, err := os.Lstat(l.dir + "/" + file); err == nil {
				t.Errorf("%s: %s was made", name, file)
			}
		}
		said := strings.Join(built.Warnings, "\n")
		for _, want := range []string{"persistent memory", "memory shared with", "shared folder work",
			"disk vdb is not restored", "disk sdc is not restored",
			"floppy", "TPM of the host", "device of the host", "QEMU arguments", "SCSI device", "channel x.y",
			"vhostuser"} {
			if !strings.Contains(said, want) {
				t.Errorf("%s: no word of %s in\n%s", name, want, said)
			}
		}
		lacks, err := l.host.NotHeld(l.ctx, m)
		l.ok(err)
		for _, o := range lacks {
			if o.Kind != "medium" && o.Kind != "memory-file" && o.Kind != "host-file" {
				t.Errorf("%s still has %s", name, o)
			}
		}
		l.ok(l.host.Remove(l.ctx, m))
	}
}
