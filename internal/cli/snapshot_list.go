package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/snapshots"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) snapshotList() *cobra.Command {
	var filter snapshots.Filter
	var tags []string
	var deleted bool
	cmd := command{
		use: "list [--disk D] [--vm NAME] [--tag K=V] [--deleted]", short: "List snapshots, oldest first",
		args: cobra.NoArgs, statuses: vaultStatuses, reads: true,
		examples: `
holdfast --vault /srv/vault snapshot list
holdfast --vault /srv/vault snapshot list --disk web:vdb --tag reason=audit --json`,
		run: func(cmd *cobra.Command, _ []string) error {
			var err error
			if filter.Tags, err = parseTags(tags); err != nil {
				return err
			}
			return a.withVault(cmd.Context(), func(v *vault.Vault) error {
				if deleted {
					return a.listDeleted(cmd.Context(), v, filter.Takes)
				}
				if err := a.listSnapshots(cmd.Context(), v, filter); err != nil {
					return fmt.Errorf("list the snapshots of vault %s: %w", v.ShortID(), err)
				}
				return nil
			})
		},
	}.build()
	f := cmd.Flags()
	f.StringVar(&filter.Disk, "disk", "",
		"only snapshots of this `disk`: a managed disk's name, VM:DISK, or DISK of any machine")
	f.StringVar(&filter.VM, "vm", "", "only snapshots of disks of the machine with this `name` or UUID")
	f.StringArrayVar(&tags, "tag", nil, "only snapshots with this `key=value`; repeatable")
	f.BoolVar(&deleted, "deleted", false, "those that were deleted and can be brought back")
	return cmd
}

func (a *app) listSnapshots(ctx context.Context, v *vault.Vault, filter snapshots.Filter) error {
	if a.json {
		return printJSONList(a, v.EachPoint(ctx, filter.Takes))
	}
	points, err := v.Summaries(ctx, filter.Takes)
	if err != nil {
		return err
	}
	return a.printSnapshots(points)
}

func (a *app) printSnapshots(list []*point.RecoveryPoint) error {
	var rows [][]string
	for _, p := range list {
		size, used, added := sums(p)
		rows = append(rows, []string{p.Name, p.ID.Short(), snapshotDisks(p), humanTime(p.Time),
			humanAge(a.env.Now(), p.Time), string(p.Consistency),
			humanSize(size), humanSize(used), humanSize(added), tagText(p.Tags)})
	}
	return a.printTable([]string{"name", "id", "of", "time (UTC)", ">age", "consistency", ">size", ">used", ">added",
		"tags"}, rows)
}

// withSnapshot runs do with the snapshot that ref names.
func (a *app) withSnapshot(ctx context.Context, ref string,
	do func(v *vault.Vault, p *point.RecoveryPoint) error) error {
	return a.withVault(ctx, func(v *vault.Vault) error {
		p, err := snapshots.Find(ctx, v, ref)
		if err != nil {
			return fmt.Errorf("find snapshot %q in vault %s: %w", ref, v.ShortID(), err)
		}
		return do(v, p)
	})
}

func (a *app) snapshotShow() *cobra.Command {
	return command{
		use: "show SNAPSHOT", short: "Show all that is known of a snapshot", long: snapshotArgHelp,
		args:     cobra.ExactArgs(1),
		statuses: vaultStatuses, reads: true,
		examples: `
holdfast --vault /srv/vault snapshot show before-upgrade
holdfast --vault /srv/vault snapshot show 3fa9 --json`,
		run: func(cmd *cobra.Command, args []string) error {
			return a.withSnapshot(cmd.Context(), args[0], func(_ *vault.Vault, p *point.RecoveryPoint) error {
				if a.json {
					return a.printJSON(p)
				}
				return a.printPoint(p)
			})
		},
	}.build()
}
