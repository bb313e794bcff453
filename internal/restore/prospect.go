package restore

import (
	"context"
	"errors"
	"fmt"

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
	return tried(r.Trouble)(ctx, p)
}

// tried returns trouble, or what really tries where that is nil.
func tried(trouble func(context.Context, hypervisor.Prospect) error) func(context.Context, hypervisor.Prospect) error {
	if trouble == nil {
		return accel.Trouble
	}
	return trouble
}

// standsHere returns why the machine of an instant restore that goes on would not run here if it
// were started now: the host may have changed since it was begun, which tried it. Other troubles
// than with KVM show when it is started.
func (i *instant) standsHere(ctx context.Context) error {
	if i.begun || i.st.Accel != "" {
		return nil
	}
	p, err := i.host.Prospect(ctx, hypervisor.Rebuild{
		Point: &i.st.Point, Name: i.name, StorageDir: i.dir, Start: true,
	})
	if err == nil {
		err = tried(i.opts.Trouble)(ctx, p)
	}
	if errors.Is(err, hypervisor.ErrNoKVM) || errors.Is(err, hypervisor.ErrKVMUnfit) {
		return fmt.Errorf("start %s: %w", i.name, err)
	}
	return nil
}
