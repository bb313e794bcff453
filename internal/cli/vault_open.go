package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/open"
	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// withVault runs do with the vault that was asked for open.
func (a *app) withVault(ctx context.Context, do func(v *vault.Vault) error) error {
	return a.withStore(ctx, func(v *vault.Vault, _ blob.Store) error { return do(v) })
}

// withStore is withVault for those who look after the vault's store too.
func (a *app) withStore(ctx context.Context, do func(v *vault.Vault, store blob.Store) error) error {
	return a.atStore(ctx, func(at open.Address, store blob.Store) error {
		v, err := a.unlockVault(ctx, at, store)
		if err != nil {
			return fmt.Errorf("open vault %s: %w", at, err)
		}
		err = do(v, store)
		a.remember(ctx, at, v)
		return errors.Join(err, v.Close())
	})
}

// atStore runs do with the store open that was asked for.
func (a *app) atStore(ctx context.Context, do func(at open.Address, store blob.Store) error) error {
	at, err := a.vaultAddress()
	if err != nil {
		return err
	}
	store, err := openStore(ctx, at)
	if err != nil {
		return fmt.Errorf("open vault %s: %w", at, err)
	}
	defer blob.Close(store)
	for _, concern := range blob.Concerns(store) {
		a.remark("warning: %s", concern)
	}
	return do(at, store)
}

// vaultAddress returns where the vault is that was asked for.
func (a *app) vaultAddress() (open.Address, error) {
	given := a.vaultPath()
	if given == "" {
		return open.Address{}, errNoVault()
	}
	return open.Parse(given)
}

func errNoVault() error {
	return withHint(usagef("no vault was given"), "give --vault DIR|URI or set HOLDFAST_VAULT")
}

func openStore(ctx context.Context, at open.Address) (blob.Store, error) {
	store, err := at.Open(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist) && at.Dir() != "", errors.Is(err, syscall.ENOTDIR):
		return nil, fmt.Errorf("there is no such directory: %w", vault.ErrNotVault)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no such store: %w", vault.ErrNotVault)
	}
	return store, err
}

// unlockVault opens the vault in a store, which must be the one that was there before.
func (a *app) unlockVault(ctx context.Context, at open.Address, store blob.Store) (*vault.Vault, error) {
	earlier, err := a.earlier()
	if err != nil {
		return nil, err
	}
	id, err := vault.Peek(ctx, store)
	if err != nil {
		return nil, err
	}
	key, err := a.key(ctx, id)
	if err != nil {
		return nil, err
	}
	known := a.expected(at)
	v, err := vault.Open(ctx, store, key.Key, vault.Options{Compression: a.compression, Known: known, At: earlier,
		ReadOnly: earlier != nil || blob.ReadOnly(store)})
	if err != nil {
		return nil, err
	}
	if err := key.pins.check(v.ID(), v.Print()); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	if known == nil { // it may be killed before it ends
		a.remember(ctx, at, v)
	}
	return v, nil
}

// earlier returns the entry as of which the vault is to be shown, nil for now.
func (a *app) earlier() (*log.Position, error) {
	if a.at == "" {
		return nil, nil
	}
	p, ok := log.ParsePosition(a.at)
	if !ok {
		return nil, withHint(usagef("--at: %q is no entry such as 0.17", a.at),
			"`holdfast vault log` lists the entries")
	}
	return &p, nil
}
