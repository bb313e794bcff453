package state

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
)

// Point returns a point that lives: deleted softly or not, but not purged.
func (s *State) Point(ctx context.Context, id ID) (Point, bool, error) {
	if lives, err := s.lives(ctx, id); err != nil || !lives {
		return Point{}, false, err
	}
	return s.pointRow(ctx, id)
}

// PointOrPending returns a point that lives, or was purged and not walked to the end yet.
func (s *State) PointOrPending(ctx context.Context, id ID) (Point, bool, error) {
	return s.pointRow(ctx, id)
}

// pointRow returns a point that lives, or was purged and not walked yet.
func (s *State) pointRow(ctx context.Context, id ID) (Point, bool, error) {
	v, err := s.get(ctx, sealed, key(tablePoint, id[:]))
	if err != nil || v == nil {
		return Point{}, false, err
	}
	p, err := decodePoint(v)
	return p, err == nil, err
}

func decodePoint(v []byte) (Point, error) {
	d := dec{b: v}
	p := readPoint(&d)
	if err := d.end(); err != nil {
		return p, damaged("a point", err)
	}
	return p, nil
}

// lives reports whether a point is there and not purged.
func (s *State) lives(ctx context.Context, id ID) (bool, error) {
	s.tiers[sealed].Warm(ctx, key(tablePoint, id[:]), key(tablePurged, id[:]))
	there, err := s.has(ctx, sealed, key(tablePoint, id[:]))
	if err != nil || !there {
		return false, err
	}
	_, purged, err := s.purged(ctx, id)
	return !purged && err == nil, err
}

// purged returns when a point was purged.
func (s *State) purged(ctx context.Context, id ID) (purgedRow, bool, error) {
	v, err := s.get(ctx, sealed, key(tablePurged, id[:]))
	if err != nil || v == nil {
		return purgedRow{}, false, err
	}
	p, err := readPurged(v)
	if err != nil {
		return p, false, damaged("a purged point", err)
	}
	return p, true, nil
}

// Points calls do for all points that live, in the order of their IDs, until it reports false.
func (s *State) Points(ctx context.Context, do func(Point) bool) error {
	pending := map[ID]bool{}
	if err := s.scan(ctx, sealed, key(tablePending), func(k, _ []byte) bool {
		pending[ID(k[13:])] = true
		return true
	}); err != nil {
		return err
	}
	var bad error
	err := s.scan(ctx, sealed, key(tablePoint), func(k, v []byte) bool {
		if pending[ID(k[1:])] {
			return true
		}
		p, err := decodePoint(v)
		bad = err
		return err == nil && do(p)
	})
	return errors.Join(err, bad)
}

// Found calls do for the living points that are found by a word, the newest first, until it reports
// false.
func (s *State) Found(ctx context.Context, find string, do func(id ID, time int64) bool) error {
	if len(find) == 0 || len(find) > 255 {
		return nil
	}
	prefix := append(key(tableFind, []byte{byte(len(find))}), find...)
	return s.scan(ctx, sealed, prefix, func(k, _ []byte) bool {
		k = k[len(prefix):]
		return do(ID(k[8:]), int64(^binary.BigEndian.Uint64(k)))
	})
}

// EachDeleted calls do for all points that were deleted softly, until it reports false.
func (s *State) EachDeleted(ctx context.Context, do func(id ID, until int64) bool) error {
	var bad error
	err := s.scan(ctx, sealed, key(tableDeleted), func(k, v []byte) bool {
		d := dec{b: v}
		until := int64(d.u64())
		bad = d.end()
		return bad == nil && do(ID(k[1:]), until)
	})
	return errors.Join(err, bad)
}

// EachHold calls do for all holds, until it reports false.
func (s *State) EachHold(ctx context.Context, do func(Hold) bool) error {
	return s.scan(ctx, sealed, key(tableHold), func(k, v []byte) bool {
		return do(Hold{Point: ID(k[1:17]), ID: ID(k[17:]), Holder: v})
	})
}

// Pending is a purge of which nobody has said, to the end, what it frees.
type Pending struct {
	ID     ID
	At     uint64 // count of the purge
	Number uint32 // among the points of its entry
	Point  Point  // as it was
	Cursor []byte // how far it was walked; nil at the start
}

// Pending calls do for the pending purges, in their order, until it reports false.
func (s *State) Pending(ctx context.Context, do func(Pending) bool) error {
	var bad error
	err := s.scan(ctx, sealed, key(tablePending), func(k, _ []byte) bool {
		p, err := s.pending(ctx, k)
		bad = err
		return err == nil && do(p)
	})
	return errors.Join(err, bad)
}

// pending returns the pending purge of a key.
func (s *State) pending(ctx context.Context, k []byte) (p Pending, err error) {
	p = Pending{ID: ID(k[13:]), At: binary.BigEndian.Uint64(k[1:]), Number: binary.BigEndian.Uint32(k[9:])}
	var there bool
	if p.Point, there, err = s.pointRow(ctx, p.ID); err != nil {
		return p, err
	}
	if !there {
		return p, damaged("a purged point", errors.New("its row is not there"))
	}
	p.Cursor, err = s.get(ctx, sealed, key(tableCursor, p.ID[:]))
	return p, err
}

// Children returns the points, living and purged, that are based on a point.
func (s *State) Children(ctx context.Context, id ID) ([]ID, error) {
	return s.linked(ctx, tableChild, id)
}

// Bases returns the points, living and purged, that a point is based on now: those that it was
// committed with, or what they were based on, where they are gone.
func (s *State) Bases(ctx context.Context, id ID) ([]ID, error) {
	return s.linked(ctx, tableBase, id)
}

func (s *State) linked(ctx context.Context, table byte, id ID) (ids []ID, err error) {
	err = s.scan(ctx, sealed, key(table, id[:]), func(k, _ []byte) bool {
		ids = append(ids, ID(k[17:]))
		return true
	})
	return ids, err
}

// Neighbours returns the points that are reached from one over others only that were purged before
// it, through bases and descendants. A point that was purged later counts as living: it is there
// until it is walked. What purging a point frees is what it has and none of its neighbours has at
// that place. at is the count of the purge; for a point that lives, one more than the state's says
// what purging it now would free.
func (s *State) Neighbours(ctx context.Context, id ID, at uint64) ([]Point, error) {
	when, purged, err := s.purged(ctx, id)
	if err != nil {
		return nil, err
	}
	if !purged || when.At != at {
		when = purgedRow{At: at}
	}
	var found []Point
	seen, todo := map[ID]bool{id: true}, []ID{id}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		near, err := s.near(ctx, at)
		if err != nil {
			return nil, err
		}
		for _, n := range near {
			if seen[n] {
				continue
			}
			seen[n] = true
			p, counts, err := s.livesAt(ctx, n, when)
			if err != nil {
				return nil, err
			}
			if counts {
				found = append(found, p)
			} else {
				todo = append(todo, n)
			}
		}
	}
	return found, nil
}

func (s *State) near(ctx context.Context, id ID) ([]ID, error) {
	bases, err := s.Bases(ctx, id)
	if err != nil {
		return nil, err
	}
	children, err := s.Children(ctx, id)
	return slices.Concat(bases, children), err
}

// livesAt returns a point unless it was purged before.
func (s *State) livesAt(ctx context.Context, id ID, when purgedRow) (Point, bool, error) {
	g, purged, err := s.purged(ctx, id)
	if err != nil || purged && g.before(when) {
		return Point{}, false, err
	}
	return s.pointRow(ctx, id)
}
