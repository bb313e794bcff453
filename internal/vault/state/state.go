// Package state is what a vault's log folds to: a pure function of its entries.
//
// A [State] holds what a cut log leaves no other trace of: points, deleted and purged ones, holds
// and locks, packs with the bits that say what may be freed of them, condemned names, open
// sessions, mirrors, who wrote what last. All of it is rows, sorted by key, in tiers of immutable
// parts under a small root ([tier]); so a checkpoint costs what changed since the one before, and a
// state of millions of points is opened by reading its root. Two who fold the same entries make the
// same checkpoint, bit for bit.
//
// Folding an entry reads nothing and never fails for want of a rule: whoever writes an entry judges
// before, by [Commit.Check] and its like, whether it is valid after all that stands before it.
//
// docs/formats/state.md is the format. A State is not safe for concurrent use.
package state

import (
	"context"
	"fmt"
	"maps"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state/tier"
)

// class says who can read rows.
type class int

const (
	open   class = iota // whoever has the log key: what a mirror must know
	sealed              // whoever has the data key
	classes
)

// Options tunes a state. The zero value of each field is its default.
type Options struct {
	RememberVolumes uint32    // for how many volumes at least names and nonces are remembered; 0 means 30
	RememberDays    int       // and for how many days, by the dates of volumes; 0 means 30, negative none
	Without         log.Rules // rules that are left out: tests of tests only
}

// State is what the entries of a log fold to.
type State struct {
	parts *parts
	opts  Options
	root  root
	tiers [classes]*tier.Tiers
	rows  [classes]map[string]tier.Row // since the last stretch was added

	trying  bool
	tried   root
	purges  uint32 // points that are tried to be purged
	tryRows [classes]map[string]tier.Row
}

// stretch is how many entries go into the tiers at once.
const stretch = log.EveryEntries

// New returns the state before any entry.
func New(s blob.Store, k *Keys, o Options) *State {
	if o.RememberVolumes == 0 {
		o.RememberVolumes = 30
	}
	if o.RememberDays == 0 {
		o.RememberDays = 30
	}
	st := &State{parts: newParts(s, k), opts: o}
	st.Reset()
	return st
}

// Reset implements [log.State].
func (s *State) Reset() {
	s.root = root{}
	for c := range classes {
		s.tiers[c] = tier.New(s.parts.of(c), rules{s}, nil)
		s.rows[c] = map[string]tier.Row{}
	}
	s.Drop()
}

// Apply implements [log.State].
func (s *State) Apply(e *log.Entry) error {
	if e.Hidden {
		return fmt.Errorf("fold entry %s: its bodies cannot be opened without the data key", e.At)
	}
	f := newFold(s.root)
	f.root.Count++
	f.root.At, f.root.Head, f.root.Ended = e.At, e.Hash, false
	f.root.Term = max(f.root.Term, e.Term)
	for i := range e.Ops {
		if err := f.op(&e.Ops[i], e); err != nil {
			return err
		}
	}
	if e.Nonce != (log.Nonce{}) {
		f.join(sealed, writerKey(e.Nonce.Writer), writerRow{Last: e.Nonce.Seq, Mask: 1, In: e.At.Volume}.encode())
	}
	s.root = f.root
	s.add(f, s.rows)
	if s.root.Count%stretch == 0 {
		forget := s.root.Forget
		for c := range classes {
			s.tiers[c].Add(tier.Sorted(s.rows[c], nil), func(r tier.Row) bool { return keep(r, forget) })
			s.rows[c] = map[string]tier.Row{}
		}
	}
	return nil
}

// add joins what a fold changed to rows.
func (s *State) add(f *fold, to [classes]map[string]tier.Row) {
	for c := range classes {
		for k, row := range f.rows[c] {
			if older, ok := to[c][k]; ok && adds(row.Key) {
				row = join(older, row)
			}
			to[c][k] = row
		}
	}
}

// Try implements [log.State].
func (s *State) Try(op log.Op) error {
	if !s.trying {
		s.trying, s.tried, s.purges = true, s.root, 0
		s.tried.Count++ // the entry of all that is tried
		for c := range classes {
			s.tryRows[c] = map[string]tier.Row{}
		}
	}
	f := newFold(s.tried)
	f.purges = s.purges
	if err := f.op(&op, nil); err != nil {
		return err
	}
	s.tried, s.purges = f.root, f.purges
	s.add(f, s.tryRows)
	return nil
}

// Drop implements [log.State].
func (s *State) Drop() {
	s.trying = false
	s.tryRows = [classes]map[string]tier.Row{}
}

// now returns the root with what is tried.
func (s *State) now() *root {
	if s.trying {
		return &s.tried
	}
	return &s.root
}

// get returns the value of a key, nil if there is none.
func (s *State) get(ctx context.Context, c class, key []byte) ([]byte, error) {
	row, ok, err := s.tiers[c].Get(ctx, key, s.over(c)...)
	if err != nil || !ok {
		return nil, err
	}
	if row.Value == nil {
		return []byte{}, nil
	}
	return row.Value, nil
}

func (s *State) has(ctx context.Context, c class, key []byte) (bool, error) {
	v, err := s.get(ctx, c, key)
	return v != nil, err
}

// scan calls do for the rows whose keys begin with prefix, in order, until it reports false.
func (s *State) scan(ctx context.Context, c class, prefix []byte, do func(key, value []byte) bool) error {
	return s.scanFrom(ctx, c, prefix, prefix, do)
}

// scanFrom does the same from a key on.
func (s *State) scanFrom(ctx context.Context, c class, prefix, from []byte, do func(key, value []byte) bool) error {
	for row, err := range s.tiers[c].ScanFrom(ctx, prefix, from, s.over(c)...) {
		if err != nil {
			return err
		}
		if !do(row.Key, row.Value) {
			return nil
		}
	}
	return nil
}

// over returns the rows that are in no tier yet, the newest first.
func (s *State) over(c class) []map[string]tier.Row {
	if s.trying {
		return []map[string]tier.Row{s.tryRows[c], s.rows[c]}
	}
	return []map[string]tier.Row{s.rows[c]}
}

// Count returns how many entries were folded in.
func (s *State) Count() uint64 { return s.root.Count }

// At returns the position of the last entry.
func (s *State) At() log.Position { return s.root.At }

// Counters returns sums over all that lives.
func (s *State) Counters() Counters { return s.now().Counters }

// Clone returns a state that is changed apart from this one.
func (s *State) Clone() *State { return s.on(s.parts) }

func (s *State) on(p *parts) *State {
	c := &State{parts: p, opts: s.opts, root: s.root}
	for i := range classes {
		c.tiers[i] = s.tiers[i].On(p.of(i), rules{c})
		c.rows[i] = maps.Clone(s.rows[i])
	}
	return c
}
