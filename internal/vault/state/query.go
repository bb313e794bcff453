package state

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Placed implements [log.State].
func (s *State) Placed(ctx context.Context, n log.Nonce, tried log.Volume) (bool, error) {
	if tried.Compare(s.root.Forget) < 0 && !s.opts.Without.Has(log.Remember) {
		return false, log.ErrInDoubt
	}
	v, err := s.get(ctx, sealed, writerKey(n.Writer))
	if err != nil || v == nil {
		return false, err
	}
	w, err := readWriter(v)
	if err != nil {
		return false, damaged("a writer", err)
	}
	back := w.Last - n.Seq
	return n.Seq <= w.Last && back < 64 && w.Mask>>back&1 == 1, nil
}

// Ended implements [log.State].
func (s *State) Ended(ctx context.Context, v log.Volume) (last uint32, hash log.Hash, ok bool, err error) {
	b, err := s.get(ctx, open, key(tableVolume, v.Append(nil)))
	if err != nil || b == nil {
		return 0, hash, false, err
	}
	d := dec{b: b}
	last = d.u32()
	copy(hash[:], d.take(32))
	return last, hash, true, d.end()
}

// Began returns when a volume that is remembered began, by the clock of who began it.
func (s *State) Began(v log.Volume) (time.Time, bool) {
	for _, st := range s.root.Starts {
		if st.Volume == v {
			return time.UnixMilli(st.Time), true
		}
	}
	return time.Time{}, false
}

// Forget implements [log.State]. Whatever the clocks say, so many volumes are remembered.
func (s *State) Forget(v log.Volume) log.Volume {
	if s.opts.Without.Has(log.Remember) {
		return v
	}
	starts := s.root.Starts
	if len(starts) == 0 {
		return s.root.Forget
	}
	old := starts[len(starts)-1].Time - int64(s.opts.RememberDays)*int64(24*time.Hour/time.Millisecond)
	for len(starts) > int(s.opts.RememberVolumes) && (s.opts.RememberDays < 0 || starts[1].Time < old) {
		starts = starts[1:]
	}
	return starts[0].Volume
}

// Forgotten returns the oldest volume that is remembered: packs begun before it are not committed
// any more.
func (s *State) Forgotten() log.Volume { return s.now().Forget }

// LastCondemn returns the count of the last entry that condemned packs.
func (s *State) LastCondemn() uint64 { return s.now().Condemn }

// Owner returns who told last that he keeps the vault open, and his term.
func (s *State) Owner() (string, uint64) { return s.now().Owner, s.now().Term }

// Deleted returns until when a point that was deleted softly lives at least.
func (s *State) Deleted(ctx context.Context, id ID) (until int64, ok bool, err error) {
	v, err := s.get(ctx, sealed, key(tableDeleted, id[:]))
	if err != nil || v == nil {
		return 0, false, err
	}
	d := dec{b: v}
	until = int64(d.u64())
	return until, true, d.end()
}

// LockedUntil returns until when a point is locked; 0 if it is not.
func (s *State) LockedUntil(ctx context.Context, id ID) (int64, error) {
	v, err := s.get(ctx, sealed, key(tableLock, id[:]))
	if err != nil || v == nil {
		return 0, err
	}
	d := dec{b: v}
	return int64(d.u64()), d.end()
}

// Holds returns the holds of a point.
func (s *State) Holds(ctx context.Context, id ID) (holds []Hold, err error) {
	err = s.scan(ctx, sealed, key(tableHold, id[:]), func(k, v []byte) bool {
		holds = append(holds, Hold{Point: id, ID: ID(k[17:]), Holder: v})
		return true
	})
	return holds, err
}

// Good returns a pack that an entry added and none condemned.
func (s *State) Good(ctx context.Context, id log.ObjectID) (log.Object, bool, error) {
	p, good, err := s.pack(ctx, id)
	return p.Object, good, err
}

func (s *State) pack(ctx context.Context, id log.ObjectID) (packRow, bool, error) {
	v, err := s.get(ctx, open, key(tablePack, id[:]))
	if err != nil || v == nil {
		return packRow{}, false, err
	}
	p, err := readPack(id, v)
	return p, err == nil, err
}

// Packs calls do for all good packs, in the order of their IDs, until it reports false.
func (s *State) Packs(ctx context.Context, do func(log.Object) bool) error {
	var bad error
	err := s.scan(ctx, open, key(tablePack), func(k, v []byte) bool {
		p, err := readPack(log.ObjectID(k[1:]), v)
		bad = err
		return err == nil && do(p.Object)
	})
	return errors.Join(err, bad)
}

// AddedSince calls do for the good packs that entries after the count-th added, in the order of
// those entries, with the count of each, until it reports false.
func (s *State) AddedSince(ctx context.Context, count uint64, do func(o log.Object, added uint64) bool) error {
	var bad error
	from := addedKey(count+1, log.ObjectID{})
	err := s.scanFrom(ctx, open, key(tableAdded), from, func(k, _ []byte) bool {
		o, good, err := s.Good(ctx, log.ObjectID(k[9:]))
		bad = err
		return err == nil && (!good || do(o, binary.BigEndian.Uint64(k[1:])))
	})
	return errors.Join(err, bad)
}

// IsDamaged reports whether a check found damage in a good pack.
func (s *State) IsDamaged(ctx context.Context, id log.ObjectID) (bool, error) {
	return s.has(ctx, open, key(tableDamaged, id[:]))
}

