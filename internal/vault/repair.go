package vault

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/repair"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// RepairOptions tunes Repair.
type RepairOptions struct {
	DryRun bool                             // only say what would be made
	Log    func(format string, args ...any) // progress in words; nil discards
}

// RepairReport says what Repair found, and made anew.
type RepairReport struct {
	repair.Report
	DryRun bool            `json:"dry_run"`
	Head   *log.Remembered `json:"-"` // where the log that was made begins to be believed; nil if the old one is
}

// Repair makes anew what can be derived, of a vault that nobody works on meanwhile: the index, a
// checkpoint, and where the log does not open any more the log itself, out of packs, entries and
// checkpoints that still read. Hosts that remember an entry of the old log notice, and have to
// accept the new one. It needs the configuration and a key.
func Repair(ctx context.Context, s blob.Store, key Key, o RepairOptions) (RepairReport, error) {
	r := RepairReport{DryRun: o.DryRun}
	v, err := repairable(ctx, s, key)
	if err != nil {
		return r, err
	}
	v.Log = o.Log
	if o.DryRun {
		r.Report, err = repair.Plan(ctx, v)
		return r, err
	}
	whole, err := refresh(ctx, s, key)
	if err != nil {
		return r, err
	}
	if whole {
		r.Report, err = repair.Plan(ctx, v)
		return r, errors.Join(err, dropIndex(ctx, s))
	}
	// The index goes first: it says up to which entry it knows all packs, and entries are counted
	// anew.
	if err := dropIndex(ctx, s); err != nil {
		return r, err
	}
	var head log.Remembered
	if r.Report, head, err = repair.Run(ctx, v); err != nil {
		return r, err
	}
	r.Head = &head
	return r, nil
}

// repairable opens as much of a vault as is needed to repair it.
func repairable(ctx context.Context, s blob.Store, key Key) (*repair.Vault, error) {
	h, err := readHead(ctx, s)
	if err != nil {
		return nil, err
	}
	c := h.config
	v := &repair.Vault{Store: s, Finds: findsOf}
	if _, err := hex.Decode(v.ID[:], []byte(c.ID)); err != nil {
		return nil, fmt.Errorf("%w: vault ID: %v", ErrCorrupt, err)
	}
	dk, err := h.slots.unlock(key)
	if err != nil {
		return nil, err
	}
	sec, err := derive(dk, v.ID)
	if err != nil {
		return nil, err
	}
	if c.mac(sec.config) != c.MAC {
		return nil, fmt.Errorf("%w: %s is not as it was written", ErrCorrupt, configName)
	}
	if v.Keys, err = state.NewKeys(dk, v.ID); err != nil {
		return nil, err
	}
	v.Secret = pack.NewSecret(sec.packs)
	v.Packs = pack.NewReader(v.Secret, s)
	return v, nil
}

// refresh stores a checkpoint of a vault whose log opens, and reports whether it does. Where the
// one that the present volume begins with does not read, it begins another volume.
func refresh(ctx context.Context, s blob.Store, key Key) (whole bool, err error) {
	v, err := Open(ctx, s, key, Options{})
	if errors.Is(err, ErrCorrupt) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer v.Close()
	rests := true
	err = v.journal.Log(ctx, func(l *log.Log, _ *state.State) error {
		if err := l.Confirm(ctx); err != nil {
			return err
		}
		c, err := l.Checkpoint(ctx)
		if err != nil {
			return err
		}
		if _, err := state.Verify(ctx, v.store, v.stKeys, c); err != nil {
			if err := v.foldAgain(ctx, l.Head().At, c); err != nil {
				return err
			}
		}
		begun, names, err := l.Begun(ctx)
		if err == nil && names {
			_, verifyErr := state.Verify(ctx, v.store, v.stKeys, begun)
			rests = verifyErr == nil
		}
		return err
	})
	if err == nil && !rests { // the next volume begins with a checkpoint that is whole
		err = v.journal.Roll(ctx)
	}
	if errors.Is(err, log.ErrDamaged) || errors.Is(err, blob.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// foldAgain makes the parts of a checkpoint anew that are gone or damaged, out of the entries of
// its volume.
func (v *Vault) foldAgain(ctx context.Context, at log.Position, want log.Checkpoint) error {
	st := state.New(v.store, v.stKeys, state.Options{})
	if _, err := log.Refold(ctx, v.store, v.stKeys.Log(), st, at); err != nil {
		return err
	}
	if _, err := st.Checkpoint(ctx); err != nil {
		return err
	}
	_, err := state.Verify(ctx, v.store, v.stKeys, want)
	return err
}

// dropIndex deletes the index, which the next who needs it makes anew.
func dropIndex(ctx context.Context, s blob.Store) error {
	for name, err := range blob.Names(ctx, s, "index/", "") {
		if err != nil {
			return fmt.Errorf("list the index: %w", err)
		}
		if err := s.Delete(ctx, name); err != nil {
			return fmt.Errorf("delete %s: %w", name, err)
		}
	}
	return nil
}
