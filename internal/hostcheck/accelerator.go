package hostcheck

import (
	"context"
	"errors"
	"io/fs"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
)

const (
	lostKVM = "machines under KVM: `point restore --start` and instant restores of them are refused, and drills find " +
		"them unable to start or to make progress"
	lostHostCPU = "machines under KVM that see the host's own processor (host-passthrough, host-model, -cpu host) do " +
		"not run"
	lostTCG = "emulated machines: whatever is restored or drilled with --accel tcg or was emulated before"
)

// tried runs a test guest, and says so far what came of it. A finding of [Fails] is the caller's to
// explain.
func tried(ctx context.Context, t accel.Trial) (accel.Result, Finding) {
	r, err := accel.Try(ctx, t)
	switch {
	case errors.Is(err, hypervisor.ErrNoQEMU):
		return r, Finding{Verdict: Unknown, Found: "not tried: " + hypervisor.ErrNoQEMU.Error(),
			Advice: "install QEMU, see the check qemu"}
	case err != nil:
		return r, Finding{Verdict: Unknown, Found: "not tried: " + err.Error()}
	case r.Verdict == accel.Untried:
		return r, Finding{Verdict: Unknown, Found: r.String()}
	case !r.Works():
		return r, Finding{Verdict: Fails, Found: r.String()}
	}
	return r, Finding{Verdict: Works, Found: r.String()}
}

// checkKVM runs test guests under KVM, with QEMU's default processor and with the host's.
func checkKVM(ctx context.Context, _ *look) []Finding {
	r, f := tried(ctx, accel.Trial{Accel: accel.KVM})
	switch {
	case f.Verdict == Works:
		withHostCPU(ctx, &f)
	case f.Verdict == Unknown:
	case r.Verdict == accel.Missing:
		f.Lost, f.Advice = lostKVM, missingAdvice()
	default:
		f.Lost = lostKVM
		f.Advice = "use --accel tcg, or another host; if this is a virtual machine itself, the one below it must " +
			"offer " +
			"nested virtualization that works"
	}
	return one(f)
}

// withHostCPU runs the guest again as machines run that see the host's own processor.
func withHostCPU(ctx context.Context, f *Finding) {
	r, host := tried(ctx, accel.Trial{Accel: accel.KVM, CPU: "host"})
	if host.Verdict == Fails {
		f.Verdict, f.Found, f.Lost = Limited, f.Found+"; "+r.String(), lostHostCPU
		f.Advice = "give such machines a processor model by name, or use --accel tcg"
	}
}

// missingAdvice says what to do about a KVM that cannot be opened.
func missingAdvice() string {
	if errors.Is(accel.Available(), fs.ErrPermission) {
		return "run this as root, or as a member of the group kvm"
	}
	return "load the kernel module kvm_intel or kvm_amd (in a virtual machine, its host must allow nesting; in a " +
		"container, " +
		"give it /dev/kvm), or use --accel tcg"
}

// checkTCG runs a test guest emulated.
func checkTCG(ctx context.Context, _ *look) []Finding {
	_, f := tried(ctx, accel.Trial{Accel: accel.TCG})
	if f.Verdict == Fails {
		f.Lost, f.Advice = lostTCG, "this QEMU may be built without TCG: install another"
	}
	return one(f)
}
