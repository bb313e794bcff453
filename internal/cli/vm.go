package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/protect"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) vmCommands() *cobra.Command {
	return noun("vm", "List, show and back up virtual machines", a.vmList(), a.vmShow(), a.vmBackup())
}

// ListedVM is a machine as vm list --json prints it.
type ListedVM struct {
	hypervisor.Machine
	NotHeld   []point.Omission `json:"not_held"`             // what of the machine a point does not hold
	LastPoint *LastPoint       `json:"last_point,omitempty"` // null where no vault was given or it has no point
}

// LastPoint is the newest recovery point of a machine.
type LastPoint struct {
	ID          point.ID          `json:"id"`
	Time        string            `json:"time"`
	Consistency point.Consistency `json:"consistency"`
	age         string
}

func (a *app) vmList() *cobra.Command {
	return command{
		use: "list", short: "List the machines of the hosts given with --connect", args: cobra.NoArgs,
		long: `
With --vault it also shows how old the last recovery point of each machine is, and how
consistent. "not held" counts what of a machine no point holds, such as shared folders and
persistent memory: "holdfast vm show NAME" says what it is. A host that does not answer is an
error, after the others have been listed.`,
		examples: `
holdfast vm list
holdfast --connect qemu:///session --vault /srv/vault vm list
holdfast --connect qmp:/run/web.qmp,qga=/run/web.qga vm list --json`,
		run: func(cmd *cobra.Command, _ []string) error { return a.listVMs(cmd.Context()) },
	}.build()
}

func (a *app) listVMs(ctx context.Context) error {
	last, err := a.lastPoints(ctx)
	if err != nil {
		return err
	}
	var list []ListedVM
	var failed error
	for _, uri := range a.connections() {
		machines, err := a.describedOf(ctx, uri, last)
		failed = errors.Join(failed, err)
		list = append(list, machines...)
	}
	slices.SortStableFunc(list, func(x, y ListedVM) int { return strings.Compare(x.Name, y.Name) })
	if failed != nil && len(list) == 0 {
		return failed
	}
	if a.json {
		return errors.Join(a.printJSON(orEmpty(list)), failed)
	}
	return errors.Join(a.printVMs(list, last != nil), failed)
}

// lastPoints returns what finds the last point of a machine in the vault, nil where none was given.
func (a *app) lastPoints(ctx context.Context) (func(hypervisor.Machine) *point.RecoveryPoint, error) {
	if a.vaultPath() == "" {
		return nil, nil
	}
	var points []*point.RecoveryPoint
	err := a.withVault(ctx, func(v *vault.Vault) (err error) {
		points, err = v.Summaries(ctx, nil)
		return err
	})
	return func(m hypervisor.Machine) *point.RecoveryPoint { return protect.Last(points, m) }, err
}

// describedOf lists the machines of a host with what points do not hold of them. What could be
// found out is returned with an error, too.
func (a *app) describedOf(ctx context.Context, uri string, last func(hypervisor.Machine) *point.RecoveryPoint,
) ([]ListedVM, error) {
	hosts, err := a.openHosts([]string{uri})
	if err != nil {
		return nil, err
	}
	defer closeHosts(hosts)
	machines, err := hosts[0].Machines(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the machines of %s: %w: %w", uri, hypervisor.ErrUnreachable, err)
	}
	var list []ListedVM
	var failed error
	for _, m := range machines {
		lacks, err := hosts[0].NotHeld(ctx, m)
		if errors.Is(err, hypervisor.ErrNoMachine) {
			continue // gone since the list was made
		}
		failed = errors.Join(failed, err)
		list = append(list, a.listed(m, lacks, last))
	}
	return list, failed
}

func (a *app) machinesOf(ctx context.Context, uri string) ([]hypervisor.Machine, error) {
	hosts, err := a.openHosts([]string{uri})
	if err != nil {
		return nil, err
	}
	defer closeHosts(hosts)
	machines, err := hosts[0].Machines(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the machines of %s: %w: %w", uri, hypervisor.ErrUnreachable, err)
	}
	return machines, nil
}

