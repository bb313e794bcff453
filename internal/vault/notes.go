package vault

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
)

const notesPrefix = "notes/"

// MaxNote is how many bytes the body of a note may have.
const MaxNote = 4 << 20

// Kinds of notes that others than their writer read.
const (
	NoteDrill      = "drill"      // JSON: what came of a drill; "verified" and "reason" are for everyone
	NoteScreenshot = "screenshot" // PNG: the console at the end of a drill
	NoteBootSet    = "boot-set"   // which parts of its disks the machine reads when it boots
)

// ErrNoNote reports that a point has no such note.
var ErrNoNote = errors.New("no such note")

// Note is a small record that was attached to a point after it was sealed.
type Note struct {
	ID   string    `json:"id"`   // 32 hexadecimal digits, random
	Kind string    `json:"kind"` // 1 to 32 of a-z, 0-9 and -
	Time time.Time `json:"time"` // when it was attached, UTC
	Size int64     `json:"size"` // of the body, bytes
	Body []byte    `json:"body"` // nil in what NoteHeads returns
}

// AddNote attaches a note to a point. When it returns nil the note survives power loss. It returns ErrNoPoint if the point is not there, or no
// longer when the note is stored: a note never outlives its point for long.
func (v *Vault) AddNote(ctx context.Context, id point.ID, kind string, body []byte) (Note, error) {
	if !validNoteKind(kind) {
		return Note{}, fmt.Errorf("note kind %q is not made of 1 to %d of a-z, 0-9 and -", kind, noteKindSize)
	}
	if len(body) > MaxNote {
		return Note{}, fmt.Errorf("a %s note of %d bytes is too large, %d is the most", kind, len(body), MaxNote)
	}
	if err := v.requirePoint(ctx, id); err != nil {
		return Note{}, fmt.Errorf("add a note: %w", err)
	}
	n := Note{ID: string(point.NewID()), Kind: kind, Time: time.Now().UTC(), Size: int64(len(body)), Body: body}
	raw, err := v.sealNote(id, n)
	if err != nil {
		return Note{}, err
	}
	if err := blob.Put(ctx, v.store, noteName(id, n.ID), raw); err != nil {
		return Note{}, fmt.Errorf("add a note to point %s: %w", id, err)
	}
	// Who deletes a point deletes its notes afterwards: either they saw this one, or we see that the point is gone.
	if err := v.requirePoint(ctx, id); errors.Is(err, ErrNoPoint) {
		err = errors.Join(err, v.store.Delete(ctx, noteName(id, n.ID)))
		return Note{}, fmt.Errorf("add a note: it was deleted meanwhile: %w", err)
	}
	return n, nil
}

func validNoteKind(kind string) bool {
	return kind != "" && len(kind) <= noteKindSize && strings.Trim(kind, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// requirePoint returns ErrNoPoint if id names no point.
func (v *Vault) requirePoint(ctx context.Context, id point.ID) error {
	if !isID(string(id)) {
		return fmt.Errorf("%w: %q is no ID of one", ErrNoPoint, string(id))
	}
	_, err := v.store.Stat(ctx, pointsPrefix+string(id))
	if errors.Is(err, blob.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNoPoint, id)
	}
	if err != nil {
		return fmt.Errorf("look for point %s: %w", id, err)
	}
	return nil
}

// isID reports whether s is 32 lower-case hexadecimal digits.
func isID(s string) bool {
	return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == ""
}

// noteName returns the object of a note. It stands in one folder with all others, since a directory store keeps folders for ever.
func noteName(id point.ID, note string) string {
	return notesPrefix + string(id) + "-" + note
}

// parseNoteName is the reverse of noteName.
func parseNoteName(name string) (id point.ID, note string, ok bool) {
	p, n, found := strings.Cut(strings.TrimPrefix(name, notesPrefix), "-")
	return point.ID(p), n, found && isID(p) && isID(n)
}

// Notes returns the notes of one kind of a point, or with kind "" all of them, oldest first. A point that is not there has none. Notes that are damaged
// are left out, and the error, ErrCorrupt, names them: what is returned beside it is whole.
func (v *Vault) Notes(ctx context.Context, id point.ID, kind string) ([]Note, error) {
	return v.notes(ctx, id, kind, true)
}

// NotesByPoint returns the notes of one kind of all points, oldest first. Notes that are damaged are left out: Notes of their points tells of them.
func (v *Vault) NotesByPoint(ctx context.Context, kind string) (map[point.ID][]Note, error) {
	of := make(map[point.ID][]Note)
	for info, err := range v.store.List(ctx, notesPrefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list notes: %w", err)
		}
		id, _, ok := parseNoteName(info.Name)
		if !ok {
			continue
		}
		n, err := v.readNote(ctx, info.Name, kind, true)
		switch {
		case errors.Is(err, blob.ErrNotExist), errors.Is(err, ErrCorrupt):
		case err != nil:
			return nil, err
		case n.Kind == kind:
			of[id] = append(of[id], n)
		}
	}
	for _, notes := range of {
		slices.SortStableFunc(notes, func(a, b Note) int { return a.Time.Compare(b.Time) })
	}
	return of, nil
}

