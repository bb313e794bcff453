package libvirt_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
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
