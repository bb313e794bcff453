package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) vaultCommands() *cobra.Command {
	return noun("vault", "Make and look after vaults",
		a.vaultInit(), a.vaultInfo(), a.vaultCheck(), a.vaultGC(), a.keyCommands())
}

// withVault runs do with the vault that was asked for open.
func (a *app) withVault(ctx context.Context, do func(v *vault.Vault) error) error {
	return a.withStore(ctx, func(v *vault.Vault, _ *dir.Store) error { return do(v) })
}

// withStore is withVault for those who look after the vault's directory too.
func (a *app) withStore(ctx context.Context, do func(v *vault.Vault, store *dir.Store) error) error {
	given := a.vaultPath()
	if given == "" {
		return errNoVault()
	}
	path, err := filepath.Abs(given)
	if err != nil {
		return err
	}
	store, err := openStore(path)
	if err != nil {
		return fmt.Errorf("open vault %s: %w", path, err)
	}
	defer store.Close()
	v, err := a.unlockVault(ctx, store)
	if err != nil {
		return fmt.Errorf("open vault %s: %w", path, err)
	}
	return errors.Join(do(v, store), v.Close())
}

func errNoVault() error {
	return withHint(usagef("no vault was given"), "give --vault DIR or set HOLDFAST_VAULT")
}

func openStore(path string) (*dir.Store, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && !info.IsDir()) {
		return nil, fmt.Errorf("there is no such directory: %w", vault.ErrNotVault)
	}
	if err != nil {
		return nil, err
	}
	return dir.Open(path)
}

func (a *app) unlockVault(ctx context.Context, store *dir.Store) (*vault.Vault, error) {
	id, err := vault.Peek(ctx, store)
	if err != nil {
		return nil, err
	}
	key, err := a.key(ctx, id)
	if err != nil {
		return nil, err
	}
	return vault.Open(ctx, store, key,
		vault.Options{Compression: a.compression, NoLease: unix.Access(store.Root(), unix.W_OK) != nil})
}

func (a *app) vaultInfo() *cobra.Command {
	return command{
		use: "info", short: "Show what a vault holds", args: cobra.NoArgs, statuses: "5 wrong key or not a vault",
		examples: "holdfast --vault /srv/vault vault info",
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
					[2]string{"format", info.Format},
					[2]string{"created", humanTime(info.Created)},
					[2]string{"chunk size", humanSize(int64(info.ChunkSize))},
					[2]string{"points", strconv.Itoa(info.Points)},
					[2]string{"protected", humanSize(info.LogicalSize) + " in the disks of all points"},
					[2]string{"stored", humanSize(info.StoredBytes) + " in " + counted(info.Packs, "pack")},
					[2]string{"keys", strconv.Itoa(info.Keys)},
				)
			})
		},
	}.build()
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
		statuses: "3 damage found, 5 wrong key or not a vault",
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

func (a *app) vaultGC() *cobra.Command {
	var dry bool
	cmd := command{
		use: "gc [--dry-run]", short: "Free the space of deleted points", args: cobra.NoArgs,
		long: `
Chunks that no point needs any more are deleted, and packs that hold few living chunks are
rewritten. Safe while backups run. What a session that still runs may count on is only
condemned now, and deleted by the next run.`,
		examples: `
holdfast --vault /srv/vault vault gc --dry-run
holdfast --vault /srv/vault vault gc`,
		statuses: "5 wrong key or not a vault",
		run: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(cmd.Context(), func(v *vault.Vault, store *dir.Store) error {
				return a.collectGarbage(cmd.Context(), v, store, dry)
			})
		},
	}.build()
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be done")
	return cmd
}

func (a *app) collectGarbage(ctx context.Context, v *vault.Vault, store *dir.Store, dry bool) error {
	report, err := v.CollectGarbage(ctx, vault.GCOptions{DryRun: dry, Log: a.remark})
	if err != nil {
		return fmt.Errorf("vault %s: %w", v.ShortID(), err)
	}
	if !dry {
		// Unfinished files of writers that were killed: no object, and so none of the vault's
		// business.
		swept, err := store.SweepTemp()
		if err != nil {
			return fmt.Errorf("remove unfinished files of vault %s: %w", v.ShortID(), err)
		}
		if swept > 0 {
			a.remark("removed %s that killed runs left unfinished", counted(swept, "file"))
		}
	}
	if a.json {
		return a.printJSON(report)
	}
	return a.printGC(report)
}

func (a *app) printGC(r vault.GCReport) error {
	freed, rewritten := "freed", "rewritten"
	if r.DryRun {
		freed, rewritten = "would be freed", "would be rewritten"
	}
	waiting := ""
	if r.WaitingPacks > 0 {
		waiting = fmt.Sprintf("%s in %s: deleted by a later run, when what began before has ended",
			humanSize(r.WaitingBytes),
			counted(r.WaitingPacks, "pack"))
		if len(r.WaitingFor) > 0 {
			waiting += " (" + strings.Join(r.WaitingFor, "; ") + ")"
		}
	}
	return a.printFields(
		[2]string{freed, fmt.Sprintf("%s, %s that nothing needs", humanSize(r.FreedBytes),
			counted(r.DeadPacks, "pack"))},
		[2]string{rewritten, fmt.Sprintf("%s of %s of which little is needed", humanSize(r.RewrittenBytes),
			counted(r.ThinPacks, "pack"))},
		[2]string{"needed", fmt.Sprintf("%s by %s", humanSize(r.LiveBytes), counted(r.Points, "point"))},
		[2]string{"waiting", waiting},
	)
}
