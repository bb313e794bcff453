package keys_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault/keys"
)

// Any slot that somebody left in a vault opens to a data key or is refused. (Slots that are dear on
// purpose, within the limits, are not opened here.)
func FuzzSlot(f *testing.F) {
	identity, recipient, err := keys.NewIdentity()
	if err != nil {
		f.Fatal(err)
	}
	for _, k := range []keys.Key{{Passphrase: []byte("secret words")}, {Recipient: recipient}} {
		slot, err := keys.Seal(keys.DataKey{1}, "x", k, time.Unix(0, 0))
		if err != nil {
			f.Fatal(err)
		}
		if slot.Passphrase != nil {
			slot.Passphrase.Time, slot.Passphrase.Memory, slot.Passphrase.Threads = 1, 64, 1
		}
		raw, err := json.Marshal(slot)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"kind":"passphrase","passphrase":{"time":1,"memory":8,"threads":1,"nonce":"AAAAAAAAAAAAAAAA"}}`))
	f.Add([]byte(`{"kind":"passphrase"}`))
	f.Add([]byte(`{"kind":"age","wrapped":"YQ=="}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var slot keys.Slot
		if json.Unmarshal(raw, &slot) != nil {
			return
		}
		if p := slot.Passphrase; p != nil && p.Time <= 64 && p.Memory <= 1<<20 &&
			uint64(p.Time)*uint64(p.Memory) > 1<<10 {
			return
		}
		for _, k := range []keys.Key{{Passphrase: []byte("secret words")}, {Identity: identity}, {}} {
			if dk, err := slot.Open(k); err != nil && dk != (keys.DataKey{}) {
				t.Fatalf("refused with %v, and yet a key", err)
			}
		}
	})
}
