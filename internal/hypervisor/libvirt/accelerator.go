package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// domainTypes are libvirt's words for what runs a machine.
var domainTypes = map[string]string{accel.KVM: "kvm", accel.TCG: "qemu"}

// lookTime is what a look at a machine's processors may take.
const lookTime = 30 * time.Second

// Prospect says how the machine of r will run. It changes nothing. It returns [hypervisor.ErrNoKVM]
// for a machine that needs KVM where there is none: libvirt does not even define such a one.
func (h *Host) Prospect(ctx context.Context, r hypervisor.Rebuild) (hypervisor.Prospect, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out, err := h.prospect(ctx, r)
	if err != nil {
		return out, fmt.Errorf("run %s at %s: %w", r.Name, h.uri, err)
	}
	return out, nil
}

func (h *Host) prospect(ctx context.Context, r hypervisor.Rebuild) (hypervisor.Prospect, error) {
	old, err := oldDefinition(r)
	if err != nil {
		return hypervisor.Prospect{}, err
	}
	c, err := h.Client(ctx)
	if err != nil {
		return hypervisor.Prospect{}, err
	}
	b := newBuilder(r, old)
	b.accelerate()
	b.findEmulator()
	out := hypervisor.Prospect{Accel: accel.TCG}
	if b.dom.SelectAttrValue("type", "") == domainTypes[accel.KVM] {
		out.Accel = accel.KVM
		mode := attr(b.dom, "cpu", "mode")
		out.HostCPU = slices.Contains([]string{"host-passthrough", "host-model", "maximum"}, mode)
	}
	out.Program, err = offered(ctx, c, b.dom)
	return out, err
}

// oldDefinition returns the machine's definition as the point has it.
func oldDefinition(r hypervisor.Rebuild) (*etree.Element, error) {
	def := r.Point.Definition
	if def.Kind != point.ForLibvirt || def.InactiveXML == "" {
		return nil, fmt.Errorf("point %s has no definition of libvirt but of kind %q", r.Point.ID.Short(), def.Kind)
	}
	return parse(def.InactiveXML)
}

// offered checks that this host has the machine type, exactly as it was, since another would show
// the guest other hardware, and what runs it. It returns the path of QEMU.
func offered(ctx context.Context, c *rpc.Client, dom *etree.Element) (program string, err error) {
	machine, arch := attrAt(dom, "os/type", "machine"), attrAt(dom, "os/type", "arch")
	virt, emulator := dom.SelectAttrValue("type", ""), text(dom, "devices/emulator")
	capabilities, err := c.DomainCapabilities(ctx, emulator, arch, machine, virt)
	if virt == domainTypes[accel.KVM] {
		if missing := kvmMissing(ctx, c, emulator, arch, machine, err); missing != nil {
			return "", missing
		}
	}
	if err != nil {
		return "", fmt.Errorf("this host does not offer machine type %s (%s, %s): %w", machine, arch, virt, err)
	}
	all := etree.NewDocument()
	if err := all.ReadFromString(capabilities); err != nil || all.Root() == nil {
		return "", fmt.Errorf("what libvirt says of machine type %s cannot be read: %w", machine, err)
	}
	return text(all.Root(), "path"), nil
}

// kvmMissing returns [hypervisor.ErrNoKVM] if libvirt, which answered refused of a machine under
// KVM, offers the same one emulated, or if the device is gone.
func kvmMissing(ctx context.Context, c *rpc.Client, emulator, arch, machine string, refused error) error {
	if _, err := os.Stat(accel.Device); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", hypervisor.ErrNoKVM, err)
	}
	if refused == nil {
		return nil
	}
	if _, err := c.DomainCapabilities(ctx, emulator, arch, machine, domainTypes[accel.TCG]); err != nil {
		return nil
	}
	return fmt.Errorf("%w: %w", hypervisor.ErrNoKVM, refused)
}

// accelerate makes the machine run as was asked for.
func (b *builder) accelerate() {
	asked := domainTypes[b.rebuild.Accel]
	if asked == "" || asked == b.dom.SelectAttrValue("type", "") {
		return
	}
	b.dom.CreateAttr("type", asked)
	if b.rebuild.Accel != accel.TCG {
		return
	}
	b.warn("the machine runs emulated, and slowly, as asked")
	for _, el := range b.dom.FindElements("features/pvspinlock") { // libvirt refuses it
		el.Parent().RemoveChild(el)
	}
	b.emulateCPU()
}

// emulateCPU gives the guest all that QEMU can emulate where it had the host's processor, or a
// model that was checked against it. What the host does not have libvirt would not start.
func (b *builder) emulateCPU() {
	cpu := b.dom.SelectElement("cpu")
	if cpu == nil || slices.Contains([]string{"host-model", "maximum"}, cpu.SelectAttrValue("mode", "custom")) {
		return
	}
	if cpu.SelectElement("model") == nil && cpu.SelectAttr("mode") == nil { // a topology and no more
		return
	}
	b.warn("the guest sees another processor: the best that QEMU emulates")
	cpu.Attr = nil
	cpu.CreateAttr("mode", "maximum")
	for _, el := range cpu.ChildElements() {
		if el.Tag != "topology" && el.Tag != "numa" {
			cpu.RemoveChild(el)
		}
	}
}

// Processors says where the processors of a machine are; none if it is no x86.
func (h *Host) Processors(ctx context.Context, m hypervisor.Machine) ([]accel.Processor, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	l, err := h.look(ctx, m)
	var text string
	if err == nil {
		text, err = l.c.MonitorCommand(ctx, l.dom, accel.Registers, true)
	}
	if err != nil {
		return nil, fmt.Errorf("look at the processors of %s: %w", m.Name, err)
	}
	return accel.Processors(text), nil
}
