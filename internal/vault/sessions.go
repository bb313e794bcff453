package vault

import (
	"context"

	"github.com/holdfast-vm/holdfast/internal/vault/session"
)

// What writers of a vault use of the room that writes.
type (
	Session    = session.Session    // writes the disks of one point
	DiskInput  = session.DiskInput  // a batch of changes to a disk
	DiskOutput = session.DiskOutput // what a batch made of a disk
)

// writable returns ErrReadOnly unless the vault may be written.
func (v *Vault) writable() error {
	if v.opts.ReadOnly || v.journal.Frozen() {
		return ErrReadOnly
	}
	return nil
}

// Begin starts a session. Machine says whose disks will be stored, "" if that does not matter: what
// a session of the same machine has stored that died is gone on from.
func (v *Vault) Begin(ctx context.Context, machine string) (*Session, error) {
	if err := v.writable(); err != nil {
		return nil, err
	}
	if err := v.ready(ctx); err != nil {
		return nil, err
	}
	return v.session.Begin(ctx, machine)
}
