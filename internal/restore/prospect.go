package restore

import (
	"context"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
)

// runsHere refuses, before anything is written, a machine that cannot be built or would not run
// here. Of one that runs under KVM and is to be started a test guest tells, unless KVM was asked
// for.
func (r MachineRequest) runsHere(ctx context.Context, host Host) error {
	p, err := host.Prospect(ctx, hypervisor.Rebuild{
		Point: r.Point, Name: r.Name, StorageDir: r.Storage, Start: r.Start, Accel: r.Accel,
	})
	if err != nil || !r.Start || r.Accel != "" {
		return err
	}
	trouble := r.Trouble
	if trouble == nil {
		trouble = accel.Trouble
	}
	return trouble(ctx, p)
}