// DamagedPacks calls do for the good packs in which a check found damage, until it reports false.
func (s *State) DamagedPacks(ctx context.Context, do func(log.ObjectID) bool) error {
	return s.scan(ctx, open, key(tableDamaged), func(k, _ []byte) bool { return do(log.ObjectID(k[1:])) })
}

// Bits returns which slots of a pack are shared, and which were freed and not shared since.
func (s *State) Bits(ctx context.Context, id log.ObjectID) (shared, freed []byte, err error) {
	r, err := s.bits(ctx, id)
	return r.Shared, r.Freed, err
}

func (s *State) bits(ctx context.Context, id log.ObjectID) (bitsRow, error) {
	v, err := s.get(ctx, sealed, key(tableBits, id[:]))
	if err != nil || v == nil {
		return bitsRow{}, err
	}
	return readBits(v)
}

// IsCondemned reports whether a name was condemned; of one begun before [State.Forgotten] this is
// not known any more.
func (s *State) IsCondemned(ctx context.Context, id log.ObjectID) (bool, error) {
	return s.has(ctx, open, key(tableCondemned, id[:]))
}

// Dying reports whether a name was condemned and its object may still be there.
func (s *State) Dying(ctx context.Context, id log.ObjectID) (bool, error) {
	v, err := s.get(ctx, open, key(tableCondemned, id[:]))
	if err != nil || v == nil {
		return false, err
	}
	c, err := readCondemned(v)
	return !c.Gone, err
}

// Condemned calls do for the condemned packs whose objects may be deleted now: those that no open
// pin needs.
func (s *State) Condemned(ctx context.Context, do func(log.ObjectID) bool) error {
	pinned, err := s.oldestPin(ctx)
	if err != nil {
		return err
	}
	var bad error
	err = s.scan(ctx, open, key(tableCondemned), func(k, v []byte) bool {
		c, err := readCondemned(v)
		if bad = err; err != nil {
			return false
		}
		return c.Gone || c.At > pinned || do(log.ObjectID(k[1:]))
	})
	return errors.Join(err, bad)
}

// Pinned is what a mirror asks: that nothing be removed that the state at its entry needs.
type Pinned struct {
	Mirror ID
	At     uint64 // count of the entry
}

// Pins returns the pins of all mirrors.
func (s *State) Pins(ctx context.Context) (pins []Pinned, err error) {
	var bad error
	err = s.scan(ctx, open, key(tableMirror), func(k, v []byte) bool {
		d := dec{b: v}
		pins = append(pins, Pinned{Mirror: ID(k[1:]), At: d.u64()})
		bad = d.end()
		return bad == nil
	})
	return pins, errors.Join(err, bad)
}

// EachCondemned is Condemned for who deletes: it tells whether each is a pack or a part, without
// sizes, and tells of those too that wait for a pin.
func (s *State) EachCondemned(ctx context.Context, do func(o log.Object, waits bool) bool) error {
	pinned, err := s.oldestPin(ctx)
	if err != nil {
		return err
	}
	var bad error
	err = s.scan(ctx, open, key(tableCondemned), func(k, v []byte) bool {
		c, err := readCondemned(v)
		if bad = err; err != nil {
			return false
		}
		o := log.Object{ID: log.ObjectID(k[1:]), Kind: log.Pack}
		if c.Part {
			o.Kind = log.Part
		}
		return c.Gone || do(o, c.At > pinned)
	})
	return errors.Join(err, bad)
}

// oldestPin returns the count of the oldest entry that a mirror has pinned.
func (s *State) oldestPin(ctx context.Context) (uint64, error) {
	oldest := ^uint64(0)
	err := s.scan(ctx, open, key(tableMirror), func(_, v []byte) bool {
		d := dec{b: v}
		oldest = min(oldest, d.u64())
		return true
	})
	return oldest, err
}

// Session is an open session that has told of its progress.
type Session struct {
	ID        log.Session
	Progress  []Progress
	Own       []log.ObjectID // of all progress entries
	AdoptedBy log.Session    // zero if nobody went on from it
}

// Sessions returns the open sessions.
func (s *State) Sessions(ctx context.Context) (all []Session, err error) {
	var bad error
	err = s.scan(ctx, sealed, key(tableSession), func(k, v []byte) bool {
		id := log.Session(k[1:11])
		if len(all) == 0 || all[len(all)-1].ID != id {
			all = append(all, Session{ID: id})
		}
		bad = all[len(all)-1].add(k[11:], v)
		return bad == nil
	})
	return all, errors.Join(err, bad)
}

// Session returns an open session, and whether it has told of any progress.
func (s *State) Session(ctx context.Context, id log.Session) (x Session, ok bool, err error) {
	x.ID = id
	var bad error
	err = s.scan(ctx, sealed, key(tableSession, id[:]), func(k, v []byte) bool {
		ok = true
		bad = x.add(k[11:], v)
		return bad == nil
	})
	return x, ok, errors.Join(err, bad)
}

func (x *Session) add(number, v []byte) error {
	d := dec{b: v}
	if string(number) == "\xff\xff\xff\xff" {
		copy(x.AdoptedBy[:], d.take(10))
		return d.end()
	}
	p, err := readProgress(&log.Op{Body: d.bytes()})
	own := getIDs(&d)
	x.Progress = append(x.Progress, p)
	x.Own = append(x.Own, own...)
	return errors.Join(err, d.end())
}
