package cli

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/disks"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/restore"
	"github.com/holdfast-vm/holdfast/internal/snapshots"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

type diskCreateFlags struct {
	size, format          string
	snapshot, point, file string
	disk, fileFormat      string
	tags                  []string
	wait, plain           bool
}

func (a *app) diskCreate() *cobra.Command {
	var flags diskCreateFlags
	cmd := command{
		use:   "create NAME (--size SIZE | --from-snapshot S | --from-point P [--disk D] | --from-file F)",
		short: "Make a managed disk", args: cobra.ExactArgs(1),
		long: `
The disk is empty, or a copy of a disk of a snapshot or recovery point of --vault, or of an
image file. With --size it is made larger than its source.

From a snapshot or point it can be attached at once, while it is filled: it stands on the
vault until the command says 100 %. A command that is killed is continued with
"holdfast disk hydrate NAME". With --wait the disk is there only when it is complete.

` + poolHelp,
		examples: `
holdfast --pool /srv/images disk create data --size 64GiB
holdfast --pool /srv/images --vault /srv/vault disk create copy --from-snapshot before-upgrade --tag test=1
holdfast --pool /srv/images --vault /srv/vault disk create old --from-point web@latest --disk vdb --format raw
holdfast --pool /srv/images disk create imported --from-file /tmp/data.vmdk`,
		statuses: "3 damage found, " + vaultStatuses + ", 130 interrupted",
		run: func(cmd *cobra.Command, args []string) error {
			return a.createDisk(cmd.Context(), args[0], flags)
		},
	}.build()
	f := cmd.Flags()
	f.StringVar(&flags.size, "size", "", "`size` of the disk, such as 64GiB")
	f.StringVar(&flags.format, "format", "qcow2", "`format` of the image: qcow2 or raw")
	f.StringVar(&flags.snapshot, "from-snapshot", "", "`name` or ID of a snapshot")
	f.StringVar(&flags.point, "from-point", "", "ID of a recovery `point`, or NAME@latest")
	f.StringVar(&flags.disk, "disk", "", "`name` of the disk in the snapshot or point; needed if it has several")
	f.StringVar(&flags.file, "from-file", "", "image `file` to copy")
	f.StringVar(&flags.fileFormat, "file-format", "", "`format` of that file (default: by what is in it)")
	f.StringArrayVar(&flags.tags, "tag", nil, "`key=value` to keep with the disk; repeatable")
	f.BoolVar(&flags.plain, "plain", false, "make it plain although it was encrypted where it came from")
	f.BoolVar(&flags.wait, "wait", false, "copy all first: the disk is there when it is complete")
	return cmd
}

func (f diskCreateFlags) check() error {
	sources := 0
	for _, s := range []string{f.snapshot, f.point, f.file} {
		if s != "" {
			sources++
		}
	}
	switch {
	case sources > 1:
		return usagef("disk create: --from-snapshot, --from-point and --from-file: give one of them")
	case sources == 0 && f.size == "":
		return usagef("disk create: give --size, or what to copy: --from-snapshot, --from-point or --from-file")
	case f.disk != "" && f.snapshot == "" && f.point == "":
		return usagef("disk create: --disk goes with --from-snapshot and --from-point")
	case f.fileFormat != "" && f.file == "":
		return usagef("disk create: --file-format goes with --from-file")
	}
	return nil
}

func (f diskCreateFlags) request(name string) (disks.CreateRequest, error) {
	req := disks.CreateRequest{Name: name, Format: f.format}
	if err := f.check(); err != nil {
		return req, err
	}
	if err := disks.CheckName(name); err != nil {
		return req, usagef("disk create: %v", err)
	}
	var err error
	if f.size != "" {
		if req.Size, err = parseSize(f.size); err != nil {
			return req, usagef("--size: %v", err)
		}
	}
	req.Tags, err = parseTags(f.tags)
	return req, err
}

func (a *app) createDisk(ctx context.Context, name string, flags diskCreateFlags) error {
	a.lean()
	req, err := flags.request(name)
	if err != nil {
		return err
	}
	return a.withPool(ctx, func(p *pooled) error {
		switch {
		case flags.file != "":
			return a.createFromFile(ctx, p, req, flags)
		case flags.snapshot != "" || flags.point != "":
			return a.withVault(ctx, func(v *vault.Vault) error { return a.createFromVault(ctx, p, v, req, flags) })
		}
		return a.finishCreate(ctx, p, req)
	})
}

func (a *app) createFromFile(ctx context.Context, p *pooled, req disks.CreateRequest, flags diskCreateFlags) error {
	path, err := filepath.Abs(flags.file)
	if err != nil {
		return err
	}
	img, err := diskimage.Open(ctx, path, diskimage.Options{Format: flags.fileFormat})
	if err != nil {
		return fmt.Errorf("create disk %s: %w", req.Name, err)
	}
	defer img.Close()
	req.Content, req.Source = disks.ImageContent(img), disks.Source{Kind: "file", File: path}
	return a.finishCreate(ctx, p, req)
}

// vaultSource finds the disk of a snapshot or point that was asked for.
func vaultSource(ctx context.Context, v *vault.Vault, flags diskCreateFlags) (*point.Disk, disks.Source, error) {
	var p *point.RecoveryPoint
	var err error
	source := disks.Source{Kind: "point", Vault: v.ID()}
	if flags.snapshot != "" {
		source.Kind = "snapshot"
		p, err = snapshots.Find(ctx, v, flags.snapshot)
	} else {
		p, err = v.Point(ctx, flags.point)
	}
	if err != nil {
		return nil, source, err
	}
	d, err := p.Disk(flags.disk)
	if err != nil {
		return nil, source, err
	}
	source.Point, source.Name, source.VM, source.Disk = string(p.ID), p.Name, p.VM, d.Name
	return d, source, nil
}

func (a *app) createFromVault(ctx context.Context, p *pooled, v *vault.Vault, req disks.CreateRequest,
	flags diskCreateFlags) error {
	d, source, err := vaultSource(ctx, v, flags)
	if err != nil {
		return fmt.Errorf("create disk %s: %w", req.Name, err)
	}
	if err := restore.CheckPlain(*d, flags.plain); err != nil {
		return fmt.Errorf("create disk %s: %w", req.Name, err)
	}
	req.Source = source
	content, err := v.OpenDisk(d.Root, d.Size)
	if err != nil {
		return fmt.Errorf("create disk %s: %w", req.Name, err)
	}
	req.Content = content
	if flags.wait {
		return a.finishCreate(ctx, p, req)
	}
	return a.createInstant(ctx, p, v, req)
}

// finishCreate makes a disk that is there when it is complete, and prints it.
func (a *app) finishCreate(ctx context.Context, p *pooled, req disks.CreateRequest) error {
	m := a.meter()
	if req.Content != nil {
		data, err := req.Content.Extents(ctx)
		if err != nil {
			return fmt.Errorf("create disk %s: %w", req.Name, err)
		}
		req.Progress = m.within("copy", data.Bytes())
	}
	d, err := p.Create(ctx, req)
	m.Close()
	if err != nil {
		return err
	}
	return a.printNewDisk(p, d)
}

func (a *app) printNewDisk(p *pooled, d *disks.Disk) error {
	if a.json {
		return a.printJSON(ListedDisk{disks.Status{Disk: d, State: "ready"}, p.Path(d)})
	}
	return a.println(fmt.Sprintf("disk %s (%s, %s, from %s): %s", d.Name, humanSize(d.Size), d.Format, d.Source,
		p.Path(d)))
}
