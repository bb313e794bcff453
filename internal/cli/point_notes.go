package cli

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// shownNote is a note without its body.
type shownNote struct {
	ID       string    `json:"id"`
	Kind     string    `json:"kind"`
	Time     time.Time `json:"time"`
	Size     int64     `json:"size"`               // bytes
	Verified *bool     `json:"verified,omitempty"` // of a drill
	Reason   string    `json:"reason,omitempty"`   // of a drill: why not verified
	Damaged  string    `json:"damaged,omitempty"`  // why it cannot be read

	Result json.RawMessage `json:"result,omitempty"` // of a drill: all that is known
}

// notesOf returns the notes of a point, oldest first, with what drills say; the last tells of
// damaged ones.
func notesOf(ctx context.Context, v *vault.Vault, id point.ID) ([]shownNote, error) {
	heads, err := v.NoteHeads(ctx, id)
	damaged := err
	if err != nil && !errors.Is(err, vault.ErrCorrupt) {
		return nil, err
	}
	drills, err := v.Notes(ctx, id, vault.NoteDrill)
	if err != nil && !errors.Is(err, vault.ErrCorrupt) {
		return nil, err
	}
	bodies := make(map[string][]byte)
	for _, d := range drills {
		bodies[d.ID] = d.Body
	}
	out := make([]shownNote, 0, len(heads))
	for _, h := range heads {
		n := shownNote{ID: h.ID, Kind: h.Kind, Time: h.Time, Size: h.Size}
		if h.Kind == vault.NoteDrill {
			n.readDrill(bodies[h.ID])
		}
		out = append(out, n)
	}
	if damaged != nil {
		out = append(out, shownNote{Damaged: damaged.Error()})
	}
	return out, nil
}

// readDrill takes over the verdict of a drill.
func (n *shownNote) readDrill(body []byte) {
	var result struct {
		Verified *bool  `json:"verified"`
		Reason   string `json:"reason"`
	}
	if err := json.Unmarshal(body, &result); err != nil || result.Verified == nil {
		n.Damaged = "it cannot be read as what came of a drill"
		return
	}
	n.Verified, n.Reason, n.Result = result.Verified, result.Reason, body
}

func (n *shownNote) verdict() string {
	switch {
	case n.Damaged != "":
		return "damaged: " + n.Damaged
	case n.Verified == nil:
		return ""
	case *n.Verified:
		return "verified"
	case n.Reason == "":
		return "not verified"
	}
	return "not verified: " + n.Reason
}

func (a *app) printNotes(notes []shownNote) error {
	if len(notes) == 0 {
		return nil
	}
	var rows [][]string
	for _, n := range notes {
		row := []string{"?", "", "", n.verdict()}
		if n.Kind != "" {
			row = []string{n.Kind, humanTime(n.Time), humanSize(n.Size), n.verdict()}
		}
		rows = append(rows, row)
	}
	return errors.Join(a.println(""), a.printTable([]string{"note", "time (UTC)", ">size", "verdict"}, rows))
}
