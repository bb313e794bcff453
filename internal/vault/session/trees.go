package session

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// candidate is a tree that the point may have: every chunk and node of it was inherited at its
// place in its line from points that it rests on, or was stored or counted for it. So of several of
// one root any will do.
type candidate struct {
	tree  row.Tree
	bases []point.ID // that it rests on, sorted
}

// trees are what a session has made, or may take over.
type trees struct {
	mu    sync.Mutex
	made  map[chunk.ID][]candidate // by root
	of    map[point.ID][]row.Tree  // of points that were asked for
	told  map[point.ID]struct{}    // bases that an entry of progress named
	all   map[point.ID]struct{}    // bases of any candidate
	asked map[row.Tree]int         // how often a tree of a point was built on, by the first of its root
}

// add adds a candidate, once.
func (t *trees) add(c candidate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	same := func(o candidate) bool { return o.tree == c.tree && slices.Equal(o.bases, c.bases) }
	if slices.ContainsFunc(t.made[c.tree.Root], same) {
		return
	}
	if t.made == nil {
		t.made, t.all = map[chunk.ID][]candidate{}, map[point.ID]struct{}{}
	}
	t.made[c.tree.Root] = append(t.made[c.tree.Root], c)
	for _, b := range c.bases {
		t.all[b] = struct{}{}
	}
}

func (t *trees) find(want row.Tree) (candidate, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.made[want.Root] {
		if c.tree.Chunks == want.Chunks {
			return c, true
		}
	}
	return candidate{}, false
}

// candidates returns those of a root that fit a disk of so many chunks.
func (t *trees) candidates(root chunk.ID, chunks int64) []candidate {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(t.made[root]), func(x candidate) bool {
		return tree.Levels(x.tree.Chunks) != tree.Levels(chunks)
	})
}

