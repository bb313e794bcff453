package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/disks"
	"github.com/holdfast-vm/holdfast/internal/export"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) diskHydrate() *cobra.Command {
	return command{
		use: "hydrate NAME", short: "Go on filling a managed disk from its snapshot", args: cobra.ExactArgs(1),
		long: `
A disk made from a snapshot or point stands on the vault until it is filled. If the command
that made it was killed, this one serves the snapshot again, lets a machine that waits for
it go on, and fills the disk: what was copied is not copied again. Where the pool has no
room it waits. A disk that is filled is left alone.

` + poolHelp,
		examples: "holdfast --pool /srv/images --vault /srv/vault disk hydrate copy",
		statuses: "3 damage found, " + vaultStatuses + ", 130 interrupted",
		run: func(cmd *cobra.Command, args []string) error {
			a.lean()
			return a.withPool(cmd.Context(), func(p *pooled) error {
				d, err := p.Disk(args[0])
				if err != nil {
					return err
				}
				if d.Hydration == nil {
					return a.printNewDisk(p, d)
				}
				return a.withVault(cmd.Context(), func(v *vault.Vault) error {
					return a.hydrateDisk(cmd.Context(), p, v, d)
				})
			})
		},
	}.build()
}

// createInstant makes a disk that can be used at once, and fills it.
func (a *app) createInstant(ctx context.Context, p *pooled, v *vault.Vault, req disks.CreateRequest) error {
	d, err := p.CreateOverlay(ctx, req)
	if err != nil {
		return err
	}
	return a.hydrateDisk(ctx, p, v, d)
}

// hydrateDisk fills a disk from the vault, and prints it.
func (a *app) hydrateDisk(ctx context.Context, p *pooled, v *vault.Vault, d *disks.Disk) error {
	source, err := v.Point(ctx, d.Source.Point)
	if err != nil {
		return fmt.Errorf("find what disk %s is made of: %w", d.Name, err)
	}
	content, err := a.contentOf(v, source, d.Source.Disk)
	if err != nil {
		return fmt.Errorf("open what disk %s is made of: %w", d.Name, err)
	}
	m := a.meter()
	name := d.Name
	d, err = p.Hydrate(ctx, name, disks.HydrateRequest{
		Content: content,
		Serve: func(ctx context.Context, h *disks.Hydration) (func() error, error) {
			return serveDisk(ctx, v, source, d.Source.Disk, h)
		},
		Ready:    func(d *disks.Disk) { a.remark("disk %s can be used now; it is filled meanwhile", d.Name) },
		Progress: func(done, total int64) { m.Update("hydrate "+name, done, total) },
		Waits: func(why error) {
			a.remark("disk %s can be used, but is not filled further: %s; it goes on when there is room", name,
				oneLine(why.Error()))
		},
	})
	m.Close()
	if err != nil {
		return withHint(err, "continue with `holdfast disk hydrate %s`", name)
	}
	return a.printNewDisk(p, d)
}

func (a *app) contentOf(v *vault.Vault, p *point.RecoveryPoint, name string) (disks.PartContent, error) {
	for _, d := range p.Disks {
		if d.Name == name {
			return v.OpenDisk(d.Root, d.Size)
		}
	}
	return nil, fmt.Errorf("point %s has no disk %s", p.ID.Short(), name)
}

// serveDisk serves a disk of a point until the function that it returns is called. The export
// outlives ctx: a machine may depend on it to the end.
func serveDisk(ctx context.Context, v *vault.Vault, p *point.RecoveryPoint, disk string,
	h *disks.Hydration) (func() error, error) {
	server, err := export.Open(ctx, v, export.Options{})
	if err != nil {
		return nil, err
	}
	if _, err := server.Add(ctx, export.Request{Point: p, Disk: disk, Name: h.Export}); err != nil {
		return nil, errors.Join(err, server.Close())
	}
	l, err := export.ListenUnix(h.Socket, 0o600)
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(serving, l) }()
	return func() error {
		cancel()
		return errors.Join(<-ended, server.Close())
	}, nil
}
