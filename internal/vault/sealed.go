package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// sealed is a kind of small object of the same format: magic, ID (16 bytes), nonce (12), sealed zstd frame. Its name is the prefix and the ID in hexadecimal digits.
type sealed struct {
	prefix string
	magic  string // 8 bytes
	info   string // of its key
	what   string // in errors
}

// sealedHead is what stands before the sealed part, in bytes, and is authenticated with it.
const sealedHead = 8 + 16 + 12

// Such objects are small and rare: one shared encoder and decoder each serve all goroutines, the decoder one per processor at a time.
var (
	sealedEncoder, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	sealedDecoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxManifest))
)

// aead returns the cipher of an object: each has a key of its own, by what it is and its salt.
func (v *Vault) aead(info string, salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, v.sec.points[:], salt, info, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func (v *Vault) seal(k sealed, id, plain []byte) ([]byte, error) {
	aead, err := v.aead(k.info, id)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, 12)
	rand.Read(nonce)
	head := append(append([]byte(k.magic), id...), nonce...)
	return aead.Seal(head, nonce, sealedEncoder.EncodeAll(plain, nil), head), nil
}

// unseal returns what is in the object name; ErrCorrupt if it is no such object, or not as it was sealed.
func (v *Vault) unseal(k sealed, name string, raw []byte) ([]byte, error) {
	id, err := hex.DecodeString(strings.TrimPrefix(name, k.prefix))
	if err != nil || len(raw) < sealedHead || string(raw[:8]) != k.magic || string(raw[8:24]) != string(id) {
		return nil, fmt.Errorf("%w: %s is not a %s of this format", ErrCorrupt, name, k.what)
	}
	aead, err := v.aead(k.info, id)
	if err != nil {
		return nil, err
	}
	packed, err := aead.Open(nil, raw[24:sealedHead], raw[sealedHead:], raw[:sealedHead])
	if err != nil {
		return nil, fmt.Errorf("%w: %s does not authenticate", ErrCorrupt, name)
	}
	plain, err := sealedDecoder.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %v", ErrCorrupt, name, err)
	}
	return plain, nil
}
