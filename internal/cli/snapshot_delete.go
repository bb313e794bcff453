package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/snapshots"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) snapshotDelete() *cobra.Command {
	var how deletion
	cmd := command{
		use: "delete [--purge] [--keep TIME] SNAPSHOT...", short: "Delete snapshots", args: cobra.MinimumNArgs(1),
		statuses: vaultStatuses,
		long: snapshotArgHelp + `
No disk and no other snapshot needs it. "holdfast snapshot undelete" brings it back, for 14
days or what --keep says; after that "holdfast vault gc" removes it for good. With --purge it
is gone at once, deleted before or not. Its space is freed by the next "holdfast vault gc"
after that; its hours until now stay in the usage report of the month.`,
		examples: `
holdfast --vault /srv/vault snapshot delete before-upgrade
holdfast --vault /srv/vault snapshot delete --purge before-upgrade`,
		run: func(cmd *cobra.Command, args []string) error {
			keep, err := how.time()
			if err != nil {
				return err
			}
			return a.withVault(cmd.Context(), func(v *vault.Vault) error {
				return a.remove(cmd.Context(), v, args, func(ref string) (*point.RecoveryPoint, error) {
					p, err := snapshots.Find(cmd.Context(), v, ref)
					if errors.Is(err, snapshots.ErrNoSnapshot) && keep < 0 {
						return deletedSnapshot(cmd.Context(), v, ref)
					}
					return p, err
				}, keep, false)
			})
		},
	}.build()
	how.flags(cmd.Flags())
	return cmd
}

func (a *app) snapshotUndelete() *cobra.Command {
	return command{
		use: "undelete SNAPSHOT...", short: "Bring back snapshots that were deleted", args: cobra.MinimumNArgs(1),
		statuses: vaultStatuses,
		long: `
SNAPSHOT is the name of a deleted snapshot or the beginning of its ID, as "holdfast snapshot
list --deleted" shows it. In the usage report it counts again from now on.`,
		examples: "holdfast --vault /srv/vault snapshot undelete before-upgrade",
		run: func(cmd *cobra.Command, args []string) error {
			return a.withVault(cmd.Context(), func(v *vault.Vault) error {
				return a.bringBack(cmd.Context(), v, args, func(ref string) (*point.RecoveryPoint, error) {
					p, err := deletedSnapshot(cmd.Context(), v, ref)
					if err == nil {
						err = nameIsFree(cmd.Context(), v, p.Name)
					}
					return p, err
				})
			})
		},
	}.build()
}

// deletedSnapshot returns the deleted snapshot of a name, or whose ID begins with ref.
func deletedSnapshot(ctx context.Context, v *vault.Vault, ref string) (*point.RecoveryPoint, error) {
	all, err := v.Deleted(ctx)
	if err != nil {
		return nil, err
	}
	var named, begin []*point.RecoveryPoint
	for _, d := range all {
		switch p := d.Point; {
		case !p.IsSnapshot():
		case p.Name == ref:
			named = append(named, p)
		case strings.HasPrefix(string(p.ID), ref):
			begin = append(begin, p)
		}
	}
	if len(named) == 0 && len(begin) == 1 {
		return begin[0], nil
	}
	if len(named) == 0 && len(begin) > 1 {
		return nil, fmt.Errorf("%w: %d deleted ones begin with %q", snapshots.ErrAmbiguous, len(begin), ref)
	}
	p, err := snapshots.ByName(named, ref)
	if errors.Is(err, snapshots.ErrNoSnapshot) {
		err = withHint(fmt.Errorf("no deleted one: %w", err),
			"`holdfast snapshot list --deleted` shows what can be brought back")
	}
	return p, err
}
