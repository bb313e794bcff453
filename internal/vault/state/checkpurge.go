package state

import (
	"context"
	"errors"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Check returns nil if the points may be deleted softly at a time, in milliseconds since 1970. Held
// and locked ones may not, and there is ErrNoChange where all of them are deleted until that time.
func (d *Delete) Check(ctx context.Context, s *State, now int64) error {
	change := false
	for _, id := range d.Points {
		if err := s.mayGo(ctx, id, now); err != nil {
			return err
		}
		until, deleted, err := s.Deleted(ctx, id)
		if err != nil {
			return err
		}
		change = change || !deleted || until != d.Until
	}
	if !change {
		return ErrNoChange
	}
	return nil
}

// Check returns nil if the points live and one of them at least is deleted softly.
func (u *Undelete) Check(ctx context.Context, s *State) error {
	change := false
	for _, id := range u.Points {
		if lives, err := s.lives(ctx, id); err != nil || !lives {
			return errors.Join(err, noPoint(lives))
		}
		_, deleted, err := s.Deleted(ctx, id)
		if err != nil {
			return err
		}
		change = change || deleted
	}
	if !change {
		return ErrNoChange
	}
	return nil
}

func noPoint(ok bool) error {
	if ok {
		return nil
	}
	return ErrNoPoint
}

// mayGo returns nil if a point lives, and neither a hold nor a lock keeps it.
func (s *State) mayGo(ctx context.Context, id ID, now int64) error {
	if lives, err := s.lives(ctx, id); err != nil || !lives {
		return errors.Join(err, noPoint(lives))
	}
	until, err := s.LockedUntil(ctx, id)
	if err != nil {
		return err
	}
	if until > now {
		return ErrLocked
	}
	if s.opts.Without.Has(log.HoldsRefuse) {
		return nil
	}
	holds, err := s.Holds(ctx, id)
	if err == nil && len(holds) > 0 {
		err = ErrHeld
	}
	return err
}

// Check returns nil if the points may be purged at a time, in milliseconds since 1970: rule R6. It
// fills in what the fold must know of them.
func (p *Purge) Check(ctx context.Context, s *State, now int64) error {
	sessions, err := s.Sessions(ctx)
	if err != nil {
		return err
	}
	needed := map[ID]bool{}
	for _, x := range sessions {
		for _, pr := range x.Progress {
			for _, b := range pr.Bases {
				needed[b] = true
			}
		}
	}
	seen := map[ID]bool{}
	for i := range p.Points {
		x := &p.Points[i]
		if seen[x.ID] {
			return ErrNoPoint
		}
		seen[x.ID] = true
		if err := x.check(ctx, s, now, needed); err != nil {
			return err
		}
	}
	return nil
}

func (p *Purged) check(ctx context.Context, s *State, now int64, needed map[ID]bool) error {
	if err := s.mayGo(ctx, p.ID, now); err != nil {
		return err
	}
	if needed[p.ID] {
		return ErrInUse
	}
	point, _, err := s.pointRow(ctx, p.ID)
	p.Time, p.Finds = point.Time, point.Finds
	return err
}

// Check returns nil if the point can be held.
func (h *Hold) Check(ctx context.Context, s *State) error {
	lives, err := s.lives(ctx, h.Point)
	return errors.Join(err, noPoint(lives))
}

// Check returns nil if the lock makes the time longer in which the point is kept.
func (l *Lock) Check(ctx context.Context, s *State) error {
	if lives, err := s.lives(ctx, l.Point); err != nil || !lives {
		return errors.Join(err, noPoint(lives))
	}
	until, err := s.LockedUntil(ctx, l.Point)
	if err == nil && until >= l.Until {
		err = ErrNoChange
	}
	return err
}

// Check leaves out packs that are not good, and those of which the damage is known; with none left
// it returns ErrNoChange.
func (x *Damaged) Check(ctx context.Context, s *State) error {
	var left []log.ObjectID
	for _, id := range x.Packs {
		sound, err := s.sound(ctx, id)
		if err != nil {
			return err
		}
		if sound {
			left = append(left, id)
		}
	}
	if x.Packs = left; len(left) == 0 {
		return ErrNoChange
	}
	return nil
}
