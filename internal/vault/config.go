package vault

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/zeebo/blake3"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/gc"
	"github.com/holdfast-vm/holdfast/internal/vault/keys"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

const (
	configName   = "vault.json"
	configFormat = "holdfast-vault-2"
	formatFamily = "holdfast-vault-"
	maxConfig    = 64 << 10 // bytes of the configuration, or of a key slot
)

// config is the object vault.json: what must be known before any key is.
type config struct {
	Format    string    `json:"format"`     // another version is another format
	ID        string    `json:"id"`         // 32 hexadecimal digits
	ChunkSize int       `json:"chunk_size"` // bytes
	Created   time.Time `json:"created"`
	MAC       string    `json:"mac"` // keyed BLAKE3 of the fields above, hexadecimal
}

// mac authenticates the configuration, so that nobody without the key can change what the vault
// believes of itself.
func (c *config) mac(key [32]byte) string {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // only a key of another length is refused
	}
	fmt.Fprintf(h, "%s\n%s\n%d\n%s\n", c.Format, c.ID, c.ChunkSize, c.Created.Format(time.RFC3339))
	return hex.EncodeToString(h.Sum(nil))
}

func readConfig(ctx context.Context, s blob.Store) (*config, error) {
	raw, err := blob.Read(ctx, s, configName, maxConfig)
	if errors.Is(err, blob.ErrNotExist) {
		return nil, fmt.Errorf("%w: it has no %s", ErrNotVault, configName)
	}
	if errors.Is(err, blob.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %s is larger than one can be", ErrCorrupt, configName)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", configName, err)
	}
	var c config
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("%w: %s is not readable: %v", ErrCorrupt, configName, err)
	}
	if c.Format != configFormat {
		if strings.HasPrefix(c.Format, formatFamily) {
			return nil, fmt.Errorf("%w: its format is %s, this program reads %s", ErrNewer, c.Format, configFormat)
		}
		return nil, fmt.Errorf("%w: its format is %q", ErrNotVault, c.Format)
	}
	if _, err := hex.DecodeString(c.ID); err != nil || len(c.ID) != 32 {
		return nil, fmt.Errorf("%w: %s names no vault ID", ErrCorrupt, configName)
	}
	if err := validChunkSize(c.ChunkSize); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	return &c, nil
}

func validChunkSize(n int) error {
	if n < chunk.MinSize || n > chunk.MaxSize || bits.OnesCount(uint(n)) != 1 {
		return fmt.Errorf("chunk size %d is not a power of two from %d to %d", n, chunk.MinSize, chunk.MaxSize)
	}
	return nil
}

// Peek returns the ID of the vault in s without a key. It returns ErrNotVault or ErrNewer as Open
// does.
func Peek(ctx context.Context, s blob.Store) (id string, err error) {
	c, err := readConfig(ctx, s)
	if err != nil {
		return "", err
	}
	return c.ID, nil
}

// secrets are the keys derived from the data key, each for one purpose.
type secrets struct{ chunks, nodes, packs, index, points, config, print [32]byte }

func derive(dk keys.DataKey, vault [16]byte) (s secrets, err error) {
	for purpose, out := range map[string]*[32]byte{"chunk id": &s.chunks, "node id": &s.nodes, "pack": &s.packs,
		"index": &s.index, "point": &s.points, "config": &s.config, "print": &s.print} {
		k, err := hkdf.Key(sha256.New, dk[:], vault[:], "holdfast vault v1 "+purpose, 32)
		if err != nil {
			return s, fmt.Errorf("derive keys: %w", err)
		}
		copy(out[:], k)
	}
	return s, nil
}

// InitOptions says what a new vault is like.
type InitOptions struct {
	ChunkSize int        // bytes, a power of two from 16 KiB to 1 MiB; 0 means 64 KiB
	Keys      []NamedKey // who can open it; at least one
}

// NamedKey is a key with the name by which its slot is listed and removed.
type NamedKey struct {
	Name string
	Key  keys.Key
}

// Init makes a vault in s, which must hold no vault, and returns its ID. Of several Inits at once
// the one whose log stands wins; the configuration is written last: until then there is no vault.
func Init(ctx context.Context, s blob.Store, o InitOptions) (string, error) {
	if o.ChunkSize == 0 {
		o.ChunkSize = chunk.DefaultSize
	}
	if err := validChunkSize(o.ChunkSize); err != nil {
		return "", err
	}
	if len(o.Keys) == 0 {
		return "", errors.New("a vault needs at least one key")
	}
	if err := requireNone(ctx, s); err != nil {
		return "", err
	}
	n := newVault{store: s, dataKey: keys.NewDataKey(), chunkSize: o.ChunkSize}
	rand.Read(n.id[:])
	n.hexID = hex.EncodeToString(n.id[:])
	if err := n.begin(ctx, o.Keys); err != nil {
		n.dropKeys(o.Keys)
		return "", err
	}
	// The keys stay from here on: a configuration whose put is in doubt may come to be there.
	if err := n.putConfig(ctx); err != nil {
		return "", err
	}
	_ = gc.KeepReserve(ctx, s) // the vault is made; the next collection keeps one
	return n.hexID, nil
}

func requireNone(ctx context.Context, s blob.Store) error {
	_, err := s.Stat(ctx, configName)
	if err == nil {
		return ErrExists
	}
	if !errors.Is(err, blob.ErrNotExist) {
		return fmt.Errorf("look for a vault: %w", err)
	}
	return nil
}

// newVault is a vault that is being made.
type newVault struct {
	store     blob.Store
	id        [16]byte
	hexID     string
	dataKey   keys.DataKey
	chunkSize int
}

// begin writes keys and log, in this order. The log is the first that two Inits meet at.
func (n *newVault) begin(ctx context.Context, ks []NamedKey) error {
	for _, k := range ks {
		if err := putSlot(ctx, n.store, n.hexID, n.dataKey, k); err != nil {
			return err
		}
	}
	return n.beginLog(ctx)
}

// putConfig writes the configuration: until it stands there is no vault.
func (n *newVault) putConfig(ctx context.Context) error {
	sec, err := derive(n.dataKey, n.id)
	if err != nil {
		return err
	}
	c := config{Format: configFormat, ID: n.hexID, ChunkSize: n.chunkSize,
		Created: time.Now().UTC().Truncate(time.Second)}
	c.MAC = c.mac(sec.config)
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	err = blob.Put(ctx, n.store, configName, append(raw, '\n'))
	if errors.Is(err, blob.ErrExist) { // only who has begun the log comes here: a put that was repeated
		return nil
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", configName, err)
	}
	return nil
}

func (n *newVault) beginLog(ctx context.Context) error {
	k, err := state.NewKeys(n.dataKey, n.id)
	if err != nil {
		return err
	}
	if err := log.Init(ctx, n.store, k.Log()); err != nil {
		return err
	}
	_, err = log.Open(ctx, n.store, k.Log(), state.New(n.store, k, state.Options{}), log.Options{})
	if errors.Is(err, log.ErrDamaged) {
		return fmt.Errorf("%w: another vault was begun here and is not finished. Wait for who makes it; "+
			"if nobody does, empty the store and make the vault again", ErrExists)
	}
	if err != nil {
		return fmt.Errorf("begin the vault's log: %w", err)
	}
	return nil
}

// dropKeys removes the slots of a vault that was not made: they open nothing.
func (n *newVault) dropKeys(ks []NamedKey) {
	for _, k := range ks {
		_ = n.store.Delete(context.Background(), slotName(n.hexID, k.Name)) // one that stays is in nobody's way
	}
}
