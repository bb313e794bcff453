package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// maxStale is how often work on a snapshot of the index begins again because others rewrote it, or
// purged meanwhile what was looked at.
const maxStale = 5

// surveyed is a point that lives, deleted softly or not, with all that it needs.
type surveyed struct {
	*stored
	deleted  bool
	trees    []treeOf
	manifest chunk.ID // zero for one that stands in the row
}

// surveyor takes stock of all points.
type surveyor struct {
	v *Vault
	// whole has every manifest read, and not only those that something is needed of.
	whole bool
	// bad is told of a point that is damaged, by its name in words; the point is left out unless
	// its row says what it needs.
	bad func(name string, err error) error
}

// survey returns all points that live, by their times, and the count of the entries that were read.
func (s *surveyor) survey(ctx context.Context) (points []*surveyed, count uint64, err error) {
	raw, deleted, count, err := s.rows(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, p := range raw {
		st, err := storedOf(p)
		if err != nil {
			if err := s.bad("point "+string(pointID(p.ID)), err); err != nil {
				return nil, 0, err
			}
			continue
		}
		_, gone := deleted[p.ID]
		points = append(points, &surveyed{stored: st, deleted: gone})
	}
	points, err = s.complete(ctx, points)
	slices.SortFunc(points, func(a, b *surveyed) int { return point.ByTime(&a.row.Point, &b.row.Point) })
	return points, count, err
}

// rows returns what the state has of points.
func (s *surveyor) rows(ctx context.Context) (all []state.Point, deleted map[state.ID]int64, count uint64, err error) {
	err = s.v.view(ctx, func(st *state.State) (err error) {
		count = st.Count()
		if deleted, err = deletedOf(ctx, st); err != nil {
			return err
		}
		return st.Points(ctx, func(p state.Point) bool { all = append(all, p); return true })
	})
	return all, deleted, count, err
}

// complete reads the manifests that are wanted, and says what points need.
func (s *surveyor) complete(ctx context.Context, points []*surveyed) (whole []*surveyed, err error) {
	errs := make([]error, len(points))
	var g errgroup.Group
	g.SetLimit(readAhead)
	for i, p := range points {
		g.Go(func() error { errs[i] = s.one(ctx, p); return nil })
	}
	_ = g.Wait() // errors are in errs
	for i, p := range points {
		if errs[i] != nil {
			if lives, err := s.v.lives(ctx, p.row.Point.ID); err != nil {
				return nil, err
			} else if !lives {
				continue // purged meanwhile
			}
			if err := s.bad(nameOf(&p.row.Point), errs[i]); err != nil {
				return nil, err
			}
		}
		if errs[i] == nil || len(p.trees) > 0 {
			whole = append(whole, p)
		}
	}
	return whole, nil
}

func (s *surveyor) one(ctx context.Context, p *surveyed) (err error) {
	if p.row.Inline == nil {
		p.manifest = p.row.Manifest.ID
	}
	if !p.row.Short {
		if p.trees, err = s.v.roots(&p.row.Point); err != nil || !s.whole {
			return err
		}
	}
	m, err := s.v.content.Manifest(ctx, p.row, s.v.goodPack)
	if err != nil {
		return err
	}
	trees, err := s.v.roots(&m.Point)
	if err != nil {
		return err
	}
	if err := sameTrees(trees, m.Trees); err != nil {
		return err
	}
	p.trees = trees
	if p.row.Short {
		p.row.Point = m.Point
	}
	return nil
}

func nameOf(p *point.RecoveryPoint) string { return "point " + string(p.ID) + " of " + p.VM }

// damagedPacks returns the packs in which a check found damage, as the log was last read.
func (v *Vault) damagedPacks(ctx context.Context) (found map[log.ObjectID]bool, err error) {
	found = map[log.ObjectID]bool{}
	err = v.journal.View(ctx, func(st *state.State) error {
		return st.DamagedPacks(ctx, func(id log.ObjectID) bool { found[id] = true; return true })
	})
	return found, err
}

// moved reports whether anything was entered into the log after the count-th entry: what was not
// found may have been purged.
func (v *Vault) moved(ctx context.Context, count uint64) (bool, error) {
	var now uint64
	err := v.view(ctx, func(st *state.State) error { now = st.Count(); return nil })
	return now != count, err
}

// isDamage reports whether err says that bytes are missing or wrong.
func isDamage(err error) bool {
	return err != nil && (errors.Is(err, log.ErrDamaged) || content.IsDamage(err))
}

// sameTrees compares the trees of a manifest with the disks and files that it tells of.
func sameTrees(of []treeOf, trees []row.Tree) error {
	same := len(of) == len(trees)
	for i := 0; same && i < len(of); i++ {
		same = of[i].root == trees[i].Root && of[i].chunks == trees[i].Chunks
	}
	if !same {
		return fmt.Errorf("%w: the manifest's disks and files are not those of its trees", ErrCorrupt)
	}
	return nil
}
