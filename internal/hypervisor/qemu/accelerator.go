package qemu

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
)

// Prospect says how the machine of r will run. It changes nothing. It returns [hypervisor.ErrNoKVM]
// for a machine that is to be started and needs KVM where there is none.
func (h *Host) Prospect(_ context.Context, r hypervisor.Rebuild) (hypervisor.Prospect, error) {
	if err := checkRebuild(r); err != nil {
		return hypervisor.Prospect{}, fmt.Errorf("build machine %s: %w", r.Name, err)
	}
	w := newRewriter(r, h.socket, h.agent)
	w.findProgram()
	w.pinAccelerator()
	out := hypervisor.Prospect{Program: w.cl.program, HostCPU: w.cl.showsHostCPU()}
	var err error
	if out.Accel, err = w.cl.accelerator(); err != nil && r.Start {
		return out, fmt.Errorf("run machine %s: %w", r.Name, err)
	}
	if _, err := child.Find(out.Program); err != nil && r.Start {
		return out, fmt.Errorf("run machine %s: %w: %w", r.Name, hypervisor.ErrNoQEMU, err)
	}
	return out, nil
}

// RunBy says what runs a machine: kvm or tcg. Its command line may leave QEMU the choice.
func (h *Host) RunBy(ctx context.Context, m hypervisor.Machine) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c, err := h.reach(ctx, m)
	var kvm struct{ Enabled bool }
	if err == nil {
		err = c.Execute(ctx, "query-kvm", nil, &kvm)
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("ask what runs %s: %w", m.Name, err)
	case kvm.Enabled:
		return accel.KVM, nil
	}
	return accel.TCG, nil
}

// accelerators returns what runs the machine, the first choice first.
func (cl *commandLine) accelerators() []string {
	var listed []string
	var machine string
	for _, o := range cl.options {
		switch o.name {
		case "accel":
			listed = append(listed, parseProps(o.value, impliedKey[o.name]).get("accel"))
		case "machine", "M":
			if a := parseProps(o.value, impliedKey[o.name]).get("accel"); a != "" {
				machine = a
			}
		case "enable-kvm":
			machine = accel.KVM
		case "no-kvm":
			machine = accel.TCG
		}
	}
	switch {
	case len(listed) > 0:
		return listed
	case machine != "":
		return strings.Split(machine, ":")
	case strings.HasSuffix(filepath.Base(cl.program), "kvm"): // as QEMU itself decides
		return []string{accel.KVM, accel.TCG}
	}
	return []string{accel.TCG}
}

// accelerator returns what will run the machine here. The error says that it is KVM, and that there
// is none.
func (cl *commandLine) accelerator() (string, error) {
	all := cl.accelerators()
	if all[0] != accel.KVM {
		return all[0], nil
	}
	err := accel.Available()
	if err != nil && slices.Contains(all, accel.TCG) {
		return accel.TCG, nil
	}
	return accel.KVM, err
}

// showsHostCPU reports whether the guest sees all that the host's processor has.
func (cl *commandLine) showsHostCPU() bool {
	model := parseProps(cl.first("cpu"), impliedKey["cpu"]).get("model")
	return model == "host" || model == "max"
}

// pinAccelerator makes the machine run as was asked for, or warns that it cannot run here.
func (w *rewriter) pinAccelerator() {
	if asked := w.r.Accel; asked != "" {
		if w.cl.accelerators()[0] == accel.KVM && asked == accel.TCG {
			w.warn("the machine runs emulated, and slowly, as asked")
		}
		w.setAccelerator(asked)
		return
	}
	if _, err := w.cl.accelerator(); err != nil {
		w.warn("%v; the machine does not start here", err)
	}
}

// setAccelerator takes all that chose an accelerator away, with its settings, and names one.
func (w *rewriter) setAccelerator(name string) {
	w.cl.edit("machine M", func(o *option, p *props) {
		p.remove(func(key string) bool { return key == "accel" })
	})
	w.cl.drop(func(o option) bool {
		switch o.name {
		case "accel", "enable-kvm", "no-kvm":
			return true
		case "machine", "M":
			return o.value == ""
		}
		return false
	})
	w.cl.set("accel", name)
	if name == accel.KVM {
		return
	}
	w.cl.edit("cpu", func(_ *option, p *props) {
		if p.get("model") == "host" {
			p.set("model", "max")
		}
	})
}

// Processors says where the processors of a machine are; none if it is no x86.
func (h *Host) Processors(ctx context.Context, m hypervisor.Machine) ([]accel.Processor, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c, err := h.reach(ctx, m)
	var all []accel.Processor
	if err == nil {
		all, err = accel.Look(ctx, c)
	}
	if err != nil {
		return nil, fmt.Errorf("look at the processors of %s: %w", m.Name, err)
	}
	return all, nil
}
