package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// NoteHold is the kind of the notes that keep a point from being deleted.
const NoteHold = "hold" // JSON: "who" needs the point, in words

// ErrHeld reports that somebody needs the point until they release it, whether they run now or not.
var ErrHeld = errors.New("the point is still needed")

type holdNote struct {
	Who string `json:"who"`
}

// Hold keeps a point from being deleted until Release is called with the same words, which say who needs it. It outlives the process. Doing so twice is
// harmless. When it returns nil the hold survives power loss. It returns ErrNoPoint if the point is not there any more.
func (v *Vault) Hold(ctx context.Context, id point.ID, who string) error {
	notes, err := v.holds(ctx, id)
	if err != nil {
		return err
	}
	if len(notes[who]) > 0 {
		return v.requirePoint(ctx, id)
	}
	body, err := json.Marshal(holdNote{who})
	if err == nil {
		_, err = v.AddNote(ctx, id, NoteHold, body)
	}
	return err
}

// Release ends a hold; with who "" all of them. It does nothing if there is none.
func (v *Vault) Release(ctx context.Context, id point.ID, who string) error {
	notes, err := v.holds(ctx, id)
	if err != nil {
		return err
	}
	for words, list := range notes {
		if who != "" && who != words {
			continue
		}
		for _, n := range list {
			if err := v.DeleteNote(ctx, id, n); err != nil && !errors.Is(err, ErrNoNote) {
				return err
			}
		}
	}
	return nil
}

// holds returns the IDs of the notes that hold a point, by who needs it. Damaged ones hold nothing.
func (v *Vault) holds(ctx context.Context, id point.ID) (map[string][]string, error) {
	notes, err := v.Notes(ctx, id, NoteHold)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return nil, err
	}
	out := map[string][]string{}
	for _, n := range notes {
		var h holdNote
		if json.Unmarshal(n.Body, &h) != nil || h.Who == "" {
			h.Who = "somebody who does not say it in a way that this version understands"
		}
		out[h.Who] = append(out[h.Who], n.ID)
	}
	return out, nil
}

// requireUnheld returns ErrHeld if somebody needs the point.
func (v *Vault) requireUnheld(ctx context.Context, id point.ID) error {
	notes, err := v.holds(ctx, id)
	if err != nil || len(notes) == 0 {
		return err
	}
	var who []string
	for words := range notes {
		who = append(who, words)
	}
	return fmt.Errorf("%w by %s", ErrHeld, strings.Join(who, "; "))
}

// deleteManifest deletes a point that nobody holds. Who holds it stores that first and looks for the manifest afterwards, so that one of the two sees the
// other: a hold that appears meanwhile, or that cannot be ruled out, brings the manifest back.
func (v *Vault) deleteManifest(ctx context.Context, id point.ID) error {
	if err := v.requireUnheld(ctx, id); err != nil {
		return err
	}
	name := pointsPrefix + string(id)
	manifest, err := blob.Get(ctx, v.store, name)
	if err != nil {
		return err
	}
	if err := v.store.Delete(ctx, name); err != nil {
		return err
	}
	if held := v.requireUnheld(ctx, id); held != nil {
		return errors.Join(held, blob.Put(context.WithoutCancel(ctx), v.store, name, manifest))
	}
	return nil
}
