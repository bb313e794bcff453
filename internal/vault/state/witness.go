package state

import (
	"context"
	"errors"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Witnessed is what an operation by itself says about points: for repair, which has no state to
// ask.
type Witnessed struct {
	Points    []Point
	Purged    []ID
	Deleted   []ID
	Until     int64 // of Deleted
	Undeleted []ID
	Held      []Hold
	Released  []Hold
}

// Witness returns what an operation says about points; nothing where it reads wrong.
func Witness(op *log.Op) (w Witnessed) {
	switch op.Kind {
	case KindCommit:
		if c, err := readCommit(op); err == nil {
			w.Points = c.Points
		}
	case KindPurge:
		if p, err := readPurge(op); err == nil {
			for _, x := range p.Points {
				w.Purged = append(w.Purged, x.ID)
			}
		}
	case KindDelete:
		if d, err := readDelete(op); err == nil {
			w.Deleted, w.Until = d.Points, d.Until
		}
	case KindUndelete:
		d := dec{b: op.Body}
		if ids := getPoints(&d); d.end() == nil {
			w.Undeleted = ids
		}
	case KindHold, KindRelease:
		if h, err := readHold(op); err == nil && op.Kind == KindHold {
			w.Held = []Hold{h}
		} else if err == nil {
			w.Released = []Hold{h}
		}
	}
	return w
}

// Used reports whether a point of this ID cannot be committed: one lives, was deleted softly, or
// was purged and others still hang on what is left of it.
func (s *State) Used(ctx context.Context, id ID) (bool, error) {
	there, err := s.has(ctx, sealed, key(tablePoint, id[:]))
	if err != nil || there {
		return there, err
	}
	_, purged, err := s.purged(ctx, id)
	return purged, err
}

// PointsWith calls do for the living points whose IDs begin with prefix, in their order, until it
// reports false.
func (s *State) PointsWith(ctx context.Context, prefix []byte, do func(Point) bool) error {
	var bad error
	err := s.scan(ctx, sealed, key(tablePoint, prefix), func(k, v []byte) bool {
		var lives bool
		if lives, bad = s.lives(ctx, ID(k[1:])); bad != nil || !lives {
			return bad == nil
		}
		var p Point
		p, bad = decodePoint(v)
		return bad == nil && do(p)
	})
	return errors.Join(err, bad)
}
