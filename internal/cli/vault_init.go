package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

const recoverySlot = "recovery"

const losingKeys = `
KEEP THE KEYS. Everything in this vault is encrypted. If all of its keys are lost, all
of its data is lost: nobody can bring it back, with any tool.

  1. Print the recovery key, store the paper apart from this machine.
  2. Then delete the file.
`

// Created is what vault init prints with --json.
type Created struct {
	ID          string `json:"id"`
	Vault       string `json:"vault"`
	KeyFile     string `json:"key_file,omitempty"` // "" where a passphrase opens the vault
	RecoveryKey string `json:"recovery_key"`
	ChunkSize   int    `json:"chunk_size"` // bytes
}

type initFlags struct {
	recovery   string
	recipients []string
	chunk      string
}

func (a *app) vaultInit() *cobra.Command {
	var flags initFlags
	cmd := command{
		use: "init [flags] DIR", short: "Make a new vault in an empty or new directory", args: cobra.ExactArgs(1),
		long: `
The vault gets two keys: the everyday key, and a recovery key that is written to a
file to be printed. The everyday key is, in this order:

  --key-file FILE         the age identity or passphrase in FILE; if there is no such
                          file, a fresh identity is written to it
  --passphrase-file FILE  the passphrase in FILE (also HOLDFAST_PASSPHRASE)
  none of them            a fresh identity in ~/.config/holdfast/, found again by itself

A directory that holds anything is left alone.`,
		examples: `
holdfast vault init /srv/vault
holdfast vault init --key-file /root/vault.key --recovery-key /root/print-me.txt /srv/vault
holdfast vault init --recipient age1… /srv/vault`,
		statuses: "5 unusable key",
		run: func(cmd *cobra.Command, args []string) error {
			made, err := a.createVault(cmd.Context(), args[0], flags)
			if err != nil {
				return fmt.Errorf("make vault %s: %w", args[0], err)
			}
			return a.printCreated(made)
		},
	}.build()
	cmd.Flags().StringVar(&flags.recovery, "recovery-key", "",
		"`file` to write the recovery key to (default: beside the key file)")
	cmd.Flags().StringArrayVar(&flags.recipients, "recipient", nil,
		"age `recipient` who may open the vault too; repeatable")
	cmd.Flags().StringVar(&flags.chunk, "chunk-size", "",
		"`size` of a chunk, a power of two from 16KiB to 1MiB (default 64KiB)")
	return cmd
}

func (a *app) printCreated(made Created) error {
	if a.json {
		return a.printJSON(made)
	}
	key := made.KeyFile
	if key == "" {
		key = "the passphrase that was given"
	}
	err := a.printFields([2]string{"vault", made.Vault}, [2]string{"id", made.ID}, [2]string{"key", key},
		[2]string{"recovery key", made.RecoveryKey})
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(a.env.Stdout, losingKeys)
	return err
}

// createVault makes the vault. Every key is durable before the vault is, and whatever was written
// for a vault that could not be made is removed again.
func (a *app) createVault(ctx context.Context, path string, flags initFlags) (made Created, err error) {
	full, err := filepath.Abs(path)
	if err != nil {
		return made, err
	}
	chunk, err := parseChunkSize(flags.chunk)
	if err != nil {
		return made, err
	}
	if err := requireEmpty(ctx, full); err != nil {
		return made, err
	}
	var secrets secrets
	defer func() {
		if err != nil {
			secrets.remove()
		}
	}()
	keys, err := a.initialKeys(&secrets, full, flags)
	if err != nil {
		return made, err
	}
	id, err := initStore(ctx, full, vault.InitOptions{ChunkSize: chunk, Keys: keys})
	if err != nil {
		return made, err
	}
	made = Created{ID: id, Vault: full, ChunkSize: 64 << 10}
	if chunk > 0 {
		made.ChunkSize = chunk
	}
	if err := secrets.settle(a, id, &made); err != nil {
		secrets.files = nil // the vault exists: never remove its keys
		return made, withHint(fmt.Errorf("the vault is made, but a key could not be put in its place: %w", err),
			"the recovery key is in %s; the key file, if one was made, is %s", secrets.recovery, secrets.everyday)
	}
	return made, nil
}

func parseChunkSize(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := parseSize(s)
	if err != nil {
		return 0, usagef("--chunk-size: %v", err)
	}
	if n < 16<<10 || n > 1<<20 || n&(n-1) != 0 {
		return 0, usagef("--chunk-size: %s is not a power of two from 16KiB to 1MiB", s)
	}
	return int(n), nil
}

// requireEmpty returns an error unless path is absent or an empty directory.
func requireEmpty(ctx context.Context, path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return nil
	}
	if store, err := dir.Open(path); err == nil {
		defer store.Close()
		if _, err := vault.Peek(ctx, store); err == nil || errors.Is(err, vault.ErrNewer) {
			return vault.ErrExists
		}
	}
	return withHint(errors.New("the directory is not empty"), "nothing was changed; choose a new or an empty directory")
}

// initStore makes the vault in path and returns its ID. If that fails, a directory that was not
// there before is removed.
func initStore(ctx context.Context, path string, o vault.InitOptions) (id string, err error) {
	if _, statErr := os.Stat(path); errors.Is(statErr, fs.ErrNotExist) {
		defer func() {
			if err != nil {
				os.RemoveAll(path)
			}
		}()
	}
	store, err := dir.Create(path)
	if err != nil {
		return "", err
	}
	defer store.Close()
	return vault.Init(ctx, store, o)
}

// initialKeys returns the keys of a new vault: everyday, recovery, recipients. Fresh ones have been
// written to files.
func (a *app) initialKeys(s *secrets, vaultDir string, flags initFlags) ([]vault.NamedKey, error) {
	everyday, err := a.everydayKey(s)
	if err != nil {
		return nil, err
	}
	recovery, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	if err := a.stageRecovery(s, recovery, vaultDir, flags.recovery); err != nil {
		return nil, fmt.Errorf("write the recovery key: %w", err)
	}
	keys := []vault.NamedKey{{Name: "default", Key: everyday},
		{Name: recoverySlot, Key: vault.Key{Recipient: recovery.Recipient().String()}}}
	for i, r := range flags.recipients {
		keys = append(keys, vault.NamedKey{Name: fmt.Sprintf("recipient-%d", i+1), Key: vault.Key{Recipient: r}})
	}
	return keys, nil
}

func (a *app) everydayKey(s *secrets) (vault.Key, error) {
	source, err := a.keySource()
	if err != nil {
		return vault.Key{}, err
	}
	if source.file != "" {
		if _, err := os.Stat(source.file); !errors.Is(err, fs.ErrNotExist) {
			s.everyday = source.file
			return readKeyFile(source.file)
		}
	} else if source != (keySource{}) {
		return source.read()
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return vault.Key{}, err
	}
	path := source.file
	if path == "" {
		if path, err = a.defaultKeyFile("new-" + string(point.NewID())); err != nil {
			return vault.Key{}, err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return vault.Key{}, err
		}
		s.defaultKey = true
	}
	s.everyday = path
	if err := s.write(path, identityText(id, a.env.Now())); err != nil {
		return vault.Key{}, fmt.Errorf("write key file %s: %w", path, err)
	}
	return vault.Key{Identity: id.String()}, nil
}
