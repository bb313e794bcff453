package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/open"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) vaultRepair() *cobra.Command {
	var o vault.RepairOptions
	cmd := command{
		use: "repair [--dry-run]", short: "Make a damaged vault's log and index anew out of what is left",
		args: cobra.NoArgs,
		long: `
For a vault that does not open any more, or whose index is damaged. The index is made anew.
If the log does not open, a new one is made out of the packs, entries and checkpoints that
still read: every point that they hold is there again. What cannot be known is listed, such
as whether a point had been deleted.

Nobody may work on the vault meanwhile. If the log is made anew, every host that has used the
vault notices and takes "holdfast vault accept --yes". Damage to the data of points is not
mended: "holdfast vault check --read-data" lists it.`,
		examples: `
holdfast --vault /srv/vault vault repair --dry-run
holdfast --vault /srv/vault vault repair`,
		statuses: vaultStatuses,
		run: func(cmd *cobra.Command, _ []string) error {
			return a.atStore(cmd.Context(), func(at open.Address, store blob.Store) error {
				r, err := a.repairVault(cmd.Context(), at, store, o)
				if err != nil {
					return fmt.Errorf("repair vault %s: %w", at, err)
				}
				return a.printRepair(r)
			})
		},
	}.build()
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only say what would be made anew")
	return cmd
}

func (a *app) repairVault(ctx context.Context, at open.Address, store blob.Store, o vault.RepairOptions,
) (r vault.RepairReport, err error) {
	id, err := vault.Peek(ctx, store)
	if err != nil {
		return r, err
	}
	key, err := a.key(ctx, id)
	if err == nil {
		err = key.pins.checkID(id)
	}
	if err != nil {
		return r, err
	}
	known, err := a.memory().Recall(at.String())
	if err == nil && known != nil && known.ID != id {
		return r, fmt.Errorf("%w: vault %s was here, vault %s is", vault.ErrChanged, shortID(known.ID), shortID(id))
	}
	o.Log = a.remark
	if r, err = vault.Repair(ctx, store, key.Key, o); err != nil || o.DryRun || r.Whole || known == nil {
		return r, err
	}
	known.Seen = r.Head // this host knows why the log is another one
	return r, a.memory().Replace(at.String(), *known, a.env.Now())
}

func (a *app) printRepair(r vault.RepairReport) error {
	if a.json {
		return a.printJSON(r)
	}
	made, would := "made anew: log and index", ""
	if r.Whole {
		made = "the log is whole; made anew: a checkpoint of it, and the index"
	}
	if r.DryRun {
		would = "nothing was changed; a repair makes anew what is derived"
		made = "the log is whole"
		if !r.Whole {
			made = "the log is damaged"
		}
	}
	err := a.printFields([2]string{"log", made}, [2]string{"found", fmt.Sprintf("%s in %s (%s), %s",
		counted(r.Points, "point"), counted(r.Packs, "pack"), humanSize(r.Bytes),
		counted(r.Entries, "readable entry"))},
		[2]string{"lost entries", strings.Join(r.LostEntries, " ")},
		[2]string{"lost packs", strings.Join(r.LostPacks, " ")},
		[2]string{"in doubt", strings.Join(r.Doubtful, " ")})
	for _, what := range r.Unknown {
		err = errors.Join(err, a.println("not known: "+what))
	}
	if would != "" {
		a.remark("%s", would)
	} else if !r.Whole {
		a.remark("other hosts that have used the vault take `holdfast vault accept --yes` each")
	}
	return err
}
