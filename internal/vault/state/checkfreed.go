package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Check leaves out of what is freed what is shared or freed by now, and fills in which empty nodes
// go. It returns ErrVoid if it cannot stand at all: others walked the same piece, which would free
// a second copy of everything in it, or what the mark rested on does not stand any more.
func (f *Freed) Check(ctx context.Context, s *State) error {
	f.Relink = nil
	if f.FromMark {
		if len(f.Walk) > 0 {
			return fmt.Errorf("%w: a mark does not walk", ErrVoid)
		}
		if err := s.checkMark(ctx, f.Mark, f.Last); err != nil {
			return err
		}
	} else if err := f.checkWalk(ctx, s); err != nil {
		return err
	}
	if err := f.prune(ctx, s); err != nil {
		return err
	}
	for _, c := range f.Keep {
		if _, good, err := s.Good(ctx, c.Pack); err != nil || !good {
			return errors.Join(err, fmt.Errorf("%w: pack %s is not good any more", ErrVoid, c.Pack))
		}
	}
	if f.FromMark && len(f.Slots)+len(f.Keep) == 0 {
		return ErrNoChange
	}
	return nil
}

// checkWalk demands that the walks are the next pieces of the first pending purges, in their order.
func (f *Freed) checkWalk(ctx context.Context, s *State) error {
	if len(f.Walk) == 0 {
		return fmt.Errorf("%w: nothing was walked", ErrVoid)
	}
	var pending []Pending
	if err := s.Pending(ctx, func(p Pending) bool {
		pending = append(pending, p)
		return len(pending) < len(f.Walk)
	}); err != nil {
		return err
	}
	g := newGraph(s)
	for i := range f.Walk {
		w := &f.Walk[i]
		if i >= len(pending) || pending[i].ID != w.Point || pending[i].At != w.At {
			return fmt.Errorf("%w: point %x is not the next to be walked", ErrVoid, w.Point)
		}
		same := bytes.Equal(pending[i].Cursor, w.From) && (pending[i].Cursor == nil) == (w.From == nil)
		if !same && !s.opts.Without.Has(log.WalkOnce) {
			return fmt.Errorf("%w: others walked on in point %x", ErrVoid, w.Point)
		}
		if !w.Done && i < len(f.Walk)-1 {
			return fmt.Errorf("%w: point %x is not done, and another is walked", ErrVoid, w.Point)
		}
		w.Number = pending[i].Number
		if w.Done {
			if err := g.empty(ctx, w.Point); err != nil {
				return err
			}
		}
	}
	f.Relink = g.gone
	return nil
}

// prune leaves out slots that are shared or freed, and packs that are not good. Of what a mark
// found it leaves out packs that were counted on since, and those that open sessions need.
func (f *Freed) prune(ctx context.Context, s *State) error {
	var needed map[log.ObjectID]bool
	if f.FromMark {
		var err error
		if needed, err = s.openNeeds(ctx); err != nil {
			return err
		}
	}
	var left []Count
	seen := map[log.ObjectID]bool{}
	for _, c := range f.Slots {
		if seen[c.Pack] {
			return fmt.Errorf("%w: pack %s stands twice", ErrVoid, c.Pack)
		}
		seen[c.Pack] = true
		p, good, err := s.pack(ctx, c.Pack)
		if err != nil {
			return err
		}
		b, err := s.bits(ctx, c.Pack)
		if err != nil {
			return err
		}
		if !good || f.FromMark && (p.Added > f.MarkAt || b.Counted > f.MarkAt || needed[c.Pack]) {
			continue
		}
		shared := f.FromMark || s.opts.Without.Has(log.LeaveShared) // what a mark found dead may have been
		if c.Shared = without(c.Shared, b, shared); len(c.Shared) > 0 {
			left = append(left, c)
		}
	}
	f.Slots = left
	return nil
}

// without returns the bits that are in neither bitmap of a pack, short of zeros at the end.
func without(bits []byte, b bitsRow, shared bool) []byte {
	out := bytes.Clone(bits)
	for i := range out {
		if i < len(b.Freed) {
			out[i] &^= b.Freed[i]
		}
		if i < len(b.Shared) && !shared {
			out[i] &^= b.Shared[i]
		}
	}
	return bytes.TrimRight(out, "\x00")
}

// graph is the points, linked to their bases, with what an operation is about to change.
type graph struct {
	s       *State
	bases   map[ID][]ID
	childs  map[ID][]ID
	emptied map[ID]bool
	removed map[ID]bool
	gone    []Relink
}

func newGraph(s *State) *graph {
	return &graph{s: s, bases: map[ID][]ID{}, childs: map[ID][]ID{}, emptied: map[ID]bool{}, removed: map[ID]bool{}}
}

// linked returns the neighbours of a node in one direction.
func (g *graph) linked(ctx context.Context, m map[ID][]ID, id ID, read func(context.Context, ID) ([]ID, error)) ([]ID,
	error) {
	if ids, ok := m[id]; ok {
		return ids, nil
	}
	ids, err := read(ctx, id)
	if err == nil {
		m[id] = ids
	}
	return ids, err
}

// empty makes a node empty, and takes it out if at most one child hangs on it; so too what becomes
// such by that.
func (g *graph) empty(ctx context.Context, id ID) error {
	g.emptied[id] = true
	todo := []ID{id}
	for len(todo) > 0 {
		id := todo[0]
		todo = todo[1:]
		isEmpty, err := g.isEmpty(ctx, id)
		if err != nil {
			return err
		}
		children, err := g.linked(ctx, g.childs, id, g.s.Children)
		if err != nil {
			return err
		}
		if !isEmpty || len(children) > 1 {
			continue
		}
		bases, err := g.remove(ctx, id)
		if err != nil {
			return err
		}
		todo = append(todo, bases...)
	}
	return nil
}

// isEmpty reports whether a node was purged and walked, and is still there.
func (g *graph) isEmpty(ctx context.Context, id ID) (bool, error) {
	if g.removed[id] {
		return false, nil
	}
	if g.emptied[id] {
		return true, nil
	}
	there, err := g.s.has(ctx, sealed, key(tablePoint, id[:]))
	if err != nil || there {
		return false, err
	}
	_, purged, err := g.s.purged(ctx, id)
	return purged, err
}

// remove takes a node with at most one child out, and returns what it was based on.
func (g *graph) remove(ctx context.Context, id ID) ([]ID, error) {
	bases, err := g.linked(ctx, g.bases, id, g.s.Bases)
	if err != nil {
		return nil, err
	}
	r := Relink{Node: id, Bases: slices.Clone(bases)}
	if c := g.childs[id]; len(c) == 1 {
		r.Child = c[0]
		of, err := g.linked(ctx, g.bases, r.Child, g.s.Bases)
		if err != nil {
			return nil, err
		}
		g.bases[r.Child] = insert(drop(of, id), bases...)
	}
	for _, base := range bases {
		of, err := g.linked(ctx, g.childs, base, g.s.Children)
		if err != nil {
			return nil, err
		}
		of = drop(of, id)
		if r.Child != (ID{}) {
			of = insert(of, r.Child)
		}
		g.childs[base] = of
	}
	g.removed[id] = true
	g.gone = append(g.gone, r)
	return r.Bases, nil
}

func drop(ids []ID, id ID) []ID {
	return slices.DeleteFunc(slices.Clone(ids), func(x ID) bool { return x == id })
}

func insert(ids []ID, more ...ID) []ID {
	for _, id := range more {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b ID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}
