package log

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"

	"github.com/zeebo/blake3"
)

// Keys are what a log is read and written with. A mirror has the log key alone: it can follow the
// log, authenticate it, and say which objects live.
type Keys struct {
	log    [32]byte // authenticates entries
	body   [32]byte // from which each body's key derives; absent at a mirror
	sealed bool     // body is there
}

// NewKeys derives the keys of a vault's log from its data key.
func NewKeys(dataKey [32]byte, vault [16]byte) (*Keys, error) {
	k := &Keys{sealed: true}
	for info, out := range map[string]*[32]byte{"log": &k.log, "entry": &k.body} {
		b, err := hkdf.Key(sha256.New, dataKey[:], vault[:], "holdfast vault v1 "+info, 32)
		if err != nil {
			return nil, fmt.Errorf("derive keys of the log: %w", err)
		}
		copy(out[:], b)
	}
	return k, nil
}

// MirrorKeys returns what one can follow the log with who has the log key alone.
func MirrorKeys(logKey [32]byte) *Keys { return &Keys{log: logKey} }

// LogKey returns what a mirror is given.
func (k *Keys) LogKey() [32]byte { return k.log }

// MAC authenticates bytes under the log key.
func (k *Keys) MAC(b []byte) (sum Hash) {
	h, err := blake3.NewKeyed(k.log[:])
	if err != nil {
		panic(err) // only a key of another length is refused
	}
	h.Write(b)
	h.Sum(sum[:0])
	return sum
}

// nonceZero: each key seals one text only.
var nonceZero [12]byte

func (k *Keys) aead(salt Salt) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.body[:], salt[:], "holdfast log entry v1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive key of an entry: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// HashOf returns the hash of an entry as stored.
func HashOf(raw []byte) Hash { return blake3.Sum256(raw) }
