package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/disks"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/protect"
	"github.com/holdfast-vm/holdfast/internal/snapshots"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) snapshotCommands() *cobra.Command {
	cmd := noun("snapshot", "Take, compare, copy and delete snapshots of disks",
		a.snapshotCreate(), a.snapshotList(), a.snapshotShow(), a.snapshotDiff(), a.snapshotApply(), a.snapshotCopy(),
		a.snapshotDelete(), a.snapshotUndelete())
	a.poolFlag(cmd)
	return cmd
}

const snapshotArgHelp = "SNAPSHOT is a snapshot's name or the beginning of its ID."

type snapshotFlags struct {
	name, consistency string
	incremental       bool
	tags, secrets     []string
}

func (a *app) snapshotCreate() *cobra.Command {
	var flags snapshotFlags
	cmd := command{
		use: "create DISK|VM:DISK[,DISK...]...", short: "Take a snapshot of disks at one instant",
		args: cobra.MinimumNArgs(1),
		long: `
DISK is a managed disk of --pool, VM:DISK a disk of a machine at --connect. All that is
named is taken at one instant: several disks of one machine, or several disks that no
machine has.

A snapshot is full in meaning and stored by its differences. It needs neither its disk nor
any other snapshot, and may be taken of a running machine at any time: the machine's backups
go on as if it had not been. By default it is crash-consistent, and the guest is not asked.

It reads what changed since the last backup or snapshot that recorded changes, else all that
is allocated. --incremental begins a record of changes of its own at this instant, so that
the next snapshot of these disks is quick also where there are no backups.`,
		examples: `
holdfast --vault /srv/vault --pool /srv/images snapshot create data
holdfast --vault /srv/vault snapshot create web:vdb --name before-upgrade --incremental
holdfast --vault /srv/vault --connect qemu:///system snapshot create db:vdb,vdc --consistency filesystem --tag reason=audit`,
		statuses: vaultStatuses + ", 130 interrupted",
		run:      func(cmd *cobra.Command, args []string) error { return a.takeSnapshot(cmd.Context(), args, flags) },
	}.build()
	f := cmd.Flags()
	f.StringVar(&flags.name, "name", "", "`name` of the snapshot (default: of the disks and the time)")
	f.BoolVar(&flags.incremental, "incremental", false,
		"record changes from here on, for the next snapshot of these disks")
	f.StringVar(&flags.consistency, "consistency", string(point.Crash),
		"best `level` to try: application, filesystem or crash")
	f.StringArrayVar(&flags.tags, "tag", nil, "`key=value` to store with the snapshot; repeatable")
	addImageSecret(f, &flags.secrets)
	f.StringVar(&a.compression, "compression", "", "how hard to compress: `fast`, dense or none")
	f.StringVar(&a.scratch, "scratch", "",
		"`directory` for what the machine writes out (HOLDFAST_SCRATCH; default /var/tmp/holdfast)")
	f.StringVar(&a.scratchLimit, "scratch-limit", "",
		"`size` that may be used there, such as 1GiB (default: what is free, less a tenth)")
	return cmd
}

// snapshotOf is what a snapshot is taken of: disks of one machine, or images that no machine writes
// to.
type snapshotOf struct {
	vm      string // name or UUID; "" for images
	uris    []string
	disks   []string // of the machine
	managed map[string]protect.ManagedDisk
	files   []string // images, each of one managed disk
	of      []protect.ManagedDisk
	label   string
}

