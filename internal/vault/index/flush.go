package index

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// Flush writes what is young into a segment if it is worth it, and merges segments if there are
// many: called after commits, in the background or at the end of a process. What goes wrong costs
// time later, and nothing else.
func (ix *Index) Flush(ctx context.Context) error {
	if err := ix.flush(ctx); err != nil {
		return fmt.Errorf("flush index: %w", err)
	}
	return nil
}

func (ix *Index) flush(ctx context.Context) error {
	if err := ix.flushing.enter(ctx); err != nil {
		return err
	}
	defer ix.flushing.leave()
	if !ix.worthIt() {
		return nil
	}
	ix.mu.RLock()
	mine := ix.root
	ix.mu.RUnlock()
	newest, err := ix.src.newestRoot(ctx, mine)
	if err != nil {
		return err
	}
	if newest.newerThan(mine) {
		if err := ix.adopt(newest); err != nil {
			return err
		}
		if !ix.worthIt() {
			return nil
		}
	}
	err = ix.rewrite(ctx)
	var lost *lostError
	if errors.As(err, &lost) {
		return ix.lose(ctx, lost)
	}
	return err
}

// worthIt reports whether there is enough to write, or to merge.
func (ix *Index) worthIt() bool {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	rows, packs := 0, 0
	for _, p := range ix.young.packs {
		if !p.known {
			rows += len(p.entries)
			packs++
		}
	}
	if !ix.synced && rows <= ix.limits.most || len(ix.holes) > maxHoles {
		return false
	}
	pieces := piecesOf(ix.segments)
	from, to := nextMerge(pieces, ix.seen)
	return rows > ix.limits.rows || packs > ix.limits.packs || to > from
}

func piecesOf(segments []*segment) (pieces []piece) {
	for _, s := range segments {
		pieces = append(pieces, piece{span: s.span, rows: s.rows, segments: []*segment{s}})
	}
	return pieces
}

// job is one rewriting of the index.
type job struct {
	version  int
	old      *root
	pieces   []piece
	holes    []hole
	segments []*segment // the new ones
	written  []string   // names of those that are in no root yet
}

// gather returns what is to be written.
func (ix *Index) gather() *job {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	j := &job{version: ix.version, old: ix.root, pieces: piecesOf(ix.segments), holes: slices.Clone(ix.holes)}
	covered := covered(ix.segments)
	for _, s := range (spans{{0, ix.done}}).minus(covered).minus(ix.missing) {
		j.pieces = append(j.pieces, piece{span: s})
	}
	slices.SortFunc(j.pieces, func(a, b piece) int { return compare(a.span.from, b.span.from) })
	for _, p := range ix.young.packs {
		if p.known {
			continue
		}
		for i := range j.pieces {
			if at := &j.pieces[i]; at.span.has(p.added) {
				at.take(p)
			}
		}
		if covered.has(p.added) {
			j.holes = append(j.holes, hole{p.object, p.added})
		}
	}
	j.pieces = plan(j.pieces, ix.seen)
	return j
}

func (p *piece) take(y *youngPack) {
	if len(p.segments) > 0 {
		p.strays = append(p.strays, y)
		return
	}
	p.young = append(p.young, y)
	p.rows += int64(len(y.entries))
}

// rewrite writes the segments of a job and a root of them, makes them those of the index, and
// deletes what nobody needs.
func (ix *Index) rewrite(ctx context.Context) error {
	j := ix.gather()
	listed, err := ix.listed(ctx)
	if err != nil {
		return err
	}
	err = ix.writeSegments(ctx, j)
	if err != nil || len(j.segments) == 0 {
		ix.deleteAll(ctx, j.written)
		return err
	}
	r := j.root(listed)
	if len(r.holes) > maxHoles || len(r.segments) > maxSegments {
		ix.deleteAll(ctx, j.written)
		return nil // nobody would read such a root
	}
	ix.mu.RLock()
	stale := ix.version != j.version
	ix.mu.RUnlock()
	if !stale {
		if err = ix.src.writeRoot(ctx, r); err == nil {
			stale = !ix.replace(j, r)
		}
	}
	if err != nil || stale {
		// a root in doubt may come to name them: whoever reads it does without
		if err == nil && r.name == "" {
			ix.deleteAll(ctx, j.written)
		}
		return err
	}
	ix.clean(ctx, j, r, listed)
	return nil
}

