package vault

import (
	"encoding/hex"
	"errors"
	"testing"
	"time"
)

// Any bytes open as a note or are ErrCorrupt; so do any that somebody with the key has sealed.
func FuzzNote(f *testing.F) {
	const id, note = "000102030405060708090a0b0c0d0e0f", "101112131415161718191a1b1c1d1e1f"
	v := &Vault{}
	whole, err := v.sealNote(id, Note{ID: note, Kind: NoteDrill, Time: time.Unix(1, 2), Body: []byte("{}")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, []byte{}, false)
	f.Add(whole[:len(whole)-1], []byte{}, false)
	f.Add([]byte{}, []byte{}, false)
	f.Add(append(make([]byte, 16), "drill"...), noteEncoder.EncodeAll(nil, nil), true)
	f.Add(append(make([]byte, 16), "drill"...), noteEncoder.EncodeAll(make([]byte, MaxNote+1), nil), true)
	f.Add(append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}, "a"...),
		noteEncoder.EncodeAll([]byte("x"), nil), true)
	f.Fuzz(func(t *testing.T, b, body []byte, seal bool) {
		if seal {
			b = sealNoteParts(t, v, id+note, b, body)
		}
		for _, name := range []string{noteName(id, note), noteName(note, id), notesPrefix + id, notesPrefix} {
			n, err := v.openNoteHead(name, b)
			if err == nil {
				n.Body, err = v.openNoteBody(name, n, b)
			}
			if err != nil && !errors.Is(err, ErrCorrupt) ||
				err == nil && (name != noteName(id, note) || n.ID != note || int64(len(n.Body)) != n.Size) {
				t.Fatalf("%s opens to %v, %v", name, n, err)
			}
		}
	})
}

// sealNoteParts seals head, cut or filled up with zeros, and body, which need not be what a note
// has.
func sealNoteParts(t *testing.T, v *Vault, ids string, head, body []byte) []byte {
	t.Helper()
	salt, err := hex.DecodeString(ids)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := v.aead(noteInfo, salt)
	if err != nil {
		t.Fatal(err)
	}
	plain := make([]byte, notePlainHead)
	copy(plain, head)
	name := append([]byte(noteMagic), salt...)
	return aead.Seal(aead.Seal(name, noteHeadNonce, plain, name), noteBodyNonce, body, name)
}
