package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/disks"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

type attachFlags struct {
	as       string
	readOnly bool
}

func (a *app) diskAttach() *cobra.Command {
	var flags attachFlags
	cmd := command{
		use: "attach NAME VM [--as vdb] [--read-only]", short: "Give a managed disk to a machine",
		args: cobra.ExactArgs(2),
		long: `
A running machine gets it at once: under libvirt, which chooses the slot, now and after the
next start; a plain QEMU for the life of its process, on an empty pcie-root-port, any slot of
a "pc" machine, or a virtio-scsi controller. VM is a machine's name or UUID at --connect.

` + poolHelp,
		examples: `
holdfast --pool /srv/images --connect qemu:///system disk attach data web
holdfast --pool /srv/images --connect qmp:/run/db.qmp disk attach data db --as vdc --read-only`,
		run: func(cmd *cobra.Command, args []string) error {
			return a.changeDisk(cmd.Context(), func(ctx context.Context, p *pooled) (*disks.Disk, string, error) {
				d, err := a.attachDisk(ctx, p, args[0], args[1], flags)
				if err != nil {
					return nil, "", err
				}
				return d, "is attached to " + attachedText(d.Attached), nil
			})
		},
	}.build()
	cmd.Flags().StringVar(&flags.as, "as", "",
		"`name` of the disk in the machine, such as vdb or sdc (default: the first free one)")
	cmd.Flags().BoolVar(&flags.readOnly, "read-only", false, "the machine may not write to it")
	return cmd
}

func (a *app) attachDisk(ctx context.Context, p *pooled, name, vm string, flags attachFlags) (*disks.Disk, error) {
	_, m, err := p.find(ctx, a.connections(), vm)
	if err != nil {
		return nil, fmt.Errorf("attach disk %s: %w", name, err)
	}
	to, err := p.diskHost(m.Host)
	if err != nil {
		return nil, fmt.Errorf("attach disk %s: %w", name, err)
	}
	return p.Attach(ctx, name, disks.AttachRequest{Host: to, Machine: m, As: flags.as, ReadOnly: flags.readOnly})
}

// find returns the one machine on the hosts of some URIs that ref names.
func (p *pooled) find(ctx context.Context, uris []string, ref string) (host, hypervisor.Machine, error) {
	var hosts []host
	for _, uri := range uris {
		h, err := p.host(uri)
		if err != nil {
			return host{}, hypervisor.Machine{}, err
		}
		hosts = append(hosts, h)
	}
	return find(ctx, hosts, ref)
}

func (a *app) diskDetach() *cobra.Command {
	return command{
		use: "detach NAME", short: "Take a managed disk from the machine that has it", args: cobra.ExactArgs(1),
		long: `
The guest of a running machine must let the disk go: unmount it first. One that does not in
half a minute is left as it is, and "holdfast disk reconcile" finishes later.

` + poolHelp,
		examples: "holdfast --pool /srv/images disk detach data",
		run: func(cmd *cobra.Command, args []string) error {
			return a.changeDisk(cmd.Context(), func(ctx context.Context, p *pooled) (*disks.Disk, string, error) {
				d, err := p.Detach(ctx, args[0])
				return d, "is detached", err
			})
		},
	}.build()
}
