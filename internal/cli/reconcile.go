package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/drill"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/protect"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) hostCommands() *cobra.Command {
	return noun("host", "Look after the hosts of machines", a.hostCheck(), a.hostReconcile())
}

// Reconciled is what host reconcile --json prints for each machine.
type Reconciled struct {
	VM    string   `json:"vm"`
	UUID  string   `json:"uuid,omitempty"`
	Host  string   `json:"host,omitempty"`
	Did   []string `json:"did"` // in words
	Error string   `json:"error,omitempty"`
}

func (a *app) hostReconcile() *cobra.Command {
	var release bool
	cmd := command{
		use: "reconcile [--release]", short: "Clean up what killed backups and drills left on a host",
		args: cobra.NoArgs,
		long: `
Releases guests that still hold their writes and removes jobs, nodes, exports and scratch
files. Every backup does this for its own machine; after a kill or a crash this command does it
for all at once. Running backups are not disturbed.

What killed drills left is removed too, machines, disks and processes, by the notes of drills in
the scratch directory (HOLDFAST_SCRATCH). Running drills are not disturbed.

With --vault, records of changes that no point of that vault counts from are removed too. With
--release all records of that vault are: the next backup of each machine reads everything and
compares. QEMU refuses to revert to an internal snapshot while there are such records.`,
		examples: `
holdfast --connect qemu:///system host reconcile
holdfast --connect qemu:///system --vault /srv/vault host reconcile --release`,
		run: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if a.vaultPath() == "" {
				if release {
					return withHint(usagef("host reconcile: --release needs --vault"),
						"records of changes belong to a vault: name it with --vault")
				}
				return a.reconcileHosts(ctx, nil, false)
			}
			return a.withVault(ctx, func(v *vault.Vault) error { return a.reconcileHosts(ctx, v, release) })
		},
	}.build()
	cmd.Flags().BoolVar(&release, "release", false, "also remove all records of changes that belong to the vault")
	return cmd
}

func (a *app) reconcileHosts(ctx context.Context, v *vault.Vault, release bool) error {
	list, drills, failed := a.reconcileDrills(ctx)
	hosts, err := a.openHosts(a.connections())
	if err != nil {
		return errors.Join(failed, err)
	}
	defer closeHosts(hosts)
	for _, h := range hosts {
		machines, err := h.Machines(ctx)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("list the machines of %s: %w: %w", h.URI(),
				hypervisor.ErrUnreachable, err))
			continue
		}
		for _, m := range machines {
			if drills[m.Name] {
				continue
			}
			done, err := a.reconcileMachine(ctx, h, v, m, release)
			failed = errors.Join(failed, err)
			list = append(list, done)
		}
	}
	if a.json {
		return errors.Join(a.printJSON(orEmpty(list)), failed)
	}
	for _, r := range list {
		for _, did := range r.Did {
			a.println(r.VM + ": " + did)
		}
		if len(r.Did) == 0 && r.Error == "" {
			a.println(r.VM + ": nothing to clean up")
		}
	}
	return failed
}

// reconcileDrills removes what killed drills have left. drills holds the machines of those that
// run, by name.
func (a *app) reconcileDrills(ctx context.Context) (list []Reconciled, drills map[string]bool, failed error) {
	scratch, err := a.scratchSpace()
	if err != nil {
		return nil, nil, err
	}
	drills = make(map[string]bool)
	for _, l := range drill.CleanUp(ctx, scratch.Dir, a.drillHost) {
		done := Reconciled{VM: l.Machine, UUID: l.UUID, Host: l.Host, Did: []string{}}
		if l.Did != "" {
			done.Did = append(done.Did, l.Did)
		}
		if l.Err != nil {
			done.Error = oneLine(l.Err.Error())
			failed = errors.Join(failed, l.Err)
		}
		drills[l.Machine] = l.Running
		list = append(list, done)
	}
	return list, drills, failed
}

func (a *app) reconcileMachine(ctx context.Context, h host, v *vault.Vault, m hypervisor.Machine,
	release bool) (Reconciled, error) {
	out := Reconciled{VM: m.Name, UUID: m.UUID, Host: h.URI(), Did: []string{}}
	deps, err := a.deps(h, v, &meter{})
	if err == nil {
		var did []string
		did, err = protect.CleanUp(ctx, deps, m, release)
		out.Did = append(out.Did, did...)
	}
	if errors.Is(err, capture.ErrBusy) {
		out.Did = append(out.Did, "left alone: a backup of it is running")
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("clean up vm %s: %w", m.Name, err)
		out.Error = oneLine(err.Error())
	}
	return out, err
}