func (a *app) listed(m hypervisor.Machine, lacks []point.Omission,
	last func(hypervisor.Machine) *point.RecoveryPoint,
) ListedVM {
	m.Disks = orEmpty(m.Disks)
	out := ListedVM{Machine: m, NotHeld: orEmpty(lacks)}
	if last == nil {
		return out
	}
	if p := last(m); p != nil {
		out.LastPoint = &LastPoint{ID: p.ID, Time: p.Time.Format("2006-01-02T15:04:05.000Z07:00"),
			Consistency: p.Consistency,
			age:         humanAge(a.env.Now(), p.Time)}
	}
	return out
}

func (a *app) printVMs(list []ListedVM, withVault bool) error {
	columns := []string{"name", "state", ">disks", ">size", ">not held", "agent"}
	if withVault {
		columns = append(columns, "consistency", ">last point")
	}
	var rows [][]string
	for _, m := range list {
		var size int64
		for _, d := range m.Disks {
			size += d.Size
		}
		agent := "no"
		if m.Agent {
			agent = "yes"
		}
		row := []string{m.Name, string(m.State), strconv.Itoa(len(m.Disks)), humanSize(size),
			strconv.Itoa(len(m.NotHeld)), agent}
		if withVault {
			if m.LastPoint == nil {
				row = append(row, "-", "never")
			} else {
				row = append(row, string(m.LastPoint.Consistency), m.LastPoint.age)
			}
		}
		rows = append(rows, row)
	}
	return a.printTable(columns, rows)
}

type backupFlags struct {
	consistency string
	require     bool
	exclude     []string
	tags        []string
	fullRead    bool
	secrets     []string
}

func (a *app) vmBackup() *cobra.Command {
	var flags backupFlags
	cmd := command{
		use: "backup [flags] NAME", short: "Take a recovery point of a machine", args: cobra.ExactArgs(1),
		long: `
All disks are taken at one instant. The first point reads what is allocated, the next ones
only what changed since; where that is not known for certain, everything is read and
compared, and only differences are stored.

The guest agent is asked to quiesce the guest: the point records the level of consistency
that was reached (application, filesystem or crash) and why it is no higher. With --require,
a level lower than --consistency is an error and no point is made.

A running machine whose images are encrypted needs no secret: QEMU decrypts, and the plain bytes
are stored, sealed by the vault. One that is off is read with libvirt's secret, or with that of
--image-secret.

A machine without disks gets a point of its definition alone: to back up all machines of a
host takes no special case.

NAME is a machine's name or UUID.`,
		examples: `
holdfast --vault /srv/vault vm backup web
holdfast --vault /srv/vault vm backup web --consistency application --require
holdfast vm list --json | jq -r '.[].name' | while read -r vm; do holdfast --vault /srv/vault vm backup "$vm"; done
holdfast --vault /srv/vault --connect qmp:/run/db.qmp,qga=/run/db.qga vm backup db --exclude-disk vdc --tag reason=upgrade`,
		statuses: "4 required consistency not reached, " + vaultStatuses + ", 130 interrupted",
		run:      func(cmd *cobra.Command, args []string) error { return a.backUpVM(cmd.Context(), args[0], flags) },
	}.build()
	f := cmd.Flags()
	f.StringVar(&a.compression, "compression", "",
		"how hard to compress: `fast`, dense (about 5 % smaller, several times slower) or none")
	f.StringVar(&flags.consistency, "consistency", string(point.Application),
		"best `level` to try: application, filesystem or crash")
	f.BoolVar(&flags.require, "require", false, "make no point of a lower level")
	f.StringArrayVar(&flags.exclude, "exclude-disk", nil, "`name` of a disk to leave out; repeatable")
	f.StringArrayVar(&flags.tags, "tag", nil, "`key=value` to store with the point; repeatable")
	addImageSecret(f, &flags.secrets)
	f.BoolVar(&flags.fullRead, "full-read", false, "trust no record of changes: read everything and compare")
	f.StringVar(&a.scratch, "scratch", "",
		"`directory` for what the machine writes out (HOLDFAST_SCRATCH; default /var/tmp/holdfast)")
	f.StringVar(&a.scratchLimit, "scratch-limit", "",
		"`size` that may be used there, such as 1GiB (default: what is free, less a tenth)")
	cmd.ValidArgsFunction = a.completeVMs
	return cmd
}

