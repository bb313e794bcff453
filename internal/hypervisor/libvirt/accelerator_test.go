package libvirt_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// onKVM is a machine that runs on the processor itself.
func (l *lab) onKVM(features, cpu string) hypervisor.Rebuild {
	xml := fmt.Sprintf(`<domain type='kvm'><name>old</name><uuid>%s</uuid><memory unit='MiB'>32</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><features><acpi/>%s</features>%s
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>`, uuid, features, cpu)
	return hypervisor.Rebuild{Name: "new", StorageDir: l.dir, Isolated: true, Held: true, Start: true,
		Point: &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForLibvirt, InactiveXML: xml}}}
}

// A machine that ran under KVM runs emulated if that is asked for, also one that libvirt would not
// start so as it is: with the host's processor, a model that this host has not, or what only KVM
// has.
func TestEmulated(t *testing.T) {
	l := newLab(t)
	const topology = "<topology sockets='1' dies='1' cores='2' threads='1'/>"
	for _, tt := range []struct{ name, features, cpu, mode string }{
		{"host's processor", "", "<cpu mode='host-passthrough' check='none' migratable='on'>" + topology + "</cpu>",
			"maximum"},
		{"model", "<hyperv mode='custom'><relaxed state='on'/></hyperv><kvm><hidden state='on'/></kvm>",
			"<cpu mode='custom' match='exact' check='full'><model fallback='forbid'>Skylake-Server</model>" + topology +
				"<feature policy='require' name='vmx'/></cpu>", "maximum"},
		{"paravirtual spinlocks", "<pvspinlock state='on'/>", "<cpu mode='host-model' check='partial'>" + topology +
			"</cpu>", "host-model"},
		{"topology alone", "", "<cpu>" + topology + "</cpu>", "custom"},
	} {
		r := l.onKVM(tt.features, tt.cpu)
		r.Accel = accel.TCG
		p, err := l.host.Prospect(l.ctx, r)
		if err != nil || p.Accel != accel.TCG || p.Program != "/usr/bin/qemu-system-x86_64" || p.HostCPU {
			t.Errorf("%s: %+v, %v", tt.name, p, err)
		}
		built, err := l.host.Define(l.ctx, r)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		m := hypervisor.Machine{Name: built.Name, UUID: built.UUID}
		dom := l.xml(built.Name)
		if mode := dom.FindElement("cpu").SelectAttrValue("mode", ""); dom.SelectAttrValue("type", "") != "qemu" ||
			mode != tt.mode || dom.FindElement("cpu/topology[@cores='2']") == nil {
			t.Errorf("%s: type %s, processor %q", tt.name, dom.SelectAttrValue("type", ""), mode)
		}
		if !slices.ContainsFunc(built.Warnings, func(w string) bool {
			return strings.Contains(w, "emulated, and slowly")
		}) {
			t.Errorf("%s: nothing says that it is slow: %q", tt.name, built.Warnings)
		}
		all, err := l.host.Processors(l.ctx, m)
		if err != nil || len(all) != 2 || all[0].At == 0 {
			t.Errorf("%s: its processors are at %v, %v", tt.name, all, err)
		}
		l.ok(l.host.Remove(l.ctx, m))
	}
}

// What a machine would run by is told before anything is made of it.
func TestProspect(t *testing.T) {
	l := newLab(t)
	p, err := l.host.Prospect(l.ctx, l.onKVM("", "<cpu mode='host-passthrough'/>"))
	var want error
	if accel.Available() != nil {
		want = hypervisor.ErrNoKVM
	}
	if !errors.Is(err, want) || p.Accel != accel.KVM || !p.HostCPU {
		t.Errorf("under KVM: %+v, %v; want %v", p, err, want)
	}
	r := l.onKVM("", "")
	r.Point.Definition.InactiveXML = strings.NewReplacer("'kvm'", "'qemu'", "pc-q35-7.2", "pc-q35-1.0").
		Replace(r.Point.Definition.InactiveXML)
	if _, err := l.host.Prospect(l.ctx, r); err == nil ||
		!strings.Contains(err.Error(), "does not offer machine type") {
		t.Errorf("a machine type that is not offered: %v", err)
	}
	if list, err := l.host.Machines(l.ctx); err != nil || len(list) != 0 {
		t.Errorf("there are machines: %+v, %v", list, err)
	}
}
