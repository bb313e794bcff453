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
	"github.com/holdfast-vm/holdfast/internal/vault/state"
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

// AddNote attaches a note to a point. When it returns nil the note survives power loss. It returns
// ErrNoPoint if the point is not there, or no longer when the note is stored: a note never outlives
// its point for long.
func (v *Vault) AddNote(ctx context.Context, id point.ID, kind string, body []byte) (Note, error) {
	if !validNoteKind(kind) {
		return Note{}, fmt.Errorf("note kind %q is not made of 1 to %d of a-z, 0-9 and -", kind, noteKindSize)
	}
	if len(body) > MaxNote {
		return Note{}, fmt.Errorf("a %s note of %d bytes is too large, %d is the most", kind, len(body), MaxNote)
	}
	if err := v.writable(); err != nil {
		return Note{}, err
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
	// Who deletes a point deletes its notes afterwards: either they saw this one, or we see that
	// the point is gone.
	if err := v.requirePoint(ctx, id); errors.Is(err, ErrNoPoint) {
		err = errors.Join(err, v.store.Delete(ctx, noteName(id, n.ID)))
		return Note{}, fmt.Errorf("add a note: it was deleted meanwhile: %w", err)
	}
	return n, nil
}

func validNoteKind(kind string) bool {
	return kind != "" && len(kind) <= noteKindSize && strings.Trim(kind, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// noteName returns the object of a note. It stands in one folder with all others, since a directory
// store keeps folders for ever.
func noteName(id point.ID, note string) string {
	return notesPrefix + string(id) + "-" + note
}

// parseNoteName is the reverse of noteName.
func parseNoteName(name string) (id point.ID, note string, ok bool) {
	p, n, found := strings.Cut(strings.TrimPrefix(name, notesPrefix), "-")
	return point.ID(p), n, found && isID(p) && isID(n)
}

// Notes returns the notes of one kind of a point, or with kind "" all of them, oldest first. A
// point that is not there has none. Notes that are damaged are left out, and the error, ErrCorrupt,
// names them: what is returned beside it is whole.
func (v *Vault) Notes(ctx context.Context, id point.ID, kind string) ([]Note, error) {
	return v.notes(ctx, id, kind, true)
}

// NotesByPoint returns the notes of one kind of all points, oldest first. Notes that are damaged
// are left out: Notes of their points tells of them.
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

// NoteHeads returns the notes of a point as Notes does, without their bodies, which it does not
// read.
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
	raw, err := v.readLimited(ctx, name)
	if err != nil {
		return Note{}, err
	}
	if !bytes.HasPrefix(raw, head) {
		return Note{}, fmt.Errorf("%w: %s changes while it is read", ErrCorrupt, name)
	}
	n.Body, err = v.openNoteBody(name, n, raw)
	return n, err
}

// readLimited reads a note or an entry of the ledger, which has at most so many bytes.
func (v *Vault) readLimited(ctx context.Context, name string) ([]byte, error) {
	raw, err := blob.Read(ctx, v.store, name, noteHead+MaxNote+MaxNote/64+1024)
	if errors.Is(err, blob.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %s is larger than one can be", ErrCorrupt, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return raw, nil
}

// DeleteNote removes a note of a point, damaged or not. It returns ErrNoNote if there is none of
// this ID.
func (v *Vault) DeleteNote(ctx context.Context, id point.ID, note string) error {
	if err := v.writable(); err != nil {
		return err
	}
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

// sweepNotes deletes the notes whose points do not live any more, and returns how many.
func (v *Vault) sweepNotes(ctx context.Context, dryRun bool) (n int, err error) {
	var names []string
	for name, err := range blob.Names(ctx, v.store, notesPrefix, "") {
		if err != nil {
			return 0, fmt.Errorf("list notes: %w", err)
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return 0, nil
	}
	// A note is written only for a point that lives: whoever has a note that was listed is known
	// after reading on, and one that was purged does not come back.
	if err := v.journal.Read(ctx); err != nil {
		return 0, fmt.Errorf("read the vault's log: %w", err)
	}
	for _, name := range names {
		id, _, ok := parseNoteName(name)
		if !ok {
			continue
		}
		if lives, err := v.lives(ctx, id); err != nil {
			return n, err
		} else if lives {
			continue
		}
		n++
		if dryRun {
			continue
		}
		if err := v.store.Delete(ctx, name); err != nil {
			return n, fmt.Errorf("delete a note: %w", err)
		}
	}
	return n, nil
}

// lives reports whether a point lives, deleted or not, as the state was last read.
func (v *Vault) lives(ctx context.Context, id point.ID) (lives bool, err error) {
	sid, err := stateID(id)
	if err != nil {
		return false, nil //nolint:nilerr // no point has such an ID
	}
	err = v.journal.View(ctx, func(st *state.State) (err error) {
		_, lives, err = st.Point(ctx, sid)
		return err
	})
	return lives, err
}

// noteKeySalt is what the key of a note is derived with: no two notes have the same.
func noteKeySalt(id point.ID, note string) ([]byte, error) {
	if !isID(string(id)) || !isID(note) {
		return nil, fmt.Errorf("%q of point %q is no ID of a note", note, string(id))
	}
	return hex.DecodeString(string(id) + note)
}
