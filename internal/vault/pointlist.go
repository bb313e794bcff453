package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// Thresholds of point lists. A manifest that no list has is read by everyone who looks for a point by its name.
const (
	manyUnlisted = 16    // points that no list has before one is written
	maxListed    = 50000 // points in one list, about
)

// pointLists are summaries of points, so that thousands are listed and searched without reading as many manifests. Lists in the vault are a cache: a
// point is there when its manifest is, whatever they say, and is read from its manifest where none has it. Of a manifest, which never changes,
// a summary is out of date only if the point was deleted, and then copied back under its ID; forget is for that.
type pointLists struct {
	write sync.Mutex // one writer of lists at a time

	mu       sync.Mutex
	lists    map[string]*pointList // by the name of the list
	bad      map[string]bool       // lists that cannot be read
	unlisted map[string]*summary   // points that no list has, by the name of their object
}

// Summaries returns the points that match, all if match is nil, oldest first, without their definitions, but for the kinds of these. It takes one
// listing, and reading a few objects however many points there are. A manifest that cannot be read, where one is, is an error. Match is called once for every
// point, in no order, and may not keep what it is given, nor anything below it. Nobody may change what is returned.
func (v *Vault) Summaries(ctx context.Context, match func(summary *point.RecoveryPoint) bool) ([]*point.RecoveryPoint, error) {
	all, err := v.summaries(ctx, match)
	if err != nil {
		return nil, err
	}
	points := make([]*point.RecoveryPoint, 0, len(all))
	for _, s := range all {
		points = append(points, &s.RecoveryPoint)
	}
	slices.SortFunc(points, point.ByTime)
	return points, nil
}

// summaries is Summaries in no order.
func (v *Vault) summaries(ctx context.Context, match func(*point.RecoveryPoint) bool) ([]*summary, error) {
	var lists []*pointList
	var names []string
	g, gctx := errgroup.WithContext(ctx) // neither says anything of the other: what is in no list is read
	g.Go(func() (err error) { lists, err = v.loadLists(gctx); return err })
	g.Go(func() (err error) { names, err = v.pointNames(gctx, ""); return err })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out []*summary
	var one summary
	names = notListed(lists, names, func(l *pointList, row listRow) {
		if match != nil {
			if l.read(row, &one); !match(&one.RecoveryPoint) {
				return
			}
		}
		s := new(summary)
		l.read(row, s)
		out = append(out, s)
	})
	unlisted, err := v.readUnlisted(ctx, names)
	if err != nil {
		return nil, err
	}
	for _, s := range unlisted {
		if match == nil || match(&s.RecoveryPoint) {
			out = append(out, s)
		}
	}
	return out, nil
}

// notListed returns those of the names of points, which ascend, that no list has, and calls visit with the rows of the others.
func notListed(lists []*pointList, names []string, visit func(*pointList, listRow)) []string {
	var not []string
	next := make([]int, len(lists)) // the first row of each list that is not before the name
	for _, name := range names {
		found := false
		for i, l := range lists {
			for next[i] < len(l.rows) && string(l.rows[next[i]].id) < name[len(pointsPrefix):] {
				next[i]++
			}
			if next[i] < len(l.rows) && string(l.rows[next[i]].id) == name[len(pointsPrefix):] && !found {
				found = true
				visit(l, l.rows[next[i]])
			}
		}
		if !found {
			not = append(not, name)
		}
	}
	return not
}

// readUnlisted returns the summaries of points that no list has, by the names of their objects. Those that were deleted meanwhile are left out.
func (v *Vault) readUnlisted(ctx context.Context, names []string) (map[string]*summary, error) {
	unlisted := v.lists.keepUnlisted(names)
	missing := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return unlisted[name] != nil })
	err := v.eachOf(ctx, missing, v.readPoint, func(name string, p *point.RecoveryPoint, err error) error {
		if err != nil {
			return unreadable(name, err)
		}
		unlisted[name] = summaryOf(p)
		return nil
	})
	v.lists.noteUnlisted(unlisted)
	return unlisted, err
}

// keepUnlisted returns what is known of points that no list has, and forgets all others.
func (l *pointLists) keepUnlisted(names []string) map[string]*summary {
	l.mu.Lock()
	defer l.mu.Unlock()
	keep := make(map[string]*summary)
	for _, name := range names {
		if s := l.unlisted[name]; s != nil {
			keep[name] = s
		}
	}
	l.unlisted = maps.Clone(keep)
	return keep
}

func (l *pointLists) noteUnlisted(points map[string]*summary) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unlisted == nil {
		l.unlisted = make(map[string]*summary)
	}
	maps.Copy(l.unlisted, points)
}

// loadLists returns the lists that can be read. Some of the points in them may be gone.
func (v *Vault) loadLists(ctx context.Context) ([]*pointList, error) {
	for try := 0; ; try++ {
		lists, moved, err := v.loadListsOnce(ctx)
		if err != nil {
			return nil, err
		}
		if moved && try < maxStale {
			continue // what a list had that went away is in another by now
		}
		return slices.Collect(maps.Values(lists)), nil
	}
}

