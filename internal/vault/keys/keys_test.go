package keys_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/holdfast-vm/holdfast/internal/vault/keys"
)

func TestSlotsOpenWithTheirKeyOnly(t *testing.T) {
	idA, recipientA, err := keys.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	idB, _, err := keys.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name        string
		seal, right keys.Key
		wrong       []keys.Key
	}{
		{"passphrase", keys.Key{Passphrase: []byte("correct horse")}, keys.Key{Passphrase: []byte("correct horse")},
			[]keys.Key{{Passphrase: []byte("wrong")}, {Identity: idA}}},
		{"recipient", keys.Key{Recipient: recipientA}, keys.Key{Identity: idA},
			[]keys.Key{{Identity: idB}, {Passphrase: []byte("x")}, {Recipient: recipientA}}},
		{"identity", keys.Key{Identity: idA}, keys.Key{Identity: idA}, []keys.Key{{Identity: idB}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dk := keys.NewDataKey()
			slot, err := keys.Seal(dk, "one", tt.seal, time.Unix(0, 0))
			if err != nil {
				t.Fatal(err)
			}
			raw, _ := json.Marshal(slot)
			if bytes.Contains(raw, dk[:]) {
				t.Fatal("slot holds the plain key")
			}
			var stored keys.Slot
			if err := json.Unmarshal(raw, &stored); err != nil {
				t.Fatal(err)
			}
			if got, err := stored.Open(tt.right); err != nil || got != dk {
				t.Fatalf("right key: %v", err)
			}
			for _, k := range tt.wrong {
				if _, err := stored.Open(k); !errors.Is(err, keys.ErrNoMatch) {
					t.Errorf("wrong key: %v", err)
				}
			}
		})
	}
}

// The stock age tool can unwrap a slot: what it holds is an ordinary age file.
func TestSlotIsAnAgeFile(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	dk := keys.NewDataKey()
	slot, err := keys.Seal(dk, "x", keys.Key{Recipient: id.Recipient().String()}, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	r, err := age.Decrypt(bytes.NewReader(slot.Wrapped), id)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if _, err := got.ReadFrom(r); err != nil || !bytes.Equal(got.Bytes(), dk[:]) {
		t.Fatalf("age opens it to something else: %v", err)
	}
}

// A slot that asks for 1 TiB of argon2id memory is refused, not served.
func TestUnreasonableArgonIsRefused(t *testing.T) {
	slot, err := keys.Seal(keys.NewDataKey(), "x", keys.Key{Passphrase: []byte("p")}, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	slot.Passphrase.Memory = 1 << 30
	if _, err := slot.Open(keys.Key{Passphrase: []byte("p")}); err == nil || errors.Is(err, keys.ErrNoMatch) {
		t.Fatalf("got %v", err)
	}
}
