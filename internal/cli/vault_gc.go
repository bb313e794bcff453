package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) vaultGC() *cobra.Command {
	var o vault.GCOptions
	cmd := command{
		use: "gc [--dry-run] [--full]", short: "Free the space of deleted points", args: cobra.NoArgs,
		long: `
Deleted points whose time to be brought back is over are removed for good. What only they
needed is freed: packs that nothing needs are deleted, and what is left of packs of which
little is needed is moved together. The cost is that of what was deleted, not of the vault.

With --full all that points need is looked through once, which also finds what several
points had in common and none needs any more. It is rarely worth it.

Safe while backups, restores and other collections run; a run that was cut off is finished
by the next.`,
		examples: `
holdfast --vault /srv/vault vault gc --dry-run
holdfast --vault /srv/vault vault gc`,
		statuses: vaultStatuses,
		run: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(cmd.Context(), func(v *vault.Vault, store blob.Store) error {
				return a.collectGarbage(cmd.Context(), v, store, o)
			})
		},
	}.build()
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only say what would be done")
	cmd.Flags().BoolVar(&o.Full, "full", false,
		"look through all that points need, and free also what they had in common")
	return cmd
}

func (a *app) collectGarbage(ctx context.Context, v *vault.Vault, store blob.Store, o vault.GCOptions) error {
	o.Log, o.Memory = a.remark, a.memory().Looks(v.ID())
	report, err := v.CollectGarbage(ctx, o)
	if err != nil {
		return fmt.Errorf("vault %s: %w", v.ShortID(), err)
	}
	if !o.DryRun {
		if err := a.sweepTemp(store); err != nil {
			return fmt.Errorf("remove unfinished files of vault %s: %w", v.ShortID(), err)
		}
	}
	a.warn(report.Troubles)
	a.warn(report.Sweep.Troubles)
	if a.json {
		return a.printJSON(report)
	}
	return a.printGC(report)
}

// sweepTemp removes what writers left that were killed: no objects, and so none of the vault's
// business.
func (a *app) sweepTemp(store blob.Store) error {
	s, ok := store.(blob.Sweeper)
	if !ok {
		return nil
	}
	n, err := s.SweepTemp()
	if n > 0 {
		a.remark("removed %s that killed runs left unfinished", counted(n, "file"))
	}
	return err
}

func (a *app) printGC(r vault.GCReport) error {
	would := ""
	if r.DryRun {
		would = "would be "
	}
	waiting := ""
	if r.WaitingPacks > 0 {
		waiting = fmt.Sprintf("%s in %s: deleted by a later run", humanSize(r.WaitingBytes),
			counted(r.WaitingPacks, "pack"))
		if len(r.WaitingFor) > 0 {
			waiting += " (" + strings.Join(r.WaitingFor, "; ") + ")"
		}
	}
	return a.printFields(
		[2]string{would + "removed", some(r.Purged, "point", "whose time to be brought back is over")},
		[2]string{would + "freed", fmt.Sprintf("%s, %s that nothing needs", humanSize(r.FreedBytes),
			counted(r.DeadPacks, "pack"))},
		[2]string{would + "rewritten", fmt.Sprintf("%s of %s of which little is needed or that are small",
			humanSize(r.RewrittenBytes), counted(r.ThinPacks+r.SmallPacks, "pack"))},
		[2]string{"needed", fmt.Sprintf("%s by %s", humanSize(r.LiveBytes), counted(r.Points, "point"))},
		[2]string{"left", some(r.PendingPurges, "removed point", "whose space a later run finds")},
		[2]string{"tidied", tidied(r)},
		[2]string{"waiting", waiting},
	)
}

// some says how many there are of something; nothing if there is none.
func some(n int, one, what string) string {
	if n == 0 {
		return ""
	}
	return counted(n, one) + " " + what
}

// tidied says what was done beside freeing space.
func tidied(r vault.GCReport) string {
	var out []string
	for _, s := range []string{
		some(r.Sweep.GivenUp, "session", "that ended without saying so"),
		some(r.Sweep.Orphans, "object", "that belongs to nothing"),
		some(r.Sweep.Cut, "volume", "of the log cut"),
		some(r.Notes, "note", "of points that are gone"),
	} {
		if s != "" {
			out = append(out, s)
		}
	}
	return strings.Join(out, ", ")
}
