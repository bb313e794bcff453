package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"

	"github.com/klauspost/compress/zstd"
)

// noteEncoder serves all goroutines: notes are small and rare.
var noteEncoder, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))

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
