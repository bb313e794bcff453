package qemu

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
	"github.com/holdfast-vm/holdfast/internal/point"
)

func rebuildArgs(dir, args string) hypervisor.Rebuild {
	p := &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForQEMU, Args: strings.Fields(args)}}
	return hypervisor.Rebuild{Point: p, Name: "new", StorageDir: dir, Isolated: true, Start: true}
}

// What ran a machine is read as QEMU reads it, and is replaced with all that belongs to it.
func TestAccelerators(t *testing.T) {
	for _, tt := range []struct{ args, runs, tcg, kvm string }{
		{"qemu", "tcg", "qemu -accel tcg", "qemu -accel kvm"},
		{"/o/qemu-kvm -m 1", "kvm tcg", "/o/qemu-kvm -m 1 -accel tcg", "/o/qemu-kvm -m 1 -accel kvm"},
		{"/o/qemu-kvm -accel tcg", "tcg", "/o/qemu-kvm -accel tcg", "/o/qemu-kvm -accel kvm"},
		{"qemu -enable-kvm -cpu host", "kvm", "qemu -cpu max -accel tcg", "qemu -cpu host -accel kvm"},
		{"qemu -machine accel=kvm -m 1", "kvm", "qemu -m 1 -accel tcg", "qemu -m 1 -accel kvm"},
		{"qemu -machine q35,accel=kvm:tcg,smm=on -cpu host,-svm", "kvm tcg",
			"qemu -machine q35,smm=on -cpu max,-svm -accel tcg", "qemu -machine q35,smm=on -cpu host,-svm -accel kvm"},
		{"qemu -M pc -accel kvm,dirty-ring-size=4096 -accel tcg,thread=multi", "kvm tcg",
			"qemu -M pc -accel tcg", "qemu -M pc -accel kvm"},
		{"qemu -accel tcg,thread=single -cpu qemu64", "tcg", "qemu -cpu qemu64 -accel tcg",
			"qemu -cpu qemu64 -accel kvm"},
	} {
		cl := parseCommandLine(strings.Fields(tt.args))
		if got := strings.Join(cl.accelerators(), " "); got != tt.runs {
			t.Errorf("%s is run by %s, want %s", tt.args, got, tt.runs)
		}
		for name, want := range map[string]string{accel.TCG: tt.tcg, accel.KVM: tt.kvm} {
			w := newRewriter(rebuildArgs("/s", tt.args), "/s/q", "")
			w.setAccelerator(name)
			if got := strings.Join(w.cl.args(), " "); got != want {
				t.Errorf("%s under %s becomes\n%s\nwant\n%s", tt.args, name, got, want)
			}
		}
	}
}

// What a machine will run by is told before anything is made; if it is KVM there must be one, but
// for a machine that is not started.
func TestProspect(t *testing.T) {
	h, err := New(Scheme + t.TempDir() + "/q")
	if err != nil {
		t.Fatal(err)
	}
	missing := accel.Available() != nil
	for _, tt := range []struct {
		args, accel string
		start       bool
		want        string
		hostCPU     bool
		err         error // if there is no KVM
	}{
		{"qemu-system-x86_64 -accel tcg -cpu max", "", true, "tcg", true, nil},
		{"qemu-system-x86_64 -accel kvm -cpu host", "", true, "kvm", true, hypervisor.ErrNoKVM},
		{"qemu-system-x86_64 -accel kvm", "", false, "kvm", false, nil},
		{"qemu-system-x86_64 -accel kvm -cpu host", "tcg", true, "tcg", true, nil},
		{"/nowhere/qemu-system-x86_64 -enable-kvm", "tcg", true, "tcg", false, nil},
	} {
		r := rebuildArgs(t.TempDir(), tt.args)
		r.Accel, r.Start = tt.accel, tt.start
		p, err := h.Prospect(t.Context(), r)
		if !missing {
			tt.err = nil
		}
		if !errors.Is(err, tt.err) || p.Accel != tt.want || p.HostCPU != tt.hostCPU ||
			p.Program != "qemu-system-x86_64" {
			t.Errorf("%s, started %v, as %q: %+v, %v", tt.args, tt.start, tt.accel, p, err)
		}
		if left, _ := os.ReadDir(r.StorageDir); len(left) > 0 {
			t.Errorf("%s: it made %v", tt.args, left)
		}
	}
	_, err = h.Prospect(t.Context(), rebuildArgs(t.TempDir(), "qemu-system-alpha -m 1"))
	if !errors.Is(err, hypervisor.ErrNoQEMU) {
		t.Errorf("without its QEMU: %v", err)
	}
}

// A machine that ran under KVM, with all that only KVM has, runs emulated if that is asked for.
func TestEmulated(t *testing.T) {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h, err := New(Scheme + dir + "/q")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	r := rebuildArgs(dir, "qemu-system-x86_64 -machine q35,accel=kvm,kernel-irqchip=split -m 16 -nodefaults -vga std "+
		"-cpu host,migratable=off,hv-relaxed,hv-vapic,hv-spinlocks=0x1fff,kvm=off,+invtsc")
	r.Accel = accel.TCG
	built, err := h.Define(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	m := hypervisor.Machine{Name: "new", UUID: built.UUID}
	defer func() {
		if err := h.Remove(context.WithoutCancel(t.Context()), m); err != nil {
			t.Error(err)
		}
	}()
	if !slices.ContainsFunc(built.Warnings, func(w string) bool {
		return strings.Contains(w, "emulated, and slowly")
	}) {
		t.Errorf("nothing says that it is slow: %q", built.Warnings)
	}
	if by, err := h.RunBy(t.Context(), m); err != nil || by != accel.TCG {
		t.Errorf("it is run by %q, %v", by, err)
	}
	all, err := h.Processors(t.Context(), m)
	if err != nil || len(all) != 1 || all[0].At == 0 {
		t.Errorf("its processors are at %v, %v", all, err)
	}
}
