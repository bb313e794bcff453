package state

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state/tier"
)

// Keys are what checkpoints are read and written with.
type Keys struct {
	log  *log.Keys // authenticates what is open
	body [32]byte  // from which the key of each sealed object derives
}

// NewKeys derives the keys of a vault's checkpoints from its data key.
func NewKeys(dataKey [32]byte, vault [16]byte) (*Keys, error) {
	l, err := log.NewKeys(dataKey, vault)
	if err != nil {
		return nil, err
	}
	b, err := hkdf.Key(sha256.New, dataKey[:], vault[:], "holdfast vault v1 state", 32)
	if err != nil {
		return nil, fmt.Errorf("derive keys of checkpoints: %w", err)
	}
	return &Keys{log: l, body: [32]byte(b)}, nil
}

// Log returns the keys of the log.
func (k *Keys) Log() *log.Keys { return k.log }

// salt returns the salt of a folded object: who folds the same bytes takes the same, and nobody
// seals two texts under one key.
func (k *Keys) salt(c class, format string, plain []byte) (s log.Salt) {
	if c == open {
		sum := k.log.MAC(append([]byte(format), plain...))
		copy(s[:], sum[:])
		return s
	}
	h, err := blake3.NewKeyed(k.body[:])
	if err != nil {
		panic(err) // only a key of another length is refused
	}
	h.Write([]byte(format))
	h.Write(plain)
	copy(s[:], h.Sum(nil))
	return s
}

func (k *Keys) aead(salt log.Salt) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.body[:], salt[:], "holdfast state v1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive key of a checkpoint: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

var nonceZero [12]byte // each key seals one text only

const (
	partMagic  = "HFPART01"
	partHead   = 32
	maxPart    = 1 << 20  // bytes of a part as stored
	cacheBytes = 32 << 20 // of parts, about
	macSize    = 32
	tagSize    = 16
)

// parts stores and reads the parts of checkpoints, and remembers what it read.
type parts struct {
	store blob.Store
	keys  *Keys
	dry   bool // store nothing

	mu    sync.Mutex
	cache map[log.Salt][]tier.Row
	size  int
}

func newParts(s blob.Store, k *Keys) *parts {
	return &parts{store: s, keys: k, cache: map[log.Salt][]tier.Row{}}
}

// classed is a [tier.Store] of one class.
type classed struct {
	*parts
	class class
}

func (p *parts) of(c class) tier.Store { return classed{p, c} }

const partsPrefix = "state/"

func partName(p tier.Part) string {
	return fmt.Sprintf("%s%016x-%016x-%s", partsPrefix, p.To, p.From, hex.EncodeToString(p.Salt[:]))
}

// Put implements [tier.Store].
func (p classed) Put(ctx context.Context, from, to uint64, rows []tier.Row) (tier.Part, error) {
	plain := tier.Encode(from, to, rows)
	part := tier.Part{From: from, To: to, Salt: p.keys.salt(p.class, partMagic, plain)}
	raw, err := p.seal(part.Salt, plain)
	if err != nil {
		return part, err
	}
	part.Size = uint32(len(raw))
	if err := p.putObject(ctx, partName(part), raw); err != nil {
		return part, err
	}
	p.remember(part, rows)
	return part, nil
}

// putObject stores an object that whoever folds the same makes alike.
func (p *parts) putObject(ctx context.Context, name string, raw []byte) error {
	if p.dry {
		return nil
	}
	err := blob.Put(ctx, p.store, name, raw)
	if errors.Is(err, blob.ErrExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	return nil
}

func (p classed) seal(salt log.Salt, plain []byte) ([]byte, error) {
	raw := make([]byte, partHead, partHead+len(plain)+macSize)
	copy(raw, partMagic)
	raw[8] = byte(p.class)
	copy(raw[16:], salt[:])
	if p.class == open {
		raw = append(raw, plain...)
		mac := p.keys.log.MAC(raw)
		return append(raw, mac[:]...), nil
	}
	aead, err := p.keys.aead(salt)
	if err != nil {
		return nil, err
	}
	return aead.Seal(raw, nonceZero[:], plain, raw), nil
}

// Get implements [tier.Store].
func (p classed) Get(ctx context.Context, part tier.Part) ([]tier.Row, error) {
	p.mu.Lock()
	rows, ok := p.cache[part.Salt]
	p.mu.Unlock()
	if ok {
		return rows, nil
	}
	rows, err := p.read(ctx, part)
	if err == nil {
		p.remember(part, rows)
	}
	return rows, err
}

// read reads a part from the store.
func (p classed) read(ctx context.Context, part tier.Part) ([]tier.Row, error) {
	name := partName(part)
	raw, err := blob.Read(ctx, p.store, name, min(int(part.Size), maxPart))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	plain, err := p.open(part.Salt, raw)
	if err != nil {
		return nil, damaged(name, err)
	}
	rows, err := tier.Decode(plain, part.From, part.To)
	if err != nil {
		return nil, damaged(name, err)
	}
	return rows, nil
}

func (p classed) open(salt log.Salt, raw []byte) ([]byte, error) {
	if len(raw) < partHead+tagSize || string(raw[:8]) != partMagic || raw[8] != byte(p.class) ||
		log.Salt(raw[16:32]) != salt || [7]byte(raw[9:16]) != [7]byte{} {
		return nil, errors.New("its header is another's")
	}
	if p.class == sealed {
		aead, err := p.keys.aead(salt)
		if err != nil {
			return nil, err
		}
		return aead.Open(nil, nonceZero[:], raw[partHead:], raw[:partHead])
	}
	end := len(raw) - macSize
	if end < partHead || p.keys.log.MAC(raw[:end]) != log.Hash(raw[end:]) {
		return nil, errors.New("it does not authenticate")
	}
	return raw[partHead:end], nil
}

func (p *parts) remember(part tier.Part, rows []tier.Row) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.size > cacheBytes {
		clear(p.cache)
		p.size = 0
	}
	if _, ok := p.cache[part.Salt]; !ok {
		p.cache[part.Salt] = rows
		p.size += int(part.Size)
	}
}
