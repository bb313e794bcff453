package vault

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/holdfast-vm/holdfast/internal/point"
)

// The format of a note, docs/formats/note.md: magic, point ID (16 bytes), note ID (16), the sealed
// head, the sealed and compressed body. The head is sealed apart, so that notes are listed without
// reading their bodies.
const (
	noteMagic     = "HFNOTE01"
	noteInfo      = "holdfast note v1" // of its key
	noteIdentity  = 8 + 16 + 16        // magic and IDs: what is authenticated with both parts
	noteKindSize  = 32
	notePlainHead = 8 + 4 + 4 + noteKindSize + 16
	noteHead      = noteIdentity + notePlainHead + 16
)

// Nonces of the two parts. The key is a note's own, and a note is sealed once.
var (
	noteHeadNonce = make([]byte, 12)
	noteBodyNonce = append([]byte{1}, make([]byte, 11)...)
)

var noteDecoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxNote))

func (v *Vault) sealNote(id point.ID, n Note) ([]byte, error) {
	salt, err := noteKeySalt(id, n.ID)
	if err != nil {
		return nil, err
	}
	aead, err := v.aead(noteInfo, salt)
	if err != nil {
		return nil, err
	}
	name := append([]byte(noteMagic), salt...)
	head := make([]byte, notePlainHead)
	binary.LittleEndian.PutUint64(head, uint64(n.Time.UnixNano()))
	binary.LittleEndian.PutUint32(head[8:], uint32(len(n.Body)))
	copy(head[16:], n.Kind)
	raw := aead.Seal(name, noteHeadNonce, head, name)
	return aead.Seal(raw, noteBodyNonce, noteEncoder.EncodeAll(n.Body, nil), name), nil
}

// noteSeal returns the cipher of the note that name belongs to, if raw begins as that note must.
func (v *Vault) noteSeal(name string, raw []byte) (id string, aead cipher.AEAD, err error) {
	p, note, ok := parseNoteName(name)
	if !ok || len(raw) < noteHead || string(raw[:8]) != noteMagic {
		return "", nil, fmt.Errorf("%w: %s is not a note of this format", ErrCorrupt, name)
	}
	salt, err := noteKeySalt(p, note)
	if err != nil {
		return "", nil, err
	}
	if !bytes.Equal(raw[8:noteIdentity], salt) {
		return "", nil, fmt.Errorf("%w: %s is another note than its name says", ErrCorrupt, name)
	}
	aead, err = v.aead(noteInfo, salt)
	return note, aead, err
}

// openNoteHead opens the head of the note in the object name, of which raw is at least the first
// noteHead bytes.
func (v *Vault) openNoteHead(name string, raw []byte) (Note, error) {
	id, aead, err := v.noteSeal(name, raw)
	if err != nil {
		return Note{}, err
	}
	head, err := aead.Open(nil, noteHeadNonce, raw[noteIdentity:noteHead], raw[:noteIdentity])
	if err != nil {
		return Note{}, fmt.Errorf("%w: %s does not authenticate", ErrCorrupt, name)
	}
	n := Note{ID: id, Time: time.Unix(0, int64(binary.LittleEndian.Uint64(head))).UTC(),
		Size: int64(binary.LittleEndian.Uint32(head[8:]))}
	n.Kind = string(bytes.TrimRight(head[16:16+noteKindSize], "\x00"))
	if !validNoteKind(n.Kind) || n.Size > MaxNote {
		return Note{}, fmt.Errorf("%w: %s is of kind %q and %d bytes", ErrCorrupt, name, n.Kind, n.Size)
	}
	return n, nil
}

// openNoteBody opens the body of the note whose head is n.
func (v *Vault) openNoteBody(name string, n Note, raw []byte) ([]byte, error) {
	_, aead, err := v.noteSeal(name, raw)
	if err != nil {
		return nil, err
	}
	packed, err := aead.Open(nil, noteBodyNonce, raw[noteHead:], raw[:noteIdentity])
	if err != nil {
		return nil, fmt.Errorf("%w: %s does not authenticate", ErrCorrupt, name)
	}
	body, err := noteDecoder.DecodeAll(packed, make([]byte, 0, n.Size))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %v", ErrCorrupt, name, err)
	}
	if int64(len(body)) != n.Size {
		return nil, fmt.Errorf("%w: %s has %d bytes, its head says %d", ErrCorrupt, name, len(body), n.Size)
	}
	return body, nil
}