// next returns a tree of some that is as wanted: of several each in turn, so that disks of one
// content keep their lines apart.
func (t *trees) next(of []row.Tree, want row.Tree) (row.Tree, bool) {
	of = slices.DeleteFunc(slices.Clone(of), func(x row.Tree) bool {
		return x.Root != want.Root || x.Chunks != want.Chunks
	})
	if len(of) == 0 {
		return row.Tree{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked == nil {
		t.asked = map[row.Tree]int{}
	}
	x := of[t.asked[of[0]]%len(of)]
	t.asked[of[0]]++
	return x, true
}

// untold returns the bases that no entry of progress named, and takes it that one does now.
func (t *trees) untold() []point.ID {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []point.ID
	for _, id := range slices.Sorted(maps.Keys(t.all)) {
		if _, ok := t.told[id]; !ok {
			ids = append(ids, id)
		}
	}
	if t.told == nil {
		t.told = map[point.ID]struct{}{}
	}
	for _, id := range ids {
		t.told[id] = struct{}{}
	}
	return ids
}

// base returns the tree to build on, with its line. A disk of holes begins a line.
func (s *Session) base(ctx context.Context, want row.Tree, of point.ID) (candidate, error) {
	if want.Root.IsHole() {
		want.Line = newLine()
		return candidate{tree: want}, nil
	}
	made, ok := s.trees.find(want)
	if of == "" {
		if !ok {
			return made, fmt.Errorf("%w: %s is of %d chunks of no disk of this session", ErrBase, want.Root,
				want.Chunks)
		}
		return made, nil
	}
	trees, err := s.treesOf(ctx, of)
	if err != nil && !ok {
		return made, err
	}
	if t, found := s.trees.next(trees, want); found {
		return candidate{tree: t, bases: []point.ID{of}}, nil
	}
	if !ok {
		return made, fmt.Errorf("%w: point %s has no tree %s of %d chunks", ErrBase, of, want.Root, want.Chunks)
	}
	return made, nil
}

func newLine() (l row.Line) {
	rand.Read(l[:])
	return l
}

// treesOf returns the trees of a point that lives.
func (s *Session) treesOf(ctx context.Context, of point.ID) ([]row.Tree, error) {
	s.trees.mu.Lock()
	trees, ok := s.trees.of[of]
	s.trees.mu.Unlock()
	if ok {
		return trees, nil
	}
	trees, err := s.room.treesOf(ctx, of)
	if errors.Is(err, state.ErrNoPoint) { // another process may have made it since
		if err := s.room.Journal.Read(ctx); err != nil {
			return nil, err
		}
		trees, err = s.room.treesOf(ctx, of)
	}
	if err != nil {
		return nil, fmt.Errorf("trees of point %s: %w", of, err)
	}
	s.trees.mu.Lock()
	defer s.trees.mu.Unlock()
	if s.trees.of == nil {
		s.trees.of = map[point.ID][]row.Tree{}
	}
	s.trees.of[of] = trees
	return trees, nil
}

func (r *Room) treesOf(ctx context.Context, of point.ID) ([]row.Tree, error) {
	id, err := stateID(of)
	if err != nil {
		return nil, err
	}
	var p state.Point
	err = r.Journal.View(ctx, func(st *state.State) error {
		var ok bool
		if p, ok, err = st.Point(ctx, id); err == nil && !ok {
			err = state.ErrNoPoint
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	known, err := row.Decode(p.Manifest)
	if err != nil {
		return nil, err
	}
	return r.Content.Trees(ctx, known, r.good)
}

// good returns a pack that is good as the log was last read.
func (r *Room) good(ctx context.Context, id log.ObjectID) (o log.Object, ok bool, err error) {
	err = r.Journal.View(ctx, func(st *state.State) error {
		o, ok, err = st.Good(ctx, id)
		return err
	})
	return o, ok, err
}

// stateID returns the ID by which the state knows a point.
func stateID(id point.ID) (out state.ID, err error) {
	b, err := hex.DecodeString(string(id))
	if err != nil || len(b) != len(out) {
		return out, fmt.Errorf("point ID %q is not %d hexadecimal digits", id, 2*len(out))
	}
	return state.ID(b), nil
}

// Keep lets the point to be committed name the trees of another, which must live, as they are.
func (s *Session) Keep(ctx context.Context, of point.ID) error {
	if err := s.err(); err != nil {
		return err
	}
	trees, err := s.treesOf(ctx, of)
	if err != nil {
		return err
	}
	for _, t := range trees {
		s.trees.add(candidate{tree: t, bases: []point.ID{of}})
	}
	return nil
}

// choice is the trees of a point that is committed, each of a line of its own: what a purge frees
// is told tree by tree.
type choice struct {
	trees []row.Tree
	whole []row.Tree // those of them of which everything is to be counted as shared
	bases []point.ID // sorted
}

// choose finds the trees of the disks and files of p.
func (s *Session) choose(p *point.RecoveryPoint) (choice, error) {
	c := chooser{s: s, lines: map[row.Line]bool{}, on: map[point.ID]struct{}{}}
	for i := range p.Disks {
		if err := c.take(p.Disks[i].Root, p.Disks[i].Size); err != nil {
			return choice{}, fmt.Errorf("disk %s: %w", p.Disks[i].Name, err)
		}
	}
	for i := range p.Files {
		if err := c.take(p.Files[i].Root, p.Files[i].Size); err != nil {
			return choice{}, fmt.Errorf("file %s: %w", p.Files[i].Name, err)
		}
	}
	c.bases = slices.Sorted(maps.Keys(c.on))
	return c.choice, nil
}

type chooser struct {
	choice
	s     *Session
	lines map[row.Line]bool // that are taken
	on    map[point.ID]struct{}
}

// take takes a candidate whose line is not taken yet. If there is none, the tree begins a line of
// its own, in which it inherits nothing.
func (c *chooser) take(root string, size int64) error {
	id, err := chunk.ParseID(root)
	if err != nil {
		return err
	}
	t := row.Tree{Line: newLine(), Root: id, Chunks: c.s.chunks(size)}
	if id.IsHole() {
		c.trees = append(c.trees, t)
		return nil
	}
	all := c.s.trees.candidates(id, t.Chunks)
	if len(all) == 0 {
		return fmt.Errorf("%w: the session has made no tree %s of %d chunks, and kept none", ErrBase, id, t.Chunks)
	}
	i := slices.IndexFunc(all, func(x candidate) bool { return !c.lines[x.tree.Line] })
	if i < 0 {
		c.whole = append(c.whole, t)
	} else {
		t.Line = all[i].tree.Line
		for _, b := range all[i].bases {
			c.on[b] = struct{}{}
		}
	}
	c.lines[t.Line] = true
	c.trees = append(c.trees, t)
	return nil
}
