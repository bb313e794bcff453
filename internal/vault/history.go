package vault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// Event is something that happened to the vault: an operation of an entry of its log.
type Event struct {
	Entry  string     `json:"entry"` // position in the log
	Time   time.Time  `json:"time"`  // of the clock of who did it
	Who    string     `json:"who"`   // user, host and process
	What   string     `json:"what"`  // "commit", "delete", "purge", ...
	Text   string     `json:"text"`  // one line for people
	Points []point.ID `json:"points,omitempty"`
	Packs  int        `json:"packs,omitempty"`
	Bytes  int64      `json:"bytes,omitempty"`
}

// History calls do for what happened to the vault, the newest first, until it reports false. What
// was cut off the log, some days after its volume was closed, is not told any more.
func (v *Vault) History(ctx context.Context, do func(Event) bool) error {
	if err := v.journal.Read(ctx); err != nil {
		return fmt.Errorf("read the vault's log: %w", err)
	}
	var head log.Remembered
	err := v.journal.Log(ctx, func(l *log.Log, _ *state.State) error { head = l.Head(); return nil })
	if err != nil {
		return err
	}
	err = log.History(ctx, v.store, v.stKeys.Log(), head, log.Position{}, func(p log.Past) bool {
		for i := range p.Ops {
			if !do(eventOf(&p, &p.Ops[len(p.Ops)-1-i])) {
				return false
			}
		}
		return true
	})
	if errors.Is(err, log.ErrDamaged) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

func eventOf(p *log.Past, op *log.Op) Event {
	t := state.Tell(op)
	e := Event{Entry: p.At.String(), Time: p.Time.UTC(), Who: p.Who, What: t.What, Text: t.Text, Packs: t.Packs,
		Bytes: int64(t.Bytes)}
	for _, id := range t.Points {
		e.Points = append(e.Points, pointID(id))
	}
	return e
}
