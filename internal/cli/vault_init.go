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

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/open"
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
	Print       string `json:"fingerprint"`        // of its data key
	Vault       string `json:"vault"`              // its address
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
		use: "init [flags] DIR|URI", short: "Make a new vault in an empty or new directory", args: cobra.ExactArgs(1),
		long: `
The vault gets two keys: the everyday key, and a recovery key that is written to a
file to be printed. The everyday key is, in this order:

  --key-file FILE         the age identity or passphrase in FILE; if there is no such
                          file, a fresh identity is written to it
  --passphrase-file FILE  the passphrase in FILE (also HOLDFAST_PASSPHRASE)
  none of them            a fresh identity in ~/.config/holdfast/, found again by itself

A key file that is made says which vault it is for, in comments: it opens no other vault
that somebody puts in its place.

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
	err := a.printFields([2]string{"vault", made.Vault}, [2]string{"id", made.ID},
		[2]string{"fingerprint", made.Print}, [2]string{"key", key}, [2]string{"recovery key", made.RecoveryKey})
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(a.env.Stdout, losingKeys)
	return err
}

// createVault makes the vault. Every key is durable before the vault is, and whatever was written
// for a vault that could not be made is removed again.
func (a *app) createVault(ctx context.Context, address string, flags initFlags) (made Created, err error) {
	at, err := open.Parse(address)
	if err != nil {
		return made, err
	}
	chunk, err := parseChunkSize(flags.chunk)
	if err != nil {
		return made, err
	}
	if err := requireEmpty(ctx, at); err != nil {
		return made, err
	}
	var secrets secrets
	defer func() {
		if err != nil {
			secrets.remove()
		}
	}()
	keys, err := a.initialKeys(&secrets, at, flags)
	if err != nil {
		return made, err
	}
	known, err := initStore(ctx, at, vault.InitOptions{ChunkSize: chunk, Keys: keys})
	if err != nil {
		return made, err
	}
	a.rememberNew(at, known)
	made = Created{ID: known.ID, Print: known.Print, Vault: at.String(), ChunkSize: 64 << 10}
	if chunk > 0 {
		made.ChunkSize = chunk
	}
	if err := secrets.settle(a, known, &made); err != nil {
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

// requireEmpty returns an error unless nothing is at an address but, perhaps, an empty store.
func requireEmpty(ctx context.Context, at open.Address) error {
	empty, err := isEmpty(ctx, at)
	if err != nil || empty {
		return err
	}
	if store, err := at.Open(ctx); err == nil {
		defer blob.Close(store)
		if _, err := vault.Peek(ctx, store); err == nil || errors.Is(err, vault.ErrNewer) {
			return vault.ErrExists
		}
	}
	return withHint(errors.New("the directory is not empty"), "nothing was changed; choose a new or an empty directory")
}

// isEmpty reports whether nothing is at an address: in a directory no file at all.
func isEmpty(ctx context.Context, at open.Address) (bool, error) {
	if path := at.Dir(); path != "" {
		entries, err := os.ReadDir(path)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		return err == nil && len(entries) == 0, err
	}
	store, err := at.Open(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer blob.Close(store)
	for _, err := range blob.Names(ctx, store, "", "") {
		return false, err
	}
	return true, nil
}

// initStore makes the vault and returns what to remember of it. If that fails, a directory that was
// not there before is removed.
func initStore(ctx context.Context, at open.Address, o vault.InitOptions) (known vault.Known, err error) {
	if path := at.Dir(); path != "" {
		if _, statErr := os.Stat(path); errors.Is(statErr, fs.ErrNotExist) {
			defer func() {
				if err != nil {
					os.RemoveAll(path)
				}
			}()
		}
	}
	store, err := at.Create(ctx)
	if err != nil {
		return known, err
	}
	defer blob.Close(store)
	id, err := vault.Init(ctx, store, o)
	if err != nil {
		return known, err
	}
	return knownOf(ctx, store, id, o.Keys[0].Key), nil
}

// knownOf returns what is to be remembered of a vault that was just made: at least its ID, for it
// is there.
func knownOf(ctx context.Context, store blob.Store, id string, key vault.Key) vault.Known {
	v, err := vault.Open(ctx, store, key, vault.Options{})
	if err != nil {
		return vault.Known{ID: id}
	}
	defer v.Close()
	known, err := v.Known(ctx)
	if err != nil {
		return vault.Known{ID: id, Print: v.Print()}
	}
	return known
}

// initialKeys returns the keys of a new vault: everyday, recovery, recipients. Fresh ones have been
// written to files.
func (a *app) initialKeys(s *secrets, at open.Address, flags initFlags) ([]vault.NamedKey, error) {
	everyday, err := a.everydayKey(s)
	if err != nil {
		return nil, err
	}
	recovery, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	if err := a.stageRecovery(s, recovery, at.String(), flags.recovery); err != nil {
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
			key, err := readKeyFile(source.file)
			return key.Key, err
		}
	} else if source != (keySource{}) {
		key, err := source.read()
		return key.Key, err
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
