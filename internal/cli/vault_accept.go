package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/open"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// Accepted is what vault accept prints with --json.
type Accepted struct {
	Vault      string     `json:"vault"` // where it is
	Remembered *VaultMark `json:"remembered,omitempty"`
	Found      VaultMark  `json:"found"`
	Differs    string     `json:"differs,omitempty"` // in words; nothing if it is the vault that was there before
	Accepted   bool       `json:"accepted"`          // what was found is remembered from now on
}

// VaultMark is what a vault is told by.
type VaultMark struct {
	ID    string `json:"id"`
	Print string `json:"fingerprint"`
	Entry string `json:"entry,omitempty"` // the newest that was seen, VOLUME.NUMBER
}

func markOf(k vault.Known) VaultMark {
	m := VaultMark{ID: k.ID, Print: k.Print}
	if k.Seen != nil {
		m.Entry = k.Seen.At.String()
	}
	return m
}

func (a *app) vaultAccept() *cobra.Command {
	var yes bool
	cmd := command{
		use: "accept [--yes]", short: "Show what became of a vault that is not the one it was, and accept it",
		args: cobra.NoArgs,
		long: `
A host remembers which vault stands at an address, the fingerprint of its data key and the
newest entry of its log. If another vault is there, or an older state of it, no other
command opens it: whoever can write to the store may have put it there. After an intended
change, such as a vault that was brought back from a copy, this command shows what was
remembered and what is there, and with --yes remembers that from now on.

A key file that names the vaults it is for is believed here too; change its lines by hand.`,
		examples: `
holdfast --vault /srv/vault vault accept
holdfast --vault /srv/vault vault accept --yes`,
		statuses: vaultStatuses,
		run: func(cmd *cobra.Command, _ []string) error {
			return a.atStore(cmd.Context(), func(at open.Address, store blob.Store) error {
				out, err := a.acceptVault(cmd.Context(), at, store, yes)
				if err != nil {
					return fmt.Errorf("look at vault %s: %w", at, err)
				}
				return a.printAccepted(out)
			})
		},
	}.build()
	cmd.Flags().BoolVar(&yes, "yes", false, "remember what is there from now on")
	return cmd
}

func (a *app) acceptVault(ctx context.Context, at open.Address, store blob.Store, yes bool) (Accepted, error) {
	out := Accepted{Vault: at.String()}
	known, err := a.memory().Recall(at.String())
	if err != nil {
		a.remark("warning: %v", err)
	}
	if known != nil {
		m := markOf(*known)
		out.Remembered = &m
	}
	v, differs, err := a.openAnyway(ctx, store, known)
	if err != nil {
		return out, err
	}
	found, err := v.Known(ctx)
	if err = errors.Join(err, v.Close()); err != nil {
		return out, err
	}
	out.Found = markOf(found)
	if differs != nil {
		out.Differs = oneLine(differs.Error())
	}
	if yes {
		out.Accepted = true
		err = a.memory().Replace(at.String(), found, a.env.Now())
	}
	return out, err
}

// openAnyway opens a vault whatever is remembered of it, and returns how it differs from that.
func (a *app) openAnyway(ctx context.Context, store blob.Store, known *vault.Known) (v *vault.Vault, differs,
	err error) {
	id, err := vault.Peek(ctx, store)
	if err != nil {
		return nil, nil, err
	}
	key, err := a.key(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	o := vault.Options{Known: known, ReadOnly: blob.ReadOnly(store)}
	v, err = vault.Open(ctx, store, key.Key, o)
	if changed(err) {
		differs, o.Known = err, nil
		v, err = vault.Open(ctx, store, key.Key, o)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := key.pins.check(v.ID(), v.Print()); err != nil {
		return nil, nil, errors.Join(err, v.Close())
	}
	return v, differs, nil
}

func (a *app) printAccepted(out Accepted) error {
	if a.json {
		return a.printJSON(out)
	}
	row := func(what string, m VaultMark) []string { return []string{what, m.ID, m.Print, m.Entry} }
	var rows [][]string
	if out.Remembered != nil {
		rows = append(rows, row("remembered", *out.Remembered))
	}
	rows = append(rows, row("found", out.Found))
	err := a.printTable([]string{"", "id", "fingerprint", "newest entry"}, rows)
	verdict := "it is the vault that was used before"
	switch {
	case out.Differs != "":
		verdict = out.Differs
	case out.Remembered == nil:
		verdict = "nothing was remembered of a vault there"
	}
	if out.Accepted {
		verdict += "; what was found is remembered from now on"
	} else if out.Differs != "" {
		verdict += "; nothing was changed: give --yes to accept what is there"
	}
	return errors.Join(err, a.println(verdict))
}
