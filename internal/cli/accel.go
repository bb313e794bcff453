package cli

import "github.com/holdfast-vm/holdfast/internal/hypervisor/accel"

const accelHelp = "what runs the machine, `kvm or tcg` (default: what did before)"

// checkAccel refuses an --accel that is not known.
func checkAccel(verb, name string) error {
	switch name {
	case "", accel.KVM, accel.TCG:
		return nil
	}
	return withHint(usagef("%s: there is no --accel %q", verb, name),
		"kvm is the processor itself, tcg is QEMU's emulation, which is slow and runs everywhere")
}
