package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) keyCommands() *cobra.Command {
	return noun("key", "List, add and remove the keys of a vault", a.keyList(), a.keyAdd(), a.keyRemove())
}

func (a *app) keyList() *cobra.Command {
	return command{
		use: "list", short: "List the keys that open a vault", args: cobra.NoArgs,
		statuses: vaultStatuses,
		examples: "holdfast --vault /srv/vault vault key list",
		run: func(cmd *cobra.Command, _ []string) error {
			return a.withVault(cmd.Context(), func(v *vault.Vault) error {
				keys, err := v.Keys(cmd.Context())
				if err != nil {
					return fmt.Errorf("list the keys of vault %s: %w", v.ShortID(), err)
				}
				if a.json {
					return a.printJSON(orEmpty(keys))
				}
				var rows [][]string
				for _, k := range keys {
					rows = append(rows, []string{k.Name, k.Kind, humanTime(k.Created), k.Recipient})
				}
				return a.printTable([]string{"name", "kind", "created", "recipient"}, rows)
			})
		},
	}.build()
}

type keyAddFlags struct{ name, file, passphraseFile, recipient string }

func (a *app) keyAdd() *cobra.Command {
	var flags keyAddFlags
	cmd := command{
		use:   "add --name NAME (--new-key-file FILE | --new-passphrase-file FILE | --recipient AGE)",
		short: "Add a key that opens a vault",
		args:  cobra.NoArgs,
		long: `
With --new-key-file the age identity or passphrase in FILE is added; if there is no such
file, a fresh identity is written to it.`,
		examples: `
holdfast --vault /srv/vault vault key add --name night --new-key-file /root/night.key
holdfast --vault /srv/vault vault key add --name alice --recipient age1…`,
		statuses: vaultStatuses,
		run: func(cmd *cobra.Command, _ []string) error {
			if err := flags.check(); err != nil {
				return err
			}
			return a.withVault(cmd.Context(), func(v *vault.Vault) error {
				if err := a.addKey(cmd.Context(), v, flags); err != nil {
					return fmt.Errorf("add key %q to vault %s: %w", flags.name, v.ShortID(), err)
				}
				if a.json {
					return a.printJSON(map[string]string{"added": flags.name})
				}
				return a.println("added key " + flags.name)
			})
		},
	}.build()
	f := cmd.Flags()
	f.StringVar(&flags.name, "name", "", "`name` of the new key")
	f.StringVar(&flags.file, "new-key-file", "", "`file` with the new key, made if absent")
	f.StringVar(&flags.passphraseFile, "new-passphrase-file", "", "`file` with the new passphrase")
	f.StringVar(&flags.recipient, "recipient", "", "age `recipient`, age1…")
	return cmd
}

func (k keyAddFlags) check() error {
	if k.name == "" {
		return usagef("vault key add: --name is missing")
	}
	given := 0
	for _, s := range []string{k.file, k.passphraseFile, k.recipient} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return usagef("vault key add: give one of --new-key-file, --new-passphrase-file, --recipient")
	}
	return nil
}

func (a *app) addKey(ctx context.Context, v *vault.Vault, flags keyAddFlags) (err error) {
	var s secrets
	defer func() {
		if err != nil {
			s.remove()
		}
	}()
	key, err := a.newKey(&s, flags)
	if err != nil {
		return err
	}
	if err := v.AddKey(ctx, vault.NamedKey{Name: flags.name, Key: key}); err != nil {
		return err
	}
	if flags.file != "" {
		known := vault.Known{ID: v.ID(), Print: v.Print()}
		if err := pinKeyFile(flags.file, known, len(s.files) > 0); err != nil {
			a.remark("warning: the key file does not say which vault it is for: %v", err)
		}
	}
	return nil
}

func (a *app) newKey(s *secrets, flags keyAddFlags) (vault.Key, error) {
	switch {
	case flags.recipient != "":
		return vault.Key{Recipient: flags.recipient}, nil
	case flags.passphraseFile != "":
		key, err := readPassphraseFile(flags.passphraseFile)
		return key.Key, err
	}
	if _, err := os.Stat(flags.file); !errors.Is(err, os.ErrNotExist) {
		key, err := readKeyFile(flags.file)
		return key.Key, err
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return vault.Key{}, err
	}
	if err := s.write(flags.file, identityText(id, a.env.Now())); err != nil {
		return vault.Key{}, fmt.Errorf("write key file: %w", err)
	}
	return vault.Key{Identity: id.String()}, nil
}

func (a *app) keyRemove() *cobra.Command {
	return command{
		use: "remove NAME", short: "Remove a key of a vault, but never the last one", args: cobra.ExactArgs(1),
		long: `
Whoever kept the key file can no longer open the vault with it. It does not undo what was
read before: to lock out somebody who may have copied the vault, make a new vault.`,
		examples: "holdfast --vault /srv/vault vault key remove night",
		statuses: vaultStatuses,
		run: func(cmd *cobra.Command, args []string) error {
			return a.withVault(cmd.Context(), func(v *vault.Vault) error {
				if err := v.RemoveKey(cmd.Context(), args[0]); err != nil {
					return fmt.Errorf("remove key %q of vault %s: %w", args[0], v.ShortID(), err)
				}
				if a.json {
					return a.printJSON(map[string]string{"removed": args[0]})
				}
				return a.println("removed key " + args[0])
			})
		},
	}.build()
}

// orEmpty makes a nil list an empty one, so that JSON shows [].
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