// parseTargets reads DISK and VM:DISK,DISK arguments, without the pool.
func (a *app) parseTargets(args []string) (vm string, vmDisks, poolDisks []string, err error) {
	for _, arg := range args {
		i := strings.LastIndex(arg, ":")
		if i < 0 {
			poolDisks = append(poolDisks, strings.Split(arg, ",")...)
			continue
		}
		if vm != "" && vm != arg[:i] {
			return "", nil, nil, usagef("snapshot create: %s and %s are two machines, which have no instant in "+
				"common: take a snapshot of each", vm, arg[:i])
		}
		vm = arg[:i]
		vmDisks = append(vmDisks, strings.Split(arg[i+1:], ",")...)
	}
	if slices.Contains(vmDisks, "") || slices.Contains(poolDisks, "") || vm == "" && len(vmDisks) > 0 {
		return "", nil, nil, usagef("snapshot create: %q: the name of a disk or machine is missing",
			strings.Join(args, " "))
	}
	return vm, vmDisks, poolDisks, nil
}

func (a *app) takeSnapshot(ctx context.Context, args []string, flags snapshotFlags) error {
	a.lean()
	a.compresses()
	if flags.name != "" {
		if err := snapshots.CheckName(flags.name); err != nil {
			return usagef("--name: %v", err)
		}
	}
	vm, vmDisks, poolDisks, err := a.parseTargets(args)
	if err != nil {
		return err
	}
	return a.withVault(ctx, func(v *vault.Vault) error {
		if err := nameIsFree(ctx, v, flags.name); err != nil {
			return err
		}
		p, err := a.snapshotOf(ctx, v,
			snapshotOf{vm: vm, uris: a.connections(), disks: vmDisks, managed: map[string]protect.ManagedDisk{}},
			poolDisks, flags)
		if err != nil {
			return fmt.Errorf("take a snapshot of %s: %w", strings.Join(args, " "), err)
		}
		return a.printSnapshotTaken(p)
	})
}

func nameIsFree(ctx context.Context, v *vault.Vault, name string) error {
	if name == "" {
		return nil
	}
	_, err := snapshots.Find(ctx, v, name)
	switch {
	case errors.Is(err, snapshots.ErrNoSnapshot):
		return nil
	case err == nil || errors.Is(err, snapshots.ErrAmbiguous):
		return fmt.Errorf("%w: %s", snapshots.ErrExists, name)
	}
	return err
}

// snapshotOf resolves managed disks, if there is a pool, and takes the snapshot.
func (a *app) snapshotOf(ctx context.Context, v *vault.Vault, of snapshotOf, poolDisks []string,
	flags snapshotFlags) (*point.RecoveryPoint, error) {
	if len(poolDisks) == 0 && a.poolSpec() == "" {
		return a.snapshotMachine(ctx, v, of, flags)
	}
	var taken *point.RecoveryPoint
	err := a.withPool(ctx, func(p *pooled) error {
		if err := of.resolve(p, poolDisks); err != nil {
			return err
		}
		var err error
		if of.vm != "" {
			taken, err = a.snapshotMachine(ctx, v, of, flags)
		} else {
			taken, err = a.snapshotImages(ctx, v, of, flags)
		}
		return err
	})
	return taken, err
}

// resolve finds out which machine has the managed disks.
func (of *snapshotOf) resolve(p *pooled, names []string) error {
	for _, name := range names {
		d, err := p.Disk(name)
		if err != nil {
			return err
		}
		if d.Doing != nil {
			return fmt.Errorf("disk %s: %w: %s", name, disks.ErrUnfinished, d.Doing.What)
		}
		if err := of.add(p, d); err != nil {
			return err
		}
	}
	if of.vm != "" && len(of.files) > 0 {
		return usagef("some of the disks belong to machine %s and some to none: they have no instant in common", of.vm)
	}
	of.label = strings.Join(names, "-")
	return nil
}

func (of *snapshotOf) add(p *pooled, d *disks.Disk) error {
	managed := protect.ManagedDisk{Name: d.Name, ID: d.ID}
	if d.Attached == nil || d.Attached.ReadOnly {
		of.files, of.of = append(of.files, p.Path(d)), append(of.of, managed)
		return nil
	}
	ref := d.Attached.UUID
	if ref == "" {
		ref = d.Attached.VM
	}
	if of.vm != "" && of.vm != ref && of.vm != d.Attached.VM {
		return usagef("disk %s belongs to machine %s and not to %s: two machines have no instant in common", d.Name,
			d.Attached.VM, of.vm)
	}
	if of.vm == "" {
		of.vm, of.uris = ref, []string{d.Attached.Host}
	}
	of.disks = append(of.disks, d.Attached.As)
	of.managed[d.Attached.As] = managed
	return nil
}

