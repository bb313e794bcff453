package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/keys"
)

const keysPrefix = "keys/"

// slots are the key slots of a store.
type slots struct {
	good []*keys.Slot
	bad  []string // what is wrong with others
}

// slotName returns the object of a slot. It has the vault in it: what an Init that lost or died has
// left is none of this vault's.
func slotName(vault, name string) string { return keysPrefix + vault[:8] + "-" + name }

// readSlots returns the slots that lie in a store.
func readSlots(ctx context.Context, s blob.Store) (out slots, err error) {
	var names []string
	for name, err := range blob.Names(ctx, s, keysPrefix, "") {
		if err != nil {
			return out, fmt.Errorf("list keys: %w", err)
		}
		names = append(names, name)
	}
	read, bad := make([]*keys.Slot, len(names)), make([]error, len(names))
	var g errgroup.Group
	g.SetLimit(16)
	for i, name := range names {
		g.Go(func() error { read[i], bad[i] = readSlot(ctx, s, name); return nil })
	}
	_ = g.Wait() // errors are in bad
	for i := range names {
		switch {
		case errors.Is(bad[i], ErrCorrupt):
			out.bad = append(out.bad, bad[i].Error())
		case errors.Is(bad[i], blob.ErrNotExist): // removed since it was listed
		case bad[i] != nil:
			return out, bad[i]
		default:
			out.good = append(out.good, read[i])
		}
	}
	return out, nil
}

func readSlot(ctx context.Context, s blob.Store, name string) (*keys.Slot, error) {
	raw, err := blob.Read(ctx, s, name, maxConfig)
	if errors.Is(err, blob.ErrTooLarge) {
		return nil, fmt.Errorf("%w: key slot %s is larger than one can be", ErrCorrupt, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", name, err)
	}
	var slot keys.Slot
	if json.Unmarshal(raw, &slot) != nil || slot.Format != keys.Format || !strings.HasSuffix(name, "-"+slot.Name) {
		return nil, fmt.Errorf("%w: key slot %s does not read as one", ErrCorrupt, name)
	}
	slot.Vault, _, _ = strings.Cut(strings.TrimPrefix(name, keysPrefix), "-")
	return &slot, nil
}

// of leaves out the slots of other vaults.
func (s slots) of(vault string) (out slots) {
	out.bad = s.bad
	for _, slot := range s.good {
		if slot.Vault == vault[:8] {
			out.good = append(out.good, slot)
		}
	}
	return out
}

// unlock tries key on every slot.
func (s slots) unlock(key Key) (keys.DataKey, error) {
	bad := s.bad
	for _, slot := range s.good {
		dk, err := slot.Open(key)
		if err == nil {
			return dk, nil
		}
		if !errors.Is(err, keys.ErrNoMatch) {
			bad = append(bad, err.Error())
		}
	}
	if len(bad) > 0 {
		return keys.DataKey{}, fmt.Errorf("%w (%s)", ErrWrongKey, strings.Join(bad, "; "))
	}
	return keys.DataKey{}, ErrWrongKey
}

func putSlot(ctx context.Context, s blob.Store, vault string, dk keys.DataKey, k NamedKey) error {
	if !validKeyName(k.Name) {
		return fmt.Errorf("key name %q is not made of 1 to 64 of a-z, 0-9, . _ -", k.Name)
	}
	slot, err := keys.Seal(dk, k.Name, k.Key, time.Now())
	if err != nil {
		return fmt.Errorf("add key %s: %w", k.Name, err)
	}
	raw, err := json.MarshalIndent(slot, "", "  ")
	if err != nil {
		return err
	}
	err = blob.Put(ctx, s, slotName(vault, k.Name), append(raw, '\n'))
	if errors.Is(err, blob.ErrExist) {
		return fmt.Errorf("add key %s: a key of this name exists", k.Name)
	}
	if err != nil {
		return fmt.Errorf("add key %s: %w", k.Name, err)
	}
	return nil
}

func validKeyName(name string) bool {
	return name != "" && len(name) <= 64 && name != "." && name != ".." &&
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") == ""
}

// KeyInfo describes a key slot.
type KeyInfo struct {
	Name      string    `json:"name"`
	Kind      string    `json:"kind"` // "passphrase" or "age"
	Recipient string    `json:"recipient,omitempty"`
	Created   time.Time `json:"created"`
}

func (v *Vault) slots(ctx context.Context) (slots, error) {
	all, err := readSlots(ctx, v.store)
	return all.of(v.ID()), err
}

// Keys lists the key slots.
func (v *Vault) Keys(ctx context.Context) ([]KeyInfo, error) {
	slots, err := v.slots(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]KeyInfo, 0, len(slots.good))
	for _, s := range slots.good {
		out = append(out, KeyInfo{Name: s.Name, Kind: s.Kind, Recipient: s.Recipient, Created: s.Created})
	}
	return out, nil
}

// AddKey lets another key open the vault.
func (v *Vault) AddKey(ctx context.Context, k NamedKey) error {
	if err := v.writable(); err != nil {
		return err
	}
	return putSlot(ctx, v.store, v.ID(), v.dataKey, k)
}

// RemoveKey removes a slot. The last one is refused with ErrLastKey. Who has had the key may have
// kept the data key: removing it keeps out only those who have not opened the vault before.
func (v *Vault) RemoveKey(ctx context.Context, name string) error {
	if err := v.writable(); err != nil {
		return err
	}
	slots, err := v.slots(ctx)
	if err != nil {
		return err
	}
	found := false
	for _, s := range slots.good {
		found = found || s.Name == name
	}
	if !found {
		return fmt.Errorf("remove key %q: there is no key of this name", name)
	}
	if len(slots.good) == 1 {
		return fmt.Errorf("remove key %s: %w", name, ErrLastKey)
	}
	slot, err := blob.Read(ctx, v.store, slotName(v.ID(), name), maxConfig)
	if err != nil {
		return fmt.Errorf("remove key %s: %w", name, err)
	}
	if err := v.store.Delete(ctx, slotName(v.ID(), name)); err != nil {
		return fmt.Errorf("remove key %s: %w", name, err)
	}
	return v.keepOne(ctx, name, slot)
}

// keepOne puts a slot back that was removed, if it was the last: another may have been removed at
// the same time.
func (v *Vault) keepOne(ctx context.Context, name string, slot []byte) error {
	left, err := v.slots(ctx)
	if err == nil && len(left.good) > 0 {
		return nil
	}
	if putErr := blob.Put(ctx, v.store, slotName(v.ID(), name), slot); putErr != nil &&
		!errors.Is(putErr, blob.ErrExist) {
		return fmt.Errorf("put key %s back, the last: %w", name, errors.Join(putErr, err))
	}
	if err != nil {
		return fmt.Errorf("remove key %s: see whether it was the last: %w", name, err)
	}
	return fmt.Errorf("remove key %s: %w", name, ErrLastKey)
}
