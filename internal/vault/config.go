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
	"github.com/holdfast-vm/holdfast/internal/vault/keys"
)

const (
	configName   = "vault.json"
	keysPrefix   = "keys/"
	configFormat = "holdfast-vault-1"
	formatFamily = "holdfast-vault-"
)

// config is the object vault.json: what must be known before any key is.
type config struct {
	Format    string    `json:"format"`     // "holdfast-vault-1"; another version is another format
	ID        string    `json:"id"`         // 32 hexadecimal digits
	ChunkSize int       `json:"chunk_size"` // bytes
	Created   time.Time `json:"created"`
	MAC       string    `json:"mac"` // keyed BLAKE3 of the fields above, hexadecimal
}

// mac authenticates the configuration, so that nobody without the key can change what the vault believes of itself.
func (c *config) mac(key [32]byte) string {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // only a key of another length is refused
	}
	fmt.Fprintf(h, "%s\n%s\n%d\n%s\n", c.Format, c.ID, c.ChunkSize, c.Created.Format(time.RFC3339))
	return hex.EncodeToString(h.Sum(nil))
}

func readConfig(ctx context.Context, s blob.Store) (*config, error) {
	raw, err := blob.Get(ctx, s, configName)
	if errors.Is(err, blob.ErrNotExist) {
		return nil, fmt.Errorf("%w: it has no %s", ErrNotVault, configName)
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

// Peek returns the ID of the vault in s without a key. It returns ErrNotVault or ErrNewer as Open does.
func Peek(ctx context.Context, s blob.Store) (id string, err error) {
	c, err := readConfig(ctx, s)
	if err != nil {
		return "", err
	}
	return c.ID, nil
}

// secrets are the keys derived from the data key, each for one purpose.
type secrets struct{ chunks, nodes, packs, points, config [32]byte }

func derive(dk keys.DataKey, vault [16]byte) (s secrets, err error) {
	for purpose, out := range map[string]*[32]byte{"chunk id": &s.chunks, "node id": &s.nodes, "pack": &s.packs, "point": &s.points, "config": &s.config} {
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

// Init makes a vault in s, which must hold no vault, and returns its ID. The configuration is written last: until then there is no vault.
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
	if _, err := s.Stat(ctx, configName); err == nil {
		return "", ErrExists
	} else if !errors.Is(err, blob.ErrNotExist) {
		return "", fmt.Errorf("look for a vault: %w", err)
	}
	if err := sweepKeys(ctx, s); err != nil {
		return "", err
	}
	var id [16]byte
	rand.Read(id[:])
	dk := keys.NewDataKey()
	sec, err := derive(dk, id)
	if err != nil {
		return "", err
	}
	for _, k := range o.Keys {
		if err := putSlot(ctx, s, dk, k); err != nil {
			return "", err
		}
	}
	c := config{Format: configFormat, ID: hex.EncodeToString(id[:]), ChunkSize: o.ChunkSize, Created: time.Now().UTC().Truncate(time.Second)}
	c.MAC = c.mac(sec.config)
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return "", err
	}
	err = blob.Put(ctx, s, configName, append(raw, '\n'))
	if errors.Is(err, blob.ErrExist) {
		return "", ErrExists
	}
	if err != nil {
		return "", fmt.Errorf("write %s: %w", configName, err)
	}
	keepReserve(ctx, s)
	return c.ID, nil
}

// sweepKeys removes key slots that an Init which died left behind: they open nothing.
func sweepKeys(ctx context.Context, s blob.Store) error {
	for info, err := range s.List(ctx, keysPrefix, "") {
		if err != nil {
			return fmt.Errorf("list keys: %w", err)
		}
		if err := s.Delete(ctx, info.Name); err != nil {
			return fmt.Errorf("delete leftover key: %w", err)
		}
	}
	return nil
}

func putSlot(ctx context.Context, s blob.Store, dk keys.DataKey, k NamedKey) error {
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
	err = blob.Put(ctx, s, keysPrefix+k.Name, append(raw, '\n'))
	if errors.Is(err, blob.ErrExist) {
		return fmt.Errorf("add key %s: a key of this name exists", k.Name)
	}
	if err != nil {
		return fmt.Errorf("add key %s: %w", k.Name, err)
	}
	return nil
}

func validKeyName(name string) bool {
	if name == "" || len(name) > 64 || name == "." || name == ".." {
		return false
	}
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") == ""
}
