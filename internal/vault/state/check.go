package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Errors that say why an operation is not valid after all that stands before it.
var (
	ErrNoPoint  = errors.New("no such recovery point")
	ErrExists   = errors.New("the recovery point exists, or existed")
	ErrHeld     = errors.New("the recovery point is held")
	ErrLocked   = errors.New("the recovery point is locked")
	ErrInUse    = errors.New("an open session builds on the recovery point")
	ErrEnded    = errors.New("the session was given up, or another went on from it")
	ErrVoid     = errors.New("what the collection rested on does not stand any more")
	ErrTooOld   = errors.New("the session began longer ago than the vault remembers")
	ErrNoChange = errors.New("there is nothing to do")
)

// Lost is the error of a commit that cannot stand as it is: what it names must be stored anew, or
// counted one by one.
type Lost struct {
	Own    []log.ObjectID // of its own packs: condemned as orphans
	Counts []log.ObjectID // of those that it counts on: not good any more
	Bases  []ID           // points that do not live any more
}

func (l *Lost) Error() string {
	return fmt.Sprintf("%d packs of its own, %d that it counts on and %d points that it builds on are gone meanwhile",
		len(l.Own), len(l.Counts), len(l.Bases))
}

// Check returns nil if the commit is valid: rule R4. Otherwise the error is a *Lost, or says why it
// never will be.
func (c *Commit) Check(ctx context.Context, s *State) error {
	c.warm(ctx, s)
	for i := range c.Points {
		id := c.Points[i].ID
		for _, table := range []byte{tablePoint, tablePurged} {
			if there, err := s.has(ctx, sealed, key(table, id[:])); err != nil || there {
				return errors.Join(err, exists(there))
			}
		}
	}
	by := c.Session
	for _, a := range slices.Backward(append(c.Adopted[:len(c.Adopted):len(c.Adopted)],
		Adopted{Session: c.Session, Progress: c.Progress})) {
		if err := a.check(ctx, s, by); err != nil {
			return err
		}
		by = a.Session
	}
	lost := &Lost{}
	own := c.Own
	for i := range c.Added {
		own = append(own[:len(own):len(own)], c.Added[i].ID)
	}
	if err := lost.own(ctx, s, own); err != nil {
		return err
	}
	if err := lost.counts(ctx, s, c.Counts, own); err != nil {
		return err
	}
	for i := range c.Points {
		if err := lost.bases(ctx, s, c.Points[i].Bases, c.Points[:i]); err != nil {
			return err
		}
	}
	return lost.err()
}

// warm reads at once what Check asks for.
func (c *Commit) warm(ctx context.Context, s *State) {
	var keys [classes][][]byte
	for i := range c.Points {
		p := &c.Points[i]
		keys[sealed] = append(keys[sealed], key(tablePoint, p.ID[:]), key(tablePurged, p.ID[:]))
		for _, base := range p.Bases {
			keys[sealed] = append(keys[sealed], key(tablePoint, base[:]), key(tablePurged, base[:]))
		}
	}
	for i := range c.Added {
		keys[open] = append(keys[open], key(tableCondemned, c.Added[i].ID[:]))
	}
	for _, id := range c.Own {
		keys[open] = append(keys[open], key(tableCondemned, id[:]))
	}
	for i := range c.Counts {
		id := c.Counts[i].Pack[:]
		keys[open] = append(keys[open], key(tablePack, id), key(tableDamaged, id))
	}
	var wg sync.WaitGroup
	for c := range classes {
		wg.Go(func() { s.tiers[c].Warm(ctx, keys[c]...) })
	}
	wg.Wait()
}

func exists(there bool) error {
	if there {
		return ErrExists
	}
	return nil
}

func (l *Lost) err() error {
	if len(l.Own)+len(l.Counts)+len(l.Bases) > 0 {
		return l
	}
	return nil
}

