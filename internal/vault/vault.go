// Package vault stores recovery points, encrypted and deduplicated, in a [blob.Store].
//
// A disk is cut into fixed, aligned chunks, each stored once however many points and machines hold it; a radix tree per disk
// says which chunks it is made of; a sealed manifest per point names the trees. Every point is a full: any may be deleted, in any
// order, and what is left is whole. Nothing is changed in place. The manifest is the commit: it is written last, after everything it needs
// is durable, so that a point that was acknowledged survives power loss, and one that was not leaves only garbage behind.
//
// Any number of sessions and readers, of any number of processes, may work on a vault at once; they are known to
// garbage collection by their leases. docs/design/ordering.md has the table. A [Vault] is safe for concurrent use; a
// [Session] too.
package vault

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/keys"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// Errors that callers decide by.
var (
	ErrNotVault  = errors.New("not a vault")
	ErrWrongKey  = errors.New("the key does not open this vault")
	ErrNewer     = errors.New("the vault was written by a newer version")
	ErrExists    = errors.New("a vault exists here already")
	ErrNoPoint   = errors.New("no such recovery point")
	ErrAmbiguous = errors.New("several recovery points match")
	ErrCorrupt   = errors.New("stored data is damaged")
	ErrBusy      = errors.New("another process is working on the vault")
	ErrLastKey   = errors.New("the last key cannot be removed")
	ErrLeaseLost = errors.New("the session was taken for dead and its lease was broken")
)

// Key opens or seals a vault.
type Key = keys.Key

// Options tunes an open vault. The zero value of each field is its default.
type Options struct {
	Workers     int    // goroutines that hash, compress and seal, or open and write; 0 means one per CPU
	Compression string // of new chunks: "fast" (or ""), "dense" or "none"
	NoLease     bool   // take no lease as a reader: for stores that cannot be written
	PackSize    int64  // bytes at which a data pack is full; 0 means 64 MiB
}

// processors is how many the process may use. Whoever raises GOMAXPROCS later means threads that are in C, not more workers.
var processors = runtime.GOMAXPROCS(0)

func (o Options) withDefaults() Options {
	if o.Workers <= 0 {
		o.Workers = max(processors, 1)
	}
	if o.PackSize <= 0 {
		o.PackSize = 64 << 20
	}
	return o
}

// Vault is an open vault.
type Vault struct {
	store   blob.Store
	opts    Options
	level   chunk.Level
	conf    config
	id      [16]byte
	dataKey keys.DataKey
	sec     secrets
	packs   *pack.Secret
	reader  *pack.Reader
	index   *index.Index
	nodes   *nodeCache
	known   knownPoints
	lists   pointLists
	wider   singleflight.Group // of lookWider
}

// Open opens the vault in s with key. It returns ErrNotVault, ErrNewer, ErrWrongKey or ErrCorrupt.
func Open(ctx context.Context, s blob.Store, key Key, o Options) (*Vault, error) {
	level, err := chunk.ParseLevel(o.Compression)
	if err != nil {
		return nil, err
	}
	c, err := readConfig(ctx, s)
	if err != nil {
		return nil, err
	}
	v := &Vault{store: s, opts: o.withDefaults(), level: level, conf: *c, nodes: newNodeCache()}
	if _, err := hex.Decode(v.id[:], []byte(c.ID)); err != nil {
		return nil, fmt.Errorf("%w: vault ID: %v", ErrCorrupt, err)
	}
	if v.dataKey, err = unlock(ctx, s, key); err != nil {
		return nil, err
	}
	if v.sec, err = derive(v.dataKey, v.id); err != nil {
		return nil, err
	}
	if c.mac(v.sec.config) != c.MAC {
		return nil, fmt.Errorf("%w: %s is not as it was written", ErrCorrupt, configName)
	}
	v.packs = pack.NewSecret(v.sec.packs)
	v.reader = pack.NewReader(v.packs, s)
	if v.index, err = index.Open(ctx, index.Source{Store: s, Secret: v.packs, Vault: v.id}); err != nil {
		return nil, err
	}
	return v, nil
}

