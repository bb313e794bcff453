package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) vaultCommands() *cobra.Command {
	return noun("vault", "Make and look after vaults",
		a.vaultInit(), a.vaultInfo(), a.vaultLog(), a.vaultCheck(), a.vaultRepair(), a.vaultGC(), a.vaultAccept(),
		a.keyCommands())
}

func (a *app) vaultInfo() *cobra.Command {
	return command{
		use: "info", short: "Show what a vault holds", args: cobra.NoArgs, statuses: vaultStatuses,
		reads: true, examples: "holdfast --vault /srv/vault vault info",
		run: func(cmd *cobra.Command, _ []string) error {
			return a.withVault(cmd.Context(), func(v *vault.Vault) error {
				info, err := v.Info(cmd.Context())
				if err != nil {
					return fmt.Errorf("look into vault %s: %w", v.ShortID(), err)
				}
				if a.json {
					return a.printJSON(info)
				}
				return a.printFields(
					[2]string{"id", info.ID},
					[2]string{"fingerprint", info.Print},
					[2]string{"format", info.Format},
					[2]string{"created", humanTime(info.Created)},
					[2]string{"chunk size", humanSize(int64(info.ChunkSize))},
					[2]string{"newest entry", info.Entry},
					[2]string{"points", strconv.Itoa(info.Points)},
					[2]string{"deleted", deletedText(info.Deleted)},
					[2]string{"protected", humanSize(info.LogicalSize) + " in the disks of all points"},
					[2]string{"stored", humanSize(info.StoredBytes) + " in " + counted(info.Packs, "pack")},
					[2]string{"keys", strconv.Itoa(info.Keys)},
				)
			})
		},
	}.build()
}

// deletedText says how many points can be brought back; nothing of none.
func deletedText(n int) string {
	if n <= 0 {
		return ""
	}
	return counted(n, "point") + " that can be brought back"
}

func (a *app) vaultCheck() *cobra.Command {
	var data bool
	cmd := command{
		use: "check [--read-data]", short: "Look for damage in a vault", args: cobra.NoArgs,
		long: `
Checks that every point's trees are whole and that every chunk they need is where the
index says. With --read-data every stored byte is read and verified too.

Damage is listed by object, with the points, disks and byte ranges that it hits.`,
		examples: `
holdfast --vault /srv/vault vault check
holdfast --vault /srv/vault vault check --read-data --json`,
		statuses: "3 damage found, " + vaultStatuses,
		run: func(cmd *cobra.Command, _ []string) error {
			return a.withVault(cmd.Context(), func(v *vault.Vault) error {
				return a.checkVault(cmd.Context(), v, data)
			})
		},
	}.build()
	cmd.Flags().BoolVar(&data, "read-data", false, "read and verify every stored byte")
	return cmd
}

func (a *app) checkVault(ctx context.Context, v *vault.Vault, data bool) error {
	m := a.meter()
	report, err := v.Check(ctx, vault.CheckOptions{ReadData: data, Progress: func(done, total int64) {
		m.Update("check", done, total)
	}})
	m.Close()
	if err != nil {
		return fmt.Errorf("check vault %s: %w", v.ShortID(), err)
	}
	if a.json {
		err = a.printJSON(report)
	} else {
		err = a.printCheck(report)
	}
	if err == nil && len(report.Damage) > 0 {
		err = fmt.Errorf("check vault %s: %w: %s", v.ShortID(), errDamage, counted(len(report.Damage), "fault"))
	}
	return err
}

func (a *app) printCheck(report vault.CheckReport) error {
	a.warn(report.Warnings)
	for _, d := range report.Damage {
		what := d.What
		if d.Object != "" {
			what = d.Object + ": " + what
		}
		a.println("damaged: " + what)
	}
	for _, h := range report.Hits {
		a.println(fmt.Sprintf("lost: point %s of %s, disk %s: %s in %s", h.Point.Short(), h.VM, h.Disk,
			humanSize(h.Ranges.Bytes()),
			counted(len(h.Ranges), "range")))
		a.printRanges("  ", h.Ranges)
	}
	verdict := "no damage"
	if len(report.Damage) > 0 {
		verdict = counted(len(report.Damage), "fault")
	}
	how := "structure checked; --read-data verifies every byte too"
	if report.ReadData {
		how = "every stored byte read and verified"
	}
	return a.println(fmt.Sprintf("%s: %s, %s, %s, %s (%s)", verdict, counted(report.Points, "point"),
		counted(report.Packs, "pack"), counted(report.Chunks, "chunk"), humanSize(report.Bytes), how))
}
