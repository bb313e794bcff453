package vault

import (
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/point"
)

// Any bytes open as a point or are ErrCorrupt; so do any that somebody with the key has sealed.
func FuzzPoint(f *testing.F) {
	const id = "000102030405060708090a0b0c0d0e0f"
	v := &Vault{}
	whole, err := v.sealPoint(&point.RecoveryPoint{ID: id, VM: "vm", Disks: []point.Disk{{Name: "vda", Size: 5}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, false)
	f.Add(whole[:len(whole)-1], false)
	f.Add(sealedEncoder.EncodeAll([]byte(`{"id":"x","disks":[{}]}`), nil), true)
	f.Add(sealedEncoder.EncodeAll(make([]byte, 1<<20), nil), true)
	f.Add([]byte{}, true)
	f.Add(sealedEncoder.EncodeAll([]byte(`{"x":[{}],"vm":"v","time":"2026-01-01T00:00:00Z"}`), nil), true)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			b = sealBytes(t, v, id, b)
		}
		for _, name := range []string{pointsPrefix + id, pointsPrefix + id[2:], pointsPrefix} {
			p, err := v.openPoint(name, b)
			if err != nil && !errors.Is(err, ErrCorrupt) || err == nil && (p == nil || name != pointsPrefix+id) {
				t.Fatalf("%s opens to %v, %v", name, p, err)
			}
		}
	})
}

func sealBytes(t *testing.T, v *Vault, id string, plain []byte) []byte {
	t.Helper()
	raw, err := hex.DecodeString(id)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := v.aead(manifests.info, raw)
	if err != nil {
		t.Fatal(err)
	}
	head := append(append([]byte(manifests.magic), raw...), make([]byte, 12)...)
	return aead.Seal(head, head[24:], plain, head)
}

// A sealed point opens under its own name and key only.
func TestPointSeals(t *testing.T) {
	v := &Vault{}
	want := &point.RecoveryPoint{ID: point.NewID(), VM: "vm", Tags: map[string]string{"a": "b"}, Disks: []point.Disk{{Name: "vda", Size: 5, Root: "aa"}}}
	raw, err := v.sealPoint(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := v.openPoint(pointsPrefix+string(want.ID), raw); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("it opens to %+v: %v", got, err)
	}
	if _, err := v.openPoint(pointsPrefix+string(point.NewID()), raw); !errors.Is(err, ErrCorrupt) {
		t.Errorf("under another name: %v", err)
	}
	other := &Vault{}
	other.sec.points[0] = 1
	if _, err := other.openPoint(pointsPrefix+string(want.ID), raw); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with another key: %v", err)
	}
	for _, id := range []point.ID{"", "xyz", "00"} {
		if _, err := v.sealPoint(&point.RecoveryPoint{ID: id}); err == nil {
			t.Errorf("a point of ID %q is sealed", id)
		}
	}
}
