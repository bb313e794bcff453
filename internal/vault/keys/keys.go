// Package keys wraps a vault's data key for those who may open it.
//
// Each slot holds the same 32-byte data key, sealed to an age recipient or under a passphrase
// (argon2id). Any one slot's key opens the vault; when all are lost, so is everything in the vault.
// docs/formats/vault.md is the format.
package keys

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/argon2"
)

// ErrNoMatch reports that a key does not open a slot.
var ErrNoMatch = errors.New("key does not match")

// DataKey is the secret from which all keys of a vault are derived.
type DataKey [32]byte

// NewDataKey returns a fresh random key.
func NewDataKey() (k DataKey) {
	rand.Read(k[:])
	return k
}

// Key opens or seals a vault: exactly one field is set.
type Key struct {
	Passphrase []byte // through argon2id
	Identity   string // age identity, opens: AGE-SECRET-KEY-1…, or a file of such lines
	Recipient  string // age recipient, seals only: age1…
}

// String hides the key from whoever prints what it is in.
func (Key) String() string { return "(a key)" }

// GoString does so too.
func (Key) GoString() string { return "(a key)" }

// Slot is a wrapped data key as it is stored.
type Slot struct {
	Format     string      `json:"format"` // "holdfast-key-1"
	Name       string      `json:"name"`
	Kind       string      `json:"kind"` // "age" or "passphrase"
	Created    time.Time   `json:"created"`
	Recipient  string      `json:"recipient,omitempty"` // age
	Wrapped    []byte      `json:"wrapped"`             // age file, or AES-256-GCM box
	Passphrase *Passphrase `json:"passphrase,omitempty"`

	Vault string `json:"-"` // whose slot it is, where it was read from a store
}

// Passphrase holds the argon2id parameters of a slot.
type Passphrase struct {
	Salt    []byte `json:"salt"`    // 16 bytes
	Time    uint32 `json:"time"`    // passes
	Memory  uint32 `json:"memory"`  // KiB
	Threads uint8  `json:"threads"` // lanes
	Nonce   []byte `json:"nonce"`   // 12 bytes
}

// Format is the value of Slot.Format that this version writes and reads.
const Format = "holdfast-key-1"

// argon2id as RFC 9106 section 4 recommends where memory is constrained: 3 passes over 64 MiB in 4
// lanes.
const (
	argonTime    = 3
	argonMemory  = 64 << 10
	argonThreads = 4
	// The most that a stored slot may ask for: a hostile vault must not exhaust the machine that
	// opens it.
	maxArgonTime, maxArgonMemory = 64, 1 << 20
)

// Seal wraps dk for key under name.
func Seal(dk DataKey, name string, key Key, now time.Time) (*Slot, error) {
	s := &Slot{Format: Format, Name: name, Created: now.UTC().Truncate(time.Second)}
	switch {
	case len(key.Passphrase) > 0:
		return s, s.sealPassphrase(dk, key.Passphrase)
	case key.Recipient != "":
		return s, s.sealAge(dk, key.Recipient)
	case key.Identity != "":
		recipient, err := RecipientOf(key.Identity)
		if err != nil {
			return nil, err
		}
		return s, s.sealAge(dk, recipient)
	}
	return nil, errors.New("no key given")
}

func (s *Slot) sealPassphrase(dk DataKey, passphrase []byte) error {
	p := &Passphrase{Salt: make([]byte, 16), Time: argonTime, Memory: argonMemory, Threads: argonThreads,
		Nonce: make([]byte, 12)}
	rand.Read(p.Salt)
	rand.Read(p.Nonce)
	aead, err := p.aead(passphrase)
	if err != nil {
		return err
	}
	s.Kind, s.Passphrase = "passphrase", p
	s.Wrapped = aead.Seal(nil, p.Nonce, dk[:], []byte(s.Name))
	return nil
}

func (p *Passphrase) aead(passphrase []byte) (cipher.AEAD, error) {
	if p.Time == 0 || p.Time > maxArgonTime || p.Memory < 8*uint32(p.Threads) || p.Memory > maxArgonMemory ||
		p.Threads == 0 || len(p.Nonce) != 12 {
		return nil, errors.New("key slot asks for unreasonable argon2id parameters")
	}
	block, err := aes.NewCipher(argon2.IDKey(passphrase, p.Salt, p.Time, p.Memory, p.Threads, 32))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func (s *Slot) sealAge(dk DataKey, recipient string) error {
	rs, err := age.ParseRecipients(strings.NewReader(recipient))
	if err != nil {
		return fmt.Errorf("read age recipient %q: %w", recipient, err)
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, rs...)
	if err != nil {
		return fmt.Errorf("wrap data key: %w", err)
	}
	if _, err := w.Write(dk[:]); err != nil {
		return fmt.Errorf("wrap data key: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("wrap data key: %w", err)
	}
	s.Kind, s.Recipient, s.Wrapped = "age", recipient, out.Bytes()
	return nil
}

// Open returns the data key in s, or an error that wraps ErrNoMatch if key is not the one of this
// slot.
func (s *Slot) Open(key Key) (DataKey, error) {
	switch {
	case s.Kind == "passphrase" && s.Passphrase != nil && len(key.Passphrase) > 0:
		aead, err := s.Passphrase.aead(key.Passphrase)
		if err != nil {
			return DataKey{}, err
		}
		dk, err := aead.Open(nil, s.Passphrase.Nonce, s.Wrapped, []byte(s.Name))
		if err != nil || len(dk) != len(DataKey{}) {
			return DataKey{}, ErrNoMatch
		}
		return DataKey(dk), nil
	case s.Kind == "age" && key.Identity != "":
		return s.openAge(key.Identity)
	}
	return DataKey{}, ErrNoMatch
}

func (s *Slot) openAge(identity string) (DataKey, error) {
	ids, err := age.ParseIdentities(strings.NewReader(identity))
	if err != nil {
		return DataKey{}, fmt.Errorf("read age identity: %w", err)
	}
	r, err := age.Decrypt(bytes.NewReader(s.Wrapped), ids...)
	var mismatch *age.NoIdentityMatchError
	if errors.As(err, &mismatch) {
		return DataKey{}, ErrNoMatch
	}
	if err != nil {
		return DataKey{}, fmt.Errorf("open key slot %s: %w", s.Name, err)
	}
	dk, err := io.ReadAll(io.LimitReader(r, 33))
	if err != nil || len(dk) != len(DataKey{}) {
		return DataKey{}, fmt.Errorf("open key slot %s: it does not hold a data key", s.Name)
	}
	return DataKey(dk), nil
}

// NewIdentity returns a fresh age identity and its recipient.
func NewIdentity() (identity, recipient string, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", fmt.Errorf("make key: %w", err)
	}
	return id.String(), id.Recipient().String(), nil
}

// RecipientOf returns the recipient of the first identity in an age identity file.
func RecipientOf(identity string) (string, error) {
	ids, err := age.ParseIdentities(strings.NewReader(identity))
	if err != nil {
		return "", fmt.Errorf("read age identity: %w", err)
	}
	switch id := ids[0].(type) {
	case *age.X25519Identity:
		return id.Recipient().String(), nil
	case *age.HybridIdentity:
		return id.Recipient().String(), nil
	}
	return "", fmt.Errorf("identity of kind %T has no recipient here", ids[0])
}