func (l *Lost) own(ctx context.Context, s *State, ids []log.ObjectID) error {
	if s.opts.Without.Has(log.OwnPacks) {
		return nil
	}
	for _, id := range ids {
		if id.Begun().Compare(s.Forgotten()) < 0 && !s.opts.Without.Has(log.Remember) {
			return ErrTooOld
		}
		condemned, err := s.IsCondemned(ctx, id)
		if err != nil {
			return err
		}
		if condemned {
			l.Own = append(l.Own, id)
		}
	}
	return nil
}

// counts finds the packs on which nothing may be counted. Those that the session adds with this
// entry are judged as its own.
func (l *Lost) counts(ctx context.Context, s *State, counts []Count, own []log.ObjectID) error {
	if s.opts.Without.Has(log.GoodCounts) || len(counts) == 0 {
		return nil
	}
	mine := map[log.ObjectID]bool{}
	for _, id := range own {
		mine[id] = true
	}
	for _, n := range counts {
		if mine[n.Pack] {
			continue
		}
		sound, err := s.sound(ctx, n.Pack)
		if err != nil {
			return err
		}
		if !sound {
			l.Counts = append(l.Counts, n.Pack)
		}
	}
	return nil
}

// sound reports whether a pack is good, and no check found damage in it.
func (s *State) sound(ctx context.Context, id log.ObjectID) (bool, error) {
	_, good, err := s.Good(ctx, id)
	if err != nil || !good {
		return false, err
	}
	damaged, err := s.IsDamaged(ctx, id)
	return !damaged, err
}

func (l *Lost) bases(ctx context.Context, s *State, bases []ID, same []Point) error {
	if s.opts.Without.Has(log.LivingBase) {
		return nil
	}
	for _, id := range bases {
		lives, err := s.lives(ctx, id)
		if err != nil {
			return err
		}
		for i := range same {
			lives = lives || same[i].ID == id
		}
		if !lives {
			l.Bases = append(l.Bases, id)
		}
	}
	return nil
}

// check returns ErrEnded unless a session is as open as one who goes on with it believes.
func (a *Adopted) check(ctx context.Context, s *State, by log.Session) error {
	if a.Progress == 0 {
		return nil
	}
	there, err := s.has(ctx, sealed, sessionKey(a.Session, a.Progress-1))
	if err != nil {
		return err
	}
	adopted, err := s.get(ctx, sealed, sessionKey(a.Session, adoptedAt))
	if err != nil {
		return err
	}
	if !there || adopted != nil && (len(adopted) != 10 || log.Session(adopted) != by) ||
		adopted == nil && a.Session != by {
		return ErrEnded
	}
	return nil
}

// Check returns nil if the progress is valid.
func (p *Progress) Check(ctx context.Context, s *State) error {
	if err := (&Adopted{Session: p.Session, Progress: p.Number}).check(ctx, s, p.Session); err != nil {
		return err
	}
	lost := &Lost{}
	var own []log.ObjectID
	for i := range p.Added {
		own = append(own, p.Added[i].ID)
	}
	if err := lost.own(ctx, s, own); err != nil {
		return err
	}
	if err := lost.counts(ctx, s, p.Counts, own); err != nil {
		return err
	}
	if err := lost.bases(ctx, s, p.Bases, nil); err != nil {
		return err
	}
	return lost.err()
}

// Check returns nil if the session may be gone on from.
func (a *Adopt) Check(ctx context.Context, s *State) error {
	x, ok, err := s.Session(ctx, a.From.Session)
	if err != nil {
		return err
	}
	if !ok || x.AdoptedBy != (log.Session{}) || len(x.Progress) != int(a.From.Progress) {
		return ErrEnded
	}
	return nil
}

// Check returns nil if the sessions are as they were when they were found silent.
func (g *GiveUp) Check(ctx context.Context, s *State) error {
	for _, a := range g.Sessions {
		x, ok, err := s.Session(ctx, a.Session)
		if err != nil {
			return err
		}
		if !ok || len(x.Progress) != int(a.Progress) {
			return ErrNoChange
		}
	}
	return nil
}

