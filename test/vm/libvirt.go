package vm

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"text/template"
)

// domain is a machine of a libvirtd, driven through virsh.
type domain struct {
	uri  string
	uuid string

	pid atomic.Int64 // of the QEMU that was last seen to run it
}

// DefineLibvirt defines a lab guest as a persistent domain of the libvirtd at uri, starts it, and
// waits until it is up. It is destroyed and undefined when the test ends.
func DefineLibvirt(t testing.TB, uri string, o Options) *VM {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	v, definition, err := prepareLibvirt(uri, LabImage(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		v.logOnFailure(t)
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := v.libvirt.define(definition); err != nil {
		t.Fatal(err)
	}
	if err := v.Start(); err != nil {
		t.Fatal(err)
	}
	return v
}

// LaunchLibvirt is [DefineLibvirt] for a program that is not a test: the caller closes the guest,
// and gives the directory of its disks.
func LaunchLibvirt(uri string, image Image, o Options) (*VM, error) {
	v, definition, err := prepareLibvirt(uri, image, o)
	if err != nil {
		return nil, err
	}
	err = v.libvirt.define(definition)
	if err == nil {
		err = v.Start()
	}
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// Start boots a defined libvirt domain that is off, and waits until it is up.
func (v *VM) Start() error {
	if v.libvirt == nil {
		return fmt.Errorf("start %s: only a libvirt domain can be started again", v.Name)
	}
	if err := os.Truncate(v.ConsolePath, 0); err != nil && !os.IsNotExist(err) {
		return err
	}
	if _, err := v.libvirt.virsh("start", v.UUID); err != nil {
		return err
	}
	return v.WaitUp()
}

func prepareLibvirt(uri string, image Image, o Options) (*VM, string, error) {
	o = o.withDefaults()
	disks, err := o.disks(image)
	if err != nil {
		return nil, "", err
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, "", err
	}
	sockets, err := socketDir()
	if err != nil {
		return nil, "", err
	}
	v := &VM{
		Name: o.Name, UUID: o.UUID, Disks: disks, sockets: sockets,
		LabPath:     filepath.Join(sockets, "lab"),
		ConsolePath: filepath.Join(dir, o.Name+".console"),
		libvirt:     &domain{uri: uri, uuid: o.UUID},
	}
	definition, err := v.domainXML(image, o)
	if err != nil {
		return nil, "", errors.Join(err, os.RemoveAll(sockets))
	}
	return v, definition, nil
}

var domainTemplate = template.Must(template.New("domain").Funcs(template.FuncMap{"xml": escapeXML}).Parse(
	`<domain type='{{if eq .Image.Accel.Name "kvm"}}kvm{{else}}qemu{{end}}'>
  <name>{{xml .VM.Name}}</name>
  <uuid>{{.VM.UUID}}</uuid>
  <memory unit='MiB'>{{.Options.Memory}}</memory>
  <vcpu>1</vcpu>
  {{- if not .Options.NoIOThread}}
  <iothreads>1</iothreads>
  {{- end}}
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{{xml .Image.Kernel}}</kernel>
    <initrd>{{xml .Image.Initrd}}</initrd>
    <cmdline>{{xml .CommandLine}}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    {{- range .VM.Disks}}
    <disk type='file' device='disk'>
      <driver name='qemu' type='{{.Format}}'{{if and (eq .Name "vdb") (not $.Options.NoIOThread)}} iothread='1'{{end}}/>
      <source file='{{xml .Path}}'/>
      <target dev='{{.Name}}' bus='virtio'/>
    </disk>
    {{- end}}
    <controller type='usb' model='none'/>
    <serial type='file'>
      <source path='{{xml .VM.ConsolePath}}'/>
      <target port='0'/>
    </serial>
    {{- if not .Options.NoChannel}}
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    {{- end}}
    <channel type='unix'>
      <source mode='bind' path='{{xml .VM.LabPath}}'/>
      <target type='virtio' name='org.holdfast.lab.0'/>
    </channel>
    <memballoon model='none'/>
  </devices>
</domain>
`))

func (v *VM) domainXML(image Image, o Options) (string, error) {
	var out strings.Builder
	err := domainTemplate.Execute(&out, map[string]any{
		"VM": v, "Image": image, "Options": o, "CommandLine": o.commandLine(),
	})
	return out.String(), err
}

func escapeXML(s string) (string, error) {
	var out bytes.Buffer
	err := xml.EscapeText(&out, []byte(s))
	return out.String(), err
}

func (d *domain) virsh(args ...string) (string, error) {
	var out, stderr bytes.Buffer
	cmd := exec.Command("virsh", append([]string{"--quiet", "--connect", d.uri}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("virsh %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

func (d *domain) define(definition string) error {
	file, err := os.CreateTemp("", "hf-*.xml")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.WriteString(definition)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	_, err = d.virsh("define", "--validate", file.Name())
	return err
}

func (d *domain) ended() bool {
	if d.runs() {
		return false
	}
	state, err := d.virsh("domstate", d.uuid)
	return err != nil || state == "shut off" || state == "crashed"
}

func (d *domain) destroy() error {
	_, err := d.virsh("destroy", d.uuid)
	return err
}

// remove leaves no trace of the domain; it is not an error if it is off or gone already.
func (d *domain) remove() error {
	if _, err := d.virsh("dominfo", d.uuid); err != nil {
		return nil
	}
	if !d.ended() {
		if err := d.destroy(); err != nil && !d.ended() {
			return err
		}
	}
	_, err := d.virsh("undefine", "--checkpoints-metadata", "--nvram", d.uuid)
	return err
}

// runs says whether QEMU's process is there. To ask libvirt takes a program, and as much of the
// processor as the guest has in the meantime.
func (d *domain) runs() bool {
	if hasUUID(int(d.pid.Load()), d.uuid) {
		return true
	}
	pid, err := findProcess(d.uuid)
	if err != nil {
		return false
	}
	d.pid.Store(int64(pid))
	return true
}

// findProcess returns the QEMU process that was started with uuid.
func findProcess(uuid string) (int, error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, path := range all {
		if pid, err := strconv.Atoi(filepath.Base(path)); err == nil && hasUUID(pid, uuid) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no QEMU process has the UUID %s", uuid)
}

// hasUUID says whether a process is a QEMU that was started with uuid. One that has ended has no
// arguments any more.
func hasUUID(pid int, uuid string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.Contains(text, []byte("-uuid\x00"+uuid+"\x00"))
}
