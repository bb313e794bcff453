package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// How long a point that was deleted can be brought back.
const (
	DefaultKeep = 14 * 24 * time.Hour
	MinKeep     = 24 * time.Hour
	MaxKeep     = 180 * 24 * time.Hour
)

// DeletePoint deletes a point softly: it is in no list any more, and UndeletePoint brings it back
// until a collection finds that keep is over. Keep is from MinKeep to MaxKeep; 0 means DefaultKeep.
// It returns ErrNoPoint, and ErrHeld while somebody needs the point.
func (v *Vault) DeletePoint(ctx context.Context, id point.ID, keep time.Duration) error {
	if keep == 0 {
		keep = DefaultKeep
	}
	if keep < MinKeep || keep > MaxKeep {
		return fmt.Errorf("delete point %s: it can be kept for %s to %s, not for %s", id, days(MinKeep), days(MaxKeep),
			keep)
	}
	sid, err := stateID(id)
	if err != nil {
		return err
	}
	if err := v.releaseEnded(ctx, id); err != nil {
		return err
	}
	d := state.Delete{Points: []state.ID{sid}, Until: time.Now().Add(keep).UnixMilli()}
	_, err = v.journal.Append(ctx, func(ctx context.Context, st *state.State) ([]log.Op, error) {
		if _, err := v.living(ctx, st, id); err != nil {
			return nil, err
		}
		if err := d.Check(ctx, st, time.Now().UnixMilli()); err != nil {
			return nil, v.whyNot(ctx, st, id, err)
		}
		return []log.Op{d.Op()}, nil
	})
	return of("delete", id, err)
}

func days(d time.Duration) string { return fmt.Sprintf("%d days", d/(24*time.Hour)) }

// of says what was being done to which point, unless the error says so.
func of(what string, id point.ID, err error) error {
	if err == nil || errors.Is(err, ErrNoPoint) {
		return err
	}
	return fmt.Errorf("%s point %s: %w", what, id, err)
}

// UndeletePoint brings back a point that was deleted. It returns ErrNoPoint if there is no such
// point any more; one that was not deleted is left alone.
func (v *Vault) UndeletePoint(ctx context.Context, id point.ID) error {
	sid, err := stateID(id)
	if err != nil {
		return err
	}
	u := state.Undelete{Points: []state.ID{sid}}
	_, err = v.journal.Append(ctx, func(ctx context.Context, st *state.State) ([]log.Op, error) {
		_, ok, err := st.Point(ctx, sid)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("%w: %s, deleted or not", ErrNoPoint, id)
		}
		if _, deleted, err := st.Deleted(ctx, sid); err != nil || !deleted {
			return nil, err
		}
		return []log.Op{u.Op()}, nil
	})
	return of("undelete", id, err)
}

// PurgePoint removes a point for good, deleted before or not. The space that only it used is freed
// by the next collection. It returns ErrNoPoint, and ErrHeld while somebody needs the point.
func (v *Vault) PurgePoint(ctx context.Context, id point.ID) error {
	return v.purge(ctx, id, func(context.Context, *state.State, state.ID) error { return nil })
}

// purge removes a point for good for which may returns nil, given the state as it is where the
// purge would stand.
func (v *Vault) purge(ctx context.Context, id point.ID,
	may func(context.Context, *state.State, state.ID) error) error {
	_ = v.payBack(ctx) // what is not given back refuses the purge, and is told so
	sid, err := stateID(id)
	if err != nil {
		return err
	}
	if err := v.releaseEnded(ctx, id); err != nil {
		return err
	}
	_, err = v.journal.Append(ctx, func(ctx context.Context, st *state.State) ([]log.Op, error) {
		if err := may(ctx, st, sid); err != nil {
			return nil, err
		}
		p := state.Purge{Points: []state.Purged{{ID: sid}}}
		if err := p.Check(ctx, st, time.Now().UnixMilli()); err != nil {
			return nil, v.whyNot(ctx, st, id, err)
		}
		return []log.Op{p.Op()}, nil
	})
	if err != nil {
		return of("delete", id, err)
	}
	if err := v.deleteNotes(ctx, id); err != nil { // the next collection tries again
		return fmt.Errorf("point %s is deleted: %w", id, err)
	}
	return nil
}

// whyNot makes the state's refusal one that callers know, with the names of those who need the
// point.
func (v *Vault) whyNot(ctx context.Context, st *state.State, id point.ID, err error) error {
	switch {
	case errors.Is(err, state.ErrNoPoint):
		return fmt.Errorf("%w: %s", ErrNoPoint, id)
	case errors.Is(err, state.ErrHeld):
		who, holdErr := holdersOf(ctx, st, id)
		return errors.Join(fmt.Errorf("%w by %s", ErrHeld, strings.Join(who, "; ")), holdErr)
	case errors.Is(err, state.ErrLocked):
		sid, _ := stateID(id)
		until, lockErr := st.LockedUntil(ctx, sid)
		return errors.Join(fmt.Errorf("%w: it is locked until %s", ErrHeld,
			time.UnixMilli(until).UTC().Format(time.RFC3339)), lockErr)
	case errors.Is(err, state.ErrInUse):
		return fmt.Errorf("%w by a backup that is running and builds on it", ErrHeld)
	}
	return err
}

// DeletedPoint is a point that can still be brought back.
type DeletedPoint struct {
	Point *point.RecoveryPoint `json:"point"` // without its definition
	Until time.Time            `json:"until"` // when a collection may remove it for good
}

// Deleted returns the points that were deleted and can be brought back, in the order of their
// points' times.
func (v *Vault) Deleted(ctx context.Context) ([]DeletedPoint, error) {
	var found []*stored
	var gone map[state.ID]int64
	err := v.view(ctx, func(st *state.State) (err error) {
		if gone, err = deletedOf(ctx, st); err != nil {
			return err
		}
		for id := range gone {
			p, ok, err := st.Point(ctx, id)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			s, err := storedOf(p)
			if err != nil {
				return err
			}
			found = append(found, s)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]DeletedPoint, 0, len(found))
	for _, s := range found {
		sum, err := v.summary(ctx, s)
		if err != nil {
			return nil, err
		}
		out = append(out, DeletedPoint{sum, time.UnixMilli(gone[s.ID]).UTC()})
	}
	slices.SortFunc(out, func(a, b DeletedPoint) int { return point.ByTime(a.Point, b.Point) })
	return out, nil
}

// DeletedPoint returns the deleted point whose ID ref is, or is the only one to begin with.
func (v *Vault) DeletedPoint(ctx context.Context, ref string) (*point.RecoveryPoint, error) {
	all, err := v.Deleted(ctx)
	if err != nil {
		return nil, err
	}
	var found []*point.RecoveryPoint
	for _, d := range all {
		if ref != "" && strings.HasPrefix(string(d.Point.ID), ref) {
			found = append(found, d.Point)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("%w: no deleted point begins with %q", ErrNoPoint, ref)
	}
	return nil, fmt.Errorf("%w: %d deleted points begin with %q", ErrAmbiguous, len(found), ref)
}
