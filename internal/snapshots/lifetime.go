package snapshots

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// Lifetime is a time in which a snapshot was in the vault.
type Lifetime struct {
	ID    point.ID
	Name  string
	VM    string
	Tags  map[string]string
	Disks []LifetimeDisk
	From  time.Time
	To    time.Time // exclusive; the zero time while it is there
}

// LifetimeDisk is a disk of a snapshot.
type LifetimeDisk struct {
	Name      string
	Managed   string // name of the managed disk that it is, "" if it is not one
	ManagedID string
	Size      int64 // bytes
	Used      int64 // bytes
}

// Lifetimes returns when which snapshots were in the vault, those that were deleted too.
func Lifetimes(ctx context.Context, v *vault.Vault) ([]Lifetime, error) {
	points, err := v.Summaries(ctx, nil)
	if err != nil {
		return nil, err
	}
	events := map[point.ID][]event{}
	for _, kind := range []string{entryDeleted, entryCopied} {
		entries, err := v.Ledger(ctx, kind)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			var body entry
			if err := json.Unmarshal(e.Body, &body); err != nil {
				return nil, fmt.Errorf("ledger entry about %s: %w: %w", e.Point.Short(), vault.ErrCorrupt, err)
			}
			events[e.Point] = append(events[e.Point], event{kind, body})
		}
	}
	living := map[point.ID]bool{}
	var out []Lifetime
	for _, p := range points {
		if p.IsSnapshot() {
			living[p.ID] = true
			out = append(out, lives(p.ID, entryOf(p), events[p.ID], true)...)
		}
	}
	for id, list := range events {
		if !living[id] {
			out = append(out, lives(id, list[0].entry, list, false)...)
		}
	}
	slices.SortFunc(out, func(a, b Lifetime) int {
		if c := a.From.Compare(b.From); c != 0 {
			return c
		}
		return slices.Compare([]byte(a.ID), []byte(b.ID))
	})
	return out, nil
}

// event is what happened to a snapshot.
type event struct {
	kind string
	entry
}

// lives returns the lifetimes of one snapshot. A snapshot that is there although the last event is
// that it was deleted was not: the power went in between.
func lives(id point.ID, e entry, events []event, living bool) []Lifetime {
	slices.SortStableFunc(events, func(a, b event) int { return a.Time.Compare(b.Time) })
	var times [][2]time.Time
	from, here := e.Created, len(events) == 0 || events[0].kind == entryDeleted
	for _, ev := range events {
		switch {
		case ev.kind == entryCopied: // one that came to nothing is followed by another
			from, here = ev.Time, true
		case here:
			times, here = append(times, [2]time.Time{from, ev.Time}), false
		case len(times) > 0: // deleted once more, since the first came to nothing
			times[len(times)-1][1] = ev.Time
		}
	}
	switch {
	case living && here:
		times = append(times, [2]time.Time{from, {}})
	case living && len(times) > 0:
		times[len(times)-1][1] = time.Time{}
	}
	var out []Lifetime
	for _, t := range times {
		l := Lifetime{ID: id, Name: e.Name, VM: e.VM, Tags: e.Tags, From: t[0], To: t[1]}
		for _, d := range e.Disks {
			l.Disks = append(l.Disks, LifetimeDisk(d))
		}
		out = append(out, l)
	}
	return out
}
