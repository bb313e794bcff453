package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
)

const ledgerPrefix = "ledger/"

// Entry is a note that stays in the vault when its point is gone.
type Entry struct {
	Point point.ID
	Note
}

// Enter writes an entry about a point, which may be gone, into the vault's ledger. When it returns
// nil the entry survives power loss. An entry is never changed or removed.
func (v *Vault) Enter(ctx context.Context, id point.ID, kind string, body []byte) error {
	if err := v.writable(); err != nil {
		return err
	}
	if !validNoteKind(kind) || len(body) > MaxNote {
		return fmt.Errorf("a ledger entry of kind %q and %d bytes is not to be had", kind, len(body))
	}
	n := Note{ID: string(point.NewID()), Kind: kind, Time: time.Now().UTC(), Size: int64(len(body)), Body: body}
	raw, err := v.sealNote(id, n)
	if err != nil {
		return err
	}
	name := ledgerPrefix + strings.TrimPrefix(noteName(id, n.ID), notesPrefix)
	if err := blob.Put(ctx, v.store, name, raw); err != nil {
		return fmt.Errorf("write a ledger entry about point %s: %w", id, err)
	}
	return nil
}

// Ledger returns the entries of one kind, oldest first. Those that are damaged are left out, and
// the error, ErrCorrupt, names them: what is returned beside it is whole.
func (v *Vault) Ledger(ctx context.Context, kind string) ([]Entry, error) {
	var out []Entry
	var bad []error
	for info, err := range v.store.List(ctx, ledgerPrefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list the ledger: %w", err)
		}
		e, err := v.readEntry(ctx, info.Name)
		switch {
		case errors.Is(err, ErrCorrupt):
			bad = append(bad, err)
		case err != nil:
			return nil, err
		case e.Kind == kind:
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b Entry) int { return a.Time.Compare(b.Time) })
	return out, errors.Join(bad...)
}

// readEntry reads an entry, which is sealed as a note is.
func (v *Vault) readEntry(ctx context.Context, name string) (Entry, error) {
	raw, err := v.readLimited(ctx, name)
	if err != nil {
		return Entry{}, err
	}
	as := notesPrefix + strings.TrimPrefix(name, ledgerPrefix)
	id, _, ok := parseNoteName(as)
	if !ok || len(raw) < noteHead {
		return Entry{}, fmt.Errorf("%w: %s is no ledger entry", ErrCorrupt, name)
	}
	n, err := v.openNoteHead(as, raw[:noteHead])
	if err == nil {
		n.Body, err = v.openNoteBody(as, n, raw)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("ledger entry %s: %w", name, err)
	}
	return Entry{Point: id, Note: n}, nil
}