// loadListsOnce reads the lists that are not known yet. It reports whether one went away between being listed and being read.
func (v *Vault) loadListsOnce(ctx context.Context) (lists map[string]*pointList, moved bool, err error) {
	v.lists.mu.Lock()
	known, bad := maps.Clone(v.lists.lists), make(map[string]bool)
	v.lists.mu.Unlock()
	lists = make(map[string]*pointList)
	var unknown []string
	for name, err := range blob.Names(ctx, v.store, listsPrefix, "") {
		if err != nil {
			return nil, false, fmt.Errorf("list the point lists: %w", err)
		}
		if l, ok := known[name]; ok {
			lists[name] = l
		} else {
			unknown = append(unknown, name)
		}
	}
	got, errs := make([]*pointList, len(unknown)), make([]error, len(unknown))
	var g errgroup.Group
	g.SetLimit(readAhead)
	for i, name := range unknown {
		g.Go(func() error {
			got[i], errs[i] = v.readList(ctx, name)
			return nil
		})
	}
	_ = g.Wait() // errors are in errs
	for i, name := range unknown {
		switch {
		case errors.Is(errs[i], blob.ErrNotExist):
			moved = true
		case errors.Is(errs[i], ErrCorrupt):
			bad[name] = true // its points are read from their manifests
		case errs[i] != nil:
			return nil, false, fmt.Errorf("read point list: %w", errs[i])
		default:
			lists[name] = got[i]
		}
	}
	v.lists.mu.Lock()
	defer v.lists.mu.Unlock()
	v.lists.lists, v.lists.bad = maps.Clone(lists), bad
	return lists, moved, nil
}

func (v *Vault) readList(ctx context.Context, name string) (*pointList, error) {
	raw, err := blob.Get(ctx, v.store, name)
	if err != nil {
		return nil, err
	}
	return v.openList(name, raw)
}

// listPoint takes in a point that was just committed, and writes a list if there are many that none has. A list is a cache: an error is none of the point's.
func (v *Vault) listPoint(ctx context.Context, p *point.RecoveryPoint) {
	v.lists.noteUnlisted(map[string]*summary{pointsPrefix + string(p.ID): summaryOf(p)})
	v.lists.mu.Lock()
	many := len(v.lists.unlisted) >= manyUnlisted
	v.lists.mu.Unlock()
	if many {
		_ = v.writeList(ctx, false)
	}
}

// writeList writes a list of the points that are known and in none, together with those of the lists that are not longer, which it replaces: so lists are few, and a
// point is written again about as often as the number of points doubles. If all is set it makes one of all lists, drops points that are gone, and
// deletes lists that cannot be read.
func (v *Vault) writeList(ctx context.Context, all bool) error {
	v.lists.write.Lock()
	defer v.lists.write.Unlock()
	lists, err := v.loadLists(ctx)
	if err != nil {
		return err
	}
	names, err := v.pointNames(ctx, "") // after the lists: whoever of those is not there was deleted
	if err != nil {
		return err
	}
	unlisted := v.lists.keepUnlisted(notListed(lists, names, func(*pointList, listRow) {}))
	if !all && len(unlisted) < manyUnlisted {
		return nil // another was faster
	}
	v.lists.mu.Lock()
	old, bad := maps.Clone(v.lists.lists), v.lists.bad
	v.lists.mu.Unlock()
	there := make(map[string]bool, len(names))
	for _, name := range names {
		there[name] = true
	}
	points := slices.Collect(maps.Values(unlisted))
	points, replaced, gone := mergeLists(points, old, there, all)
	switch {
	case len(points) == 0:
		err = v.deleteLists(ctx, replaced)
	case len(unlisted) >= manyUnlisted, len(replaced) > 1, gone:
		err = v.putList(ctx, points, replaced)
	}
	if all && err == nil {
		err = v.deleteLists(ctx, slices.Collect(maps.Keys(bad)))
	}
	return err
}

// mergeLists adds to points those of lists, shorter ones first, while they are no longer than what there is, or all, and returns which lists that were and
// whether points of theirs are gone.
func mergeLists(points []*summary, lists map[string]*pointList, there map[string]bool, all bool) (merged []*summary, replaced []string, gone bool) {
	seen := make(map[point.ID]bool)
	for _, s := range points {
		seen[s.ID] = true
	}
	names := slices.SortedFunc(maps.Keys(lists), func(a, b string) int { return len(lists[a].rows) - len(lists[b].rows) })
	for _, name := range names {
		if n := len(lists[name].rows); !all && n > len(points) || len(points)+n > maxListed {
			break
		}
		for _, s := range lists[name].all() {
			if !there[pointsPrefix+string(s.ID)] {
				gone = true
			} else if !seen[s.ID] {
				seen[s.ID] = true
				points = append(points, s)
			}
		}
		replaced = append(replaced, name)
	}
	return points, replaced, gone
}

// putList stores a list in place of others. If one of those is gone by then, somebody has replaced or forgotten it: the new one is taken back.
func (v *Vault) putList(ctx context.Context, points []*summary, replaced []string) error {
	slices.SortFunc(points, func(a, b *summary) int { return slices.Compare([]byte(a.ID), []byte(b.ID)) })
	name, raw, err := v.sealList(points)
	if err != nil {
		return err
	}
	if err := blob.Put(ctx, v.store, name, raw); err != nil {
		return fmt.Errorf("write a list of points: %w", err)
	}
	for _, old := range replaced {
		if _, err := v.store.Stat(ctx, old); err != nil {
			return errors.Join(err, v.deleteLists(ctx, []string{name}))
		}
	}
	return v.deleteLists(ctx, replaced)
}

func (v *Vault) deleteLists(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := v.store.Delete(ctx, name); err != nil {
			return fmt.Errorf("delete a list of points: %w", err)
		}
	}
	return nil
}

// forgetListed deletes the lists that have a point which is about to be written: one that was deleted and comes back as a copy.
func (v *Vault) forgetListed(ctx context.Context, id point.ID) error {
	if _, err := v.loadLists(ctx); err != nil {
		return err
	}
	v.lists.mu.Lock()
	var names []string
	for name, l := range v.lists.lists {
		if l.has(id) {
			names = append(names, name)
		}
	}
	delete(v.lists.unlisted, pointsPrefix+string(id))
	v.lists.mu.Unlock()
	return v.deleteLists(ctx, names)
}