func (f backupFlags) request(scratch func() (capture.Scratch, error)) (protect.Request, error) {
	level := point.Consistency(f.consistency)
	if level.Rank() == 0 {
		return protect.Request{}, usagef("--consistency: %q is none of application, filesystem, crash", f.consistency)
	}
	tags, err := parseTags(f.tags)
	if err != nil {
		return protect.Request{}, err
	}
	secrets, err := readImageSecrets(f.secrets)
	if err != nil {
		return protect.Request{}, err
	}
	space, err := scratch()
	if err != nil {
		return protect.Request{}, err
	}
	return protect.Request{
		Consistency: level, Require: f.require, Exclude: f.exclude, Tags: tags, Scratch: space, FullRead: f.fullRead,
		Secrets: secrets,
	}, nil
}

func (a *app) backUpVM(ctx context.Context, name string, flags backupFlags) error {
	a.lean()
	a.compresses()
	req, err := flags.request(a.scratchSpace)
	if err != nil {
		return err
	}
	return a.withVault(ctx, func(v *vault.Vault) error {
		p, err := a.takePoint(ctx, v, name, req)
		if err != nil {
			return fmt.Errorf("back up vm %s: %w", name, explainSecret(err, req.Secrets))
		}
		return a.printTaken(p)
	})
}

func (a *app) takePoint(ctx context.Context, v *vault.Vault, name string, req protect.Request) (*point.RecoveryPoint,
	error) {
	hosts, err := a.openHosts(a.connections())
	if err != nil {
		return nil, err
	}
	defer closeHosts(hosts)
	h, m, err := find(ctx, hosts, name)
	if err != nil {
		return nil, err
	}
	req.Machine = m
	meter := a.meter()
	defer meter.Close()
	deps, err := a.deps(h, v, meter)
	if err != nil {
		return nil, err
	}
	return protect.Backup(ctx, deps, req)
}

// printTaken says what a new point is.
func (a *app) printTaken(p *point.RecoveryPoint) error {
	if a.json {
		return a.printJSON(p)
	}
	a.warn(p.Warnings)
	for _, o := range p.NotHeld {
		a.remark("not held: %s", oneLine(o.String()))
	}
	a.remarkEncrypted(p)
	if len(p.Disks) == 0 {
		return a.println(fmt.Sprintf("point %s of %s: its definition alone, as it has no disks, took %.1f s",
			p.ID.Short(),
			p.VM, p.Took))
	}
	var added, read int64
	for _, d := range p.Disks {
		added += d.Added
		read += d.Read
	}
	return errors.Join(
		a.println(fmt.Sprintf("point %s of %s: %s-consistent, %s, read %s (%s), added %s, took %.1f s", p.ID.Short(),
			p.VM, p.Consistency,
			counted(len(p.Disks), "disk"), humanSize(read), p.Rung, humanSize(added), p.Took)),
		a.println(fmt.Sprintf("  %s: %s", p.Consistency, p.ConsistencyReason)))
}

// completeVMs proposes the names of machines to a shell.
func (a *app) completeVMs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, uri := range a.connections() {
		machines, _ := a.machinesOf(cmd.Context(), uri)
		for _, m := range machines {
			names = append(names, m.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