// unlock tries key on every slot.
func unlock(ctx context.Context, s blob.Store, key Key) (keys.DataKey, error) {
	slots, bad, err := readSlots(ctx, s)
	if err != nil {
		return keys.DataKey{}, err
	}
	for _, slot := range slots {
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

// readSlots returns the readable key slots, and what is wrong with the others.
func readSlots(ctx context.Context, s blob.Store) (slots []*keys.Slot, bad []string, err error) {
	for info, err := range s.List(ctx, keysPrefix, "") {
		if err != nil {
			return nil, nil, fmt.Errorf("list keys: %w", err)
		}
		raw, err := blob.Get(ctx, s, info.Name)
		if err != nil {
			return nil, nil, fmt.Errorf("read key %s: %w", info.Name, err)
		}
		var slot keys.Slot
		if err := json.Unmarshal(raw, &slot); err != nil || slot.Format != keys.Format || keysPrefix+slot.Name != info.Name {
			bad = append(bad, fmt.Sprintf("key slot %s is damaged", info.Name))
			continue
		}
		slots = append(slots, &slot)
	}
	return slots, bad, nil
}

// Close ends the use of the vault. Nothing has to be released today, and it returns nil; it is called
// so that a vault that keeps something open can be closed. Sessions must have ended.
func (v *Vault) Close() error { return nil }

// ID returns the vault's ID, 32 hexadecimal digits.
func (v *Vault) ID() string { return v.conf.ID }

// ShortID returns the first 8 digits of the ID.
func (v *Vault) ShortID() string { return v.conf.ID[:8] }

// ChunkSize returns the size of a chunk in bytes.
func (v *Vault) ChunkSize() int { return v.conf.ChunkSize }

// KeyInfo describes a key slot.
type KeyInfo struct {
	Name      string    `json:"name"`
	Kind      string    `json:"kind"` // "passphrase" or "age"
	Recipient string    `json:"recipient,omitempty"`
	Created   time.Time `json:"created"`
}

// Keys lists the key slots.
func (v *Vault) Keys(ctx context.Context) ([]KeyInfo, error) {
	slots, _, err := readSlots(ctx, v.store)
	if err != nil {
		return nil, err
	}
	out := make([]KeyInfo, 0, len(slots))
	for _, s := range slots {
		out = append(out, KeyInfo{Name: s.Name, Kind: s.Kind, Recipient: s.Recipient, Created: s.Created})
	}
	return out, nil
}

// AddKey lets another key open the vault.
func (v *Vault) AddKey(ctx context.Context, k NamedKey) error {
	return putSlot(ctx, v.store, v.dataKey, k)
}

// RemoveKey removes a slot. The last one is refused with ErrLastKey. Who has had the key may have kept the data key: removing it keeps out only those
// who have not opened the vault before.
func (v *Vault) RemoveKey(ctx context.Context, name string) error {
	slots, _, err := readSlots(ctx, v.store)
	if err != nil {
		return err
	}
	found := false
	for _, s := range slots {
		found = found || s.Name == name
	}
	if !found {
		return fmt.Errorf("remove key %q: there is no key of this name", name)
	}
	if len(slots) == 1 {
		return fmt.Errorf("remove key %s: %w", name, ErrLastKey)
	}
	if err := v.store.Delete(ctx, keysPrefix+name); err != nil {
		return fmt.Errorf("remove key %s: %w", name, err)
	}
	return nil
}

// Info is a summary of what is stored.
type Info struct {
	ID          string    `json:"id"`
	Format      string    `json:"format"`
	ChunkSize   int       `json:"chunk_size"` // bytes
	Created     time.Time `json:"created"`
	Points      int       `json:"points"`
	Packs       int       `json:"packs"`
	StoredBytes int64     `json:"stored_bytes"`  // of all objects
	LogicalSize int64     `json:"logical_bytes"` // used bytes of all disks of all points
	Keys        int       `json:"keys"`
}

// Info sums up the vault.
func (v *Vault) Info(ctx context.Context) (Info, error) {
	info := Info{ID: v.conf.ID, Format: v.conf.Format, ChunkSize: v.conf.ChunkSize, Created: v.conf.Created}
	for o, err := range v.store.List(ctx, "", "") {
		if err != nil {
			return info, fmt.Errorf("list objects: %w", err)
		}
		if o.Name != reserveName {
			info.StoredBytes += o.Size
		}
		switch {
		case strings.HasPrefix(o.Name, keysPrefix):
			info.Keys++
		case strings.HasPrefix(o.Name, "data/"), strings.HasPrefix(o.Name, "meta/"):
			info.Packs++
		}
	}
	points, err := v.Summaries(ctx, nil)
	if err != nil {
		return info, err
	}
	info.Points = len(points)
	for _, p := range points {
		for _, d := range p.Disks {
			info.LogicalSize += d.Used
		}
	}
	return info, nil
}