func (a *app) snapshotMachine(ctx context.Context, v *vault.Vault, of snapshotOf,
	flags snapshotFlags) (*point.RecoveryPoint, error) {
	back := backupFlags{consistency: flags.consistency, tags: flags.tags, secrets: flags.secrets}
	req, err := back.request(a.scratchSpace)
	if err != nil {
		return nil, err
	}
	hosts, err := a.openHosts(of.uris)
	if err != nil {
		return nil, err
	}
	defer closeHosts(hosts)
	h, m, err := find(ctx, hosts, of.vm)
	if err != nil {
		return nil, err
	}
	req.Machine = m
	if of.label == "" {
		of.label = m.Name + "-" + strings.Join(of.disks, "-")
	}
	req.Snapshot = &protect.Snapshot{Name: a.snapshotName(flags.name, of.label), Disks: of.disks, Managed: of.managed,
		Track: flags.incremental}
	a.knownDisks(m, req.Snapshot)
	meter := a.meter()
	defer meter.Close()
	deps, err := a.deps(h, v, meter)
	if err != nil {
		return nil, err
	}
	return protect.Backup(ctx, deps, req)
}

// knownDisks notes which of a machine's disks are managed, where a pool was given.
func (a *app) knownDisks(m hypervisor.Machine, s *protect.Snapshot) {
	if a.poolSpec() == "" {
		return
	}
	a.withPool(context.Background(), func(p *pooled) error {
		all, _ := p.Disks() // a disk that is not managed is taken all the same
		for _, d := range all {
			for _, have := range m.Disks {
				if d.Attached != nil && have.File == p.Path(d) && slices.Contains(s.Disks, have.Name) {
					s.Managed[have.Name] = protect.ManagedDisk{Name: d.Name, ID: d.ID}
				}
			}
		}
		return nil
	})
}

func (a *app) snapshotName(given, of string) string {
	if given != "" {
		return given
	}
	return snapshots.DefaultName(of, a.env.Now())
}

func (a *app) snapshotImages(ctx context.Context, v *vault.Vault, of snapshotOf,
	flags snapshotFlags) (*point.RecoveryPoint, error) {
	tags, err := parseTags(flags.tags)
	if err != nil {
		return nil, err
	}
	m := a.meter()
	defer m.Close()
	return protect.Images(ctx, protect.ImageDeps{Vault: v, Version: Version, Progress: m.Update, Now: a.env.Now},
		protect.ImageRequest{Name: a.snapshotName(flags.name, of.label), Files: of.files, Managed: of.of, Tags: tags})
}

func (a *app) printSnapshotTaken(p *point.RecoveryPoint) error {
	if a.json {
		return a.printJSON(p)
	}
	a.warn(p.Warnings)
	var added, read int64
	for _, d := range p.Disks {
		added += d.Added
		read += d.Read
	}
	return a.println(fmt.Sprintf("snapshot %s (%s) of %s: %s-consistent, read %s (%s), added %s, took %.1f s", p.Name,
		p.ID.Short(), snapshotDisks(p),
		p.Consistency, humanSize(read), p.Rung, humanSize(added), p.Took))
}

// snapshotDisks says what a snapshot is of.
func snapshotDisks(p *point.RecoveryPoint) string {
	var out []string
	for _, d := range p.Disks {
		switch {
		case p.VM == "":
			out = append(out, d.Name)
		case d.Managed != "":
			out = append(out, fmt.Sprintf("%s:%s (%s)", p.VM, d.Name, d.Managed))
		default:
			out = append(out, p.VM+":"+d.Name)
		}
	}
	return strings.Join(out, ", ")
}