// NoteHeads returns the notes of a point as Notes does, without their bodies, which it does not read.
func (v *Vault) NoteHeads(ctx context.Context, id point.ID) ([]Note, error) {
	return v.notes(ctx, id, "", false)
}

func (v *Vault) notes(ctx context.Context, id point.ID, kind string, bodies bool) ([]Note, error) {
	if !isID(string(id)) {
		return nil, fmt.Errorf("%w: %q is no ID of one", ErrNoPoint, string(id))
	}
	var out []Note
	var bad []error
	for info, err := range v.store.List(ctx, notesPrefix+string(id)+"-", "") {
		if err != nil {
			return nil, fmt.Errorf("list the notes of point %s: %w", id, err)
		}
		n, err := v.readNote(ctx, info.Name, kind, bodies)
		switch {
		case errors.Is(err, blob.ErrNotExist): // deleted since it was listed
		case errors.Is(err, ErrCorrupt):
			bad = append(bad, err)
		case err != nil:
			return nil, err
		case kind == "" || n.Kind == kind:
			out = append(out, n)
		}
	}
	slices.SortStableFunc(out, func(a, b Note) int { return a.Time.Compare(b.Time) })
	return out, errors.Join(bad...)
}

// readNote reads the head of a note, and its body if that is wanted and the kind is right.
func (v *Vault) readNote(ctx context.Context, name, kind string, body bool) (Note, error) {
	head := make([]byte, noteHead)
	if _, err := v.store.ReadAt(ctx, name, head, 0); errors.Is(err, io.ErrUnexpectedEOF) {
		return Note{}, fmt.Errorf("%w: %s is cut", ErrCorrupt, name)
	} else if err != nil {
		return Note{}, fmt.Errorf("read %s: %w", name, err)
	}
	n, err := v.openNoteHead(name, head)
	if err != nil || !body || kind != "" && n.Kind != kind {
		return n, err
	}
	raw, err := blob.Get(ctx, v.store, name)
	if err != nil {
		return Note{}, fmt.Errorf("read %s: %w", name, err)
	}
	if !bytes.HasPrefix(raw, head) {
		return Note{}, fmt.Errorf("%w: %s changes while it is read", ErrCorrupt, name)
	}
	n.Body, err = v.openNoteBody(name, n, raw)
	return n, err
}

// DeleteNote removes a note of a point, damaged or not. It returns ErrNoNote if there is none of this ID.
func (v *Vault) DeleteNote(ctx context.Context, id point.ID, note string) error {
	if !isID(string(id)) || !isID(note) {
		return fmt.Errorf("%w: %q of point %q", ErrNoNote, note, string(id))
	}
	name := noteName(id, note)
	if _, err := v.store.Stat(ctx, name); errors.Is(err, blob.ErrNotExist) {
		return fmt.Errorf("%w: %s of point %s", ErrNoNote, note, id)
	} else if err != nil {
		return fmt.Errorf("delete note %s: %w", note, err)
	}
	if err := v.store.Delete(ctx, name); err != nil {
		return fmt.Errorf("delete note %s: %w", note, err)
	}
	return nil
}

// deleteNotes removes all notes of a point that is gone.
func (v *Vault) deleteNotes(ctx context.Context, id point.ID) error {
	for info, err := range v.store.List(ctx, notesPrefix+string(id)+"-", "") {
		if err != nil {
			return fmt.Errorf("list its notes: %w", err)
		}
		if err := v.store.Delete(ctx, info.Name); err != nil {
			return fmt.Errorf("delete a note: %w", err)
		}
	}
	return nil
}

// orphanNotes returns the objects of notes whose points are gone. Points are looked for after the notes were listed: a note is written only
// for a point that is there, and a point that was deleted does not come back, but as a copy, which has the notes of no other.
func (v *Vault) orphanNotes(ctx context.Context) ([]string, error) {
	of := make(map[point.ID][]string)
	for info, err := range v.store.List(ctx, notesPrefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list notes: %w", err)
		}
		if id, _, ok := parseNoteName(info.Name); ok {
			of[id] = append(of[id], info.Name)
		}
	}
	if len(of) == 0 {
		return nil, nil
	}
	for info, err := range v.store.List(ctx, pointsPrefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list points: %w", err)
		}
		delete(of, point.ID(strings.TrimPrefix(info.Name, pointsPrefix)))
	}
	var out []string
	for _, names := range of {
		out = append(out, names...)
	}
	slices.Sort(out)
	return out, nil
}

// noteKeySalt is what the key of a note is derived with: no two notes have the same.
func noteKeySalt(id point.ID, note string) ([]byte, error) {
	if !isID(string(id)) || !isID(note) {
		return nil, fmt.Errorf("%q of point %q is no ID of a note", note, string(id))
	}
	return hex.DecodeString(string(id) + note)
}