// writeSegments writes each piece that is not a segment already. A piece of which no row is left
// goes to its neighbour.
func (ix *Index) writeSegments(ctx context.Context, j *job) error {
	var empty []span
	for i := range j.pieces {
		p := &j.pieces[i]
		var s *segment
		if p.stays() {
			s = p.segments[0]
		} else {
			info, err := ix.merge(ctx, p)
			if err != nil {
				return err
			}
			if info.name == "" {
				empty = append(empty, p.span)
				continue
			}
			j.written = append(j.written, info.name)
			if s, err = newSegment(&ix.src, info); err != nil {
				return err
			}
			j.filled(p)
		}
		j.segments = append(j.segments, s)
	}
	for _, s := range empty {
		j.extend(s)
	}
	return nil
}

// filled takes the strays that were written with a piece out of the holes.
func (j *job) filled(p *piece) {
	j.holes = slices.DeleteFunc(j.holes, func(h hole) bool {
		return slices.ContainsFunc(p.strays, func(y *youngPack) bool { return y.object.ID == h.object.ID })
	})
}

// extend lets a neighbour cover a span that has no rows.
func (j *job) extend(s span) {
	for i, seg := range j.segments {
		wider := *seg
		switch {
		case seg.span.to == s.from:
			wider.span.to = s.to
		case seg.span.from == s.to:
			wider.span.from = s.from
		default:
			continue
		}
		j.segments[i] = &wider
		return
	}
}

func (j *job) root(listed []string) *root {
	r := &root{holes: j.holes}
	for _, s := range j.segments {
		r.segments = append(r.segments, s.info())
	}
	for _, name := range listed {
		if !hasSegment(j.segments, name) && !slices.Contains(j.replaced(), name) && len(r.suspects) < maxSuspects {
			r.suspects = append(r.suspects, name)
		}
	}
	return r
}

// replaced returns the names of segments that the job made unnecessary.
func (j *job) replaced() (names []string) {
	for _, p := range j.pieces {
		if !p.stays() {
			for _, s := range p.segments {
				names = append(names, s.name)
			}
		}
	}
	return names
}

// replace makes what a job wrote the index's, unless segments were lost or adopted meanwhile.
func (ix *Index) replace(j *job, r *root) bool {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.version != j.version {
		return false
	}
	ix.install(r, j.segments)
	written := make(map[*youngPack]bool)
	for _, p := range j.pieces {
		for _, y := range p.young {
			written[y] = true
		}
		if !p.stays() {
			for _, y := range p.strays {
				written[y] = true
			}
		}
	}
	ix.young.remove(func(p *youngPack) bool { return written[p] })
	return true
}

// listed returns the segments that stand in the store, as a hint.
func (ix *Index) listed(ctx context.Context) (names []string, err error) {
	for name, err := range blob.Names(ctx, ix.src.Store, segmentPrefix, "") {
		if err != nil || len(names) == maxSegments+maxSuspects {
			break
		}
		if isSegmentName(name) {
			names = append(names, name)
		}
	}
	return names, ctx.Err()
}

// clean deletes what the new root makes unnecessary: older roots, the segments that were merged or
// could not be read, and those that belonged to no root twice in a row. What cannot be deleted is
// left to a later flush.
func (ix *Index) clean(ctx context.Context, j *job, r *root, listed []string) {
	unused := j.replaced()
	ix.mu.RLock()
	for name := range ix.useless {
		unused = append(unused, name)
	}
	ix.mu.RUnlock()
	if j.old != nil {
		for _, name := range j.old.suspects {
			if slices.Contains(listed, name) {
				unused = append(unused, name)
			}
		}
	}
	for name, err := range blob.Names(ctx, ix.src.Store, rootPrefix, r.name) {
		if err != nil {
			break
		}
		unused = append(unused, name)
	}
	unused = slices.DeleteFunc(unused, func(name string) bool { return hasSegment(j.segments, name) })
	ix.deleteAll(ctx, unused)
}

func (ix *Index) deleteAll(ctx context.Context, names []string) {
	for _, name := range names {
		_ = ix.src.Store.Delete(ctx, name) // it costs room until a later flush finds it
	}
}
