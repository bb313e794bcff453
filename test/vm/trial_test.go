package vm_test

import (
	"os"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
	"github.com/holdfast-vm/holdfast/test/vm"
)

// The product's test guest runs under KVM where a kernel does, and only there.
func TestTheTestGuestTellsOfKernels(t *testing.T) {
	if os.Getenv("HOLDFAST_LAB_ACCEL") != "" {
		t.Skip("the lab was told what to use, and has booted no kernel to find out")
	}
	r, err := accel.Try(t.Context(), accel.Trial{CPU: "max"})
	if err != nil {
		t.Fatal(err)
	}
	if kernel := vm.LabImage(t).Accel; (kernel.Name == "kvm") != r.Works() {
		t.Errorf("%v, but %v", r, kernel)
	}
}
