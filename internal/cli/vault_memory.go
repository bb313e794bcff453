package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/holdfast-vm/holdfast/internal/blob/open"
	"github.com/holdfast-vm/holdfast/internal/remember"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// memory is where this host remembers the vaults that it has used; nowhere, where there is no
// place.
func (a *app) memory() remember.Memory {
	if dir := a.env.Getenv("HOLDFAST_MEMORY"); dir != "" {
		if full, err := filepath.Abs(dir); err == nil {
			dir = full
		}
		return remember.In(dir)
	}
	if os.Geteuid() == 0 {
		return remember.In("/var/lib/holdfast/vaults")
	}
	dir := a.env.Getenv("XDG_STATE_HOME")
	if home := a.env.Getenv("HOME"); dir == "" && home != "" {
		dir = filepath.Join(home, ".local", "state")
	}
	if dir == "" {
		return remember.Memory{}
	}
	return remember.In(filepath.Join(dir, "holdfast", "vaults"))
}

// expected returns what the vault at an address must be: what this host remembers, nil if it
// remembers nothing. A memory that does not read is none.
func (a *app) expected(at open.Address) *vault.Known {
	known, err := a.memory().Recall(at.String())
	if err != nil {
		a.remark("warning: %v; it is remembered anew", err)
	}
	return known
}

// remember notes what the vault is, as far as that can be noted: the command's success does not
// hang on it.
func (a *app) remember(ctx context.Context, at open.Address, v *vault.Vault) {
	if a.at != "" || ctx.Err() != nil {
		return
	}
	if k, err := v.Known(ctx); err == nil {
		_ = a.memory().Update(at.String(), k, a.env.Now())
	}
}

// rememberNew notes a vault that was just made, whatever was there before.
func (a *app) rememberNew(at open.Address, k vault.Known) {
	m := a.memory()
	if k.Print == "" || m.Replace(at.String(), k, a.env.Now()) != nil {
		_ = m.Forget(at.String())
	}
}

// changed reports whether an error says that a vault is not the one that was used before.
func changed(err error) bool {
	return errors.Is(err, vault.ErrChanged) || errors.Is(err, vault.ErrRolledBack)
}
