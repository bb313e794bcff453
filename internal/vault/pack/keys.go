package pack

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Secret derives the keys of packs from the vault's data key. It is safe for concurrent use.
type Secret struct{ key [32]byte }

// NewSecret returns the Secret of a vault.
func NewSecret(key [32]byte) *Secret { return &Secret{key} }

// keys are those of one salt. They are safe for concurrent use.
type keys struct{ aead cipher.AEAD }

func (s *Secret) derive(salt log.Salt) (*keys, error) {
	key, err := hkdf.Key(sha256.New, s.key[:], salt[:], "holdfast pack v1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive key of a pack: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("cipher of a pack: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("cipher of a pack: %w", err)
	}
	return &keys{aead}, nil
}

// nonce is that of a row: no two rows that one pack sealed have had one slot.
func (e *Entry) nonce() (n [12]byte) {
	binary.LittleEndian.PutUint32(n[:], e.Nonce)
	return n
}

// tableNonce is that of a table: no slot makes it.
var tableNonce = [12]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// additional returns what is authenticated with a row. Its pack's name is not: rows move.
func (e *Entry) additional(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(append(b[:0], byte(e.Kind), byte(e.Encoding)), e.Plain)
	return append(b, e.ID[:]...)
}

const additionalSize = 2 + 4 + 32

// seal appends encoded, sealed as the row e, to dst.
func (k *keys) seal(dst []byte, e *Entry, encoded []byte) []byte {
	n := e.nonce()
	var ad [additionalSize]byte
	return k.aead.Seal(dst, n[:], encoded, e.additional(ad[:]))
}

// open returns the encoded bytes of sealed, decrypted in place.
func (k *keys) open(e *Entry, sealed []byte) ([]byte, error) {
	n := e.nonce()
	var ad [additionalSize]byte
	out, err := k.aead.Open(sealed[:0], n[:], sealed, e.additional(ad[:]))
	if err != nil {
		return nil, fmt.Errorf("%w: the row %s at offset %d does not authenticate", ErrCorrupt, e.ID, e.Offset)
	}
	return out, nil
}

// sealTable appends the plain table, sealed with the header and the footer, to dst.
func (k *keys) sealTable(dst, plain, head, foot []byte) []byte {
	return k.aead.Seal(dst, tableNonce[:], plain, append(head[:len(head):len(head)], foot...))
}

func (k *keys) openTable(sealed, head, foot []byte) ([]byte, error) {
	ad := append(head[:len(head):len(head)], foot...)
	plain, err := k.aead.Open(make([]byte, 0, len(sealed)), tableNonce[:], sealed, ad)
	if err != nil {
		return nil, fmt.Errorf("%w: its table does not authenticate", ErrCorrupt)
	}
	return plain, nil
}

// maxKeys bounds what is kept of keys: about 1 KiB each.
const maxKeys = 1024

// keyring keeps the keys of recent salts. It is safe for concurrent use.
type keyring struct {
	secret *Secret

	mu   sync.Mutex
	keys map[log.Salt]*keys
}

func (r *keyring) of(salt log.Salt) (*keys, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.keys[salt]; k != nil {
		return k, nil
	}
	k, err := r.secret.derive(salt)
	if err != nil {
		return nil, err
	}
	if len(r.keys) >= maxKeys {
		clear(r.keys)
	}
	r.keys[salt] = k
	return k, nil
}