// Prune leaves out of a condemnation what must not be condemned, and returns ErrVoid if it cannot
// stand at all: rule R5. ErrNoChange says that nothing is left of it.
func (c *Condemn) Prune(ctx context.Context, s *State) error {
	if !c.Orphans {
		if err := c.checkMark(ctx, s); err != nil {
			return err
		}
	}
	lost := &Lost{}
	var own []log.ObjectID
	for i := range c.Added {
		own = append(own, c.Added[i].ID)
	}
	if err := lost.own(ctx, s, own); err != nil {
		return err
	}
	if lost.err() != nil {
		return ErrVoid
	}
	needed, err := s.openNeeds(ctx)
	if err != nil {
		return err
	}
	var left []log.ObjectID
	c.Bytes, c.AddedAt = 0, nil
	parts := c.Parts
	c.Parts = nil
	seen := map[log.ObjectID]bool{}
	for i, id := range c.Packs {
		pack, may, err := c.may(ctx, s, id, needed)
		if err != nil {
			return err
		}
		if !may || seen[id] {
			continue
		}
		seen[id] = true
		left = append(left, id)
		if c.Orphans {
			c.Parts = append(c.Parts, i < len(parts) && parts[i])
		} else {
			c.Parts = append(c.Parts, pack.Object.Kind == log.Part)
			c.Bytes += pack.Object.Size
			c.AddedAt = append(c.AddedAt, pack.Added)
		}
	}
	if c.Packs = left; len(left) == 0 {
		return ErrNoChange
	}
	return nil
}

func (c *Condemn) checkMark(ctx context.Context, s *State) error {
	return s.checkMark(ctx, c.Mark, c.Last)
}

// checkMark returns ErrVoid unless what a mark found still stands.
func (s *State) checkMark(ctx context.Context, mark log.Position, last uint64) error {
	if !s.opts.Without.Has(log.VoidMarks) {
		stands, err := log.Stands(ctx, s, s.root.At, mark)
		if err != nil {
			return err
		}
		if !stands {
			return fmt.Errorf("%w: the entry of its mark is void", ErrVoid)
		}
	}
	if s.LastCondemn() != last && !s.opts.Without.Has(log.NoRival) {
		return fmt.Errorf("%w: others condemned packs since", ErrVoid)
	}
	return nil
}

// may reports whether a pack may be condemned, and what is known of it.
func (c *Condemn) may(ctx context.Context, s *State, id log.ObjectID, needed map[log.ObjectID]bool) (packRow, bool,
	error) {
	p, good, err := s.pack(ctx, id)
	if err != nil {
		return p, false, err
	}
	if c.Orphans {
		condemned, err := s.IsCondemned(ctx, id)
		return p, !good && !condemned, err
	}
	b, err := s.bits(ctx, id)
	if err != nil {
		return p, false, err
	}
	counted := (b.Counted > c.MarkAt || needed[id]) && !s.opts.Without.Has(log.LeaveCounted)
	return p, good && !counted, nil
}

// openNeeds returns the packs that open sessions need whole: their own, and those that they count
// on.
func (s *State) openNeeds(ctx context.Context) (map[log.ObjectID]bool, error) {
	sessions, err := s.Sessions(ctx)
	needed := map[log.ObjectID]bool{}
	for _, x := range sessions {
		for _, id := range x.Own {
			needed[id] = true
		}
		for _, p := range x.Progress {
			for _, n := range p.Counts {
				needed[n.Pack] = true
			}
		}
	}
	return needed, err
}

// CheckGone leaves out of ids what is not condemned or gone already.
func CheckGone(ctx context.Context, s *State, ids []log.ObjectID) (left []log.ObjectID, err error) {
	for _, id := range ids {
		v, err := s.get(ctx, open, key(tableCondemned, id[:]))
		if err != nil {
			return nil, err
		}
		if v == nil {
			continue
		}
		c, err := readCondemned(v)
		if err != nil {
			return nil, err
		}
		if !c.Gone {
			left = append(left, id)
		}
	}
	return left, nil
}
