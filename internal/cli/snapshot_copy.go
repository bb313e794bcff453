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

func (a *app) snapshotCopy() *cobra.Command {
	var to, key string
	cmd := command{
		use: "copy SNAPSHOT --to-vault DIR|URI [--to-key-file FILE]", short: "Bring a snapshot into another vault",
		args: cobra.ExactArgs(1),
		long: snapshotArgHelp + `
Only what differs from what both vaults have is read, and only what the other vault lacks is
stored there. The copy has the same ID and needs nothing of this vault. Without
--to-key-file the key that is kept for that vault is taken, else the key of this one.`,
		examples: "holdfast --vault /srv/vault snapshot copy before-upgrade --to-vault /mnt/west/vault",
		statuses: vaultStatuses,
		run: func(cmd *cobra.Command, args []string) error {
			if to == "" {
				return usagef("snapshot copy: --to-vault is missing")
			}
			return a.copySnapshot(cmd.Context(), args[0], to, key)
		},
	}.build()
	cmd.Flags().StringVar(&to, "to-vault", "", "`DIR|URI` of the other vault")
	cmd.Flags().StringVar(&key, "to-key-file", "", "`file` with a key of the other vault")
	return cmd
}

func (a *app) copySnapshot(ctx context.Context, ref, to, key string) error {
	a.compresses()
	return a.withSnapshot(ctx, ref, func(from *vault.Vault, p *point.RecoveryPoint) error {
		return a.other(to, key).withOtherVault(ctx, a, func(target *vault.Vault) error {
			m := a.meter()
			report, err := snapshots.Copy(ctx, from, target, p, a.env.Now(), func(done, total int64) {
				m.Update("copy", done, total)
			})
			m.Close()
			if err != nil {
				return fmt.Errorf("copy snapshot %s to vault %s: %w", p.Name, target.ShortID(), err)
			}
			if a.json {
				return a.printJSON(report)
			}
			if report.There {
				return a.println(fmt.Sprintf("snapshot %s (%s) is in vault %s already", p.Name, p.ID.Short(),
					target.ShortID()))
			}
			return a.println(fmt.Sprintf("copied snapshot %s (%s) to vault %s: read %s, sent %s", p.Name, p.ID.Short(),
				target.ShortID(),
				humanSize(report.ReadBytes), humanSize(report.SentBytes)))
		})
	})
}

// other returns an app for another vault, which takes no key from the environment: that is this
// vault's.
func (a *app) other(vaultDir, keyFile string) *app {
	b := *a
	b.vaultDir, b.keyFile, b.passphraseFile, b.at = vaultDir, keyFile, "", ""
	b.env.Getenv = func(name string) string {
		if strings.HasPrefix(name, "HOLDFAST_KEY") || strings.HasPrefix(name, "HOLDFAST_PASSPHRASE") {
			return ""
		}
		return a.env.Getenv(name)
	}
	return &b
}

// withOtherVault opens the vault with the key that is given or kept for it, else with the key of
// the first.
func (b *app) withOtherVault(ctx context.Context, first *app, do func(v *vault.Vault) error) error {
	err := b.withVault(ctx, do)
	if b.keyFile != "" || !errors.Is(err, errNoKey) {
		return err
	}
	again := *first
	again.vaultDir, again.at = b.vaultDir, ""
	return again.withVault(ctx, do)
}
