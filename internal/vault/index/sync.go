package index

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

const (
	atOnce  = 64   // tables that are read
	arrived = 1024 // packs that are asked for; those of one entry are not divided
)

func compare(a, b uint64) int { return cmp.Compare(a, b) }

// Sync takes in the packs that were added since the last Sync: their rows are found from then on.
// Those who call it at once share one that began after each of them called. What Packs needs must
// not be held by who calls Sync.
func (ix *Index) Sync(ctx context.Context) error {
	ix.mu.RLock()
	asked := ix.begun
	ix.mu.RUnlock()
	if err := ix.syncing.enter(ctx); err != nil {
		return fmt.Errorf("sync index: %w", err)
	}
	defer ix.syncing.leave()
	ix.mu.Lock()
	if ix.ended > asked {
		ix.mu.Unlock()
		return nil
	}
	ix.begun++
	n, retry := ix.begun, ix.retryHoles
	ix.good = newGoodPacks()
	ix.mu.Unlock()
	if err := ix.sync(ctx, retry); err != nil {
		return fmt.Errorf("sync index: %w", err)
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.synced, ix.ended, ix.retryHoles = true, n, ix.retryHoles && !retry
	return nil
}

func (ix *Index) sync(ctx context.Context, retry bool) error {
	if err := ix.readMissing(ctx); err != nil {
		return err
	}
	if retry {
		if err := ix.readHoles(ctx); err != nil {
			return err
		}
	}
	for more := true; more; {
		ix.mu.RLock()
		from, version := ix.done, ix.version
		ix.mu.RUnlock()
		to, rest, err := ix.take(ctx, span{from, ^uint64(0)})
		if err != nil {
			return err
		}
		ix.mu.Lock()
		if ix.version == version { // otherwise what was thought to be covered may not be
			ix.done, ix.seen, more = to, to, rest
			ix.missing = ix.missing.upTo(to)
		}
		ix.mu.Unlock()
		if err := ix.relieve(ctx); err != nil {
			return err
		}
	}
	return nil
}

// fill reads the tables of packs whose segment is lost.
func (ix *Index) fill(ctx context.Context) error {
	if err := ix.syncing.enter(ctx); err != nil {
		return err
	}
	defer ix.syncing.leave()
	return ix.readMissing(ctx)
}

func (ix *Index) readMissing(ctx context.Context) error {
	for {
		ix.mu.RLock()
		missing, version := ix.missing, ix.version
		ix.mu.RUnlock()
		if len(missing) == 0 {
			return nil
		}
		to, more, err := ix.take(ctx, missing[0])
		if err != nil {
			return err
		}
		ix.mu.Lock()
		if ix.version == version {
			ix.missing = ix.missing.minus(spans{{missing[0].from, to}})
			if !more && to < missing[0].to { // the log ends there
				ix.done, ix.missing = to, nil
			}
		}
		ix.mu.Unlock()
		if err := ix.relieve(ctx); err != nil {
			return err
		}
	}
}

// arrival is a pack that Packs tells of.
type arrival struct {
	object log.Object
	added  uint64
}

// take takes in packs that the first entries of a span added, and returns up to which entry. There
// may be more.
func (ix *Index) take(ctx context.Context, s span) (to uint64, more bool, err error) {
	var packs []arrival
	past := false
	upTo, err := ix.src.Packs.Since(ctx, s.from, func(o log.Object, added uint64) bool {
		if past = added > s.to; past {
			return false
		}
		if n := len(packs); n >= arrived && packs[n-1].added != added {
			more = true
			return false
		}
		packs = append(packs, arrival{o, added})
		return true
	})
	if err != nil {
		return 0, false, fmt.Errorf("ask for packs: %w", err)
	}
	switch {
	case more:
		upTo = packs[len(packs)-1].added
	case past:
		upTo = s.to
	default:
		upTo = min(upTo, s.to)
	}
	unknown := ix.unknown(packs)
	for batch := range slices.Chunk(unknown, ix.limits.batch) {
		if err := ix.readTables(ctx, batch, false); err != nil {
			return 0, false, err
		}
	}
	return upTo, more, nil
}

// unknown returns the packs whose tables must be read, and notes of the others by which entry they
// came.
func (ix *Index) unknown(packs []arrival) (unknown []arrival) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	covered := covered(ix.segments)
	drop := make(map[log.ObjectID]bool)
	for _, a := range packs {
		i, young := ix.young.byID[a.object.ID]
		switch {
		case covered.has(a.added):
			if young && ix.young.packs[i].known {
				drop[a.object.ID] = !ix.isHole(a.object.ID)
			}
		case !young:
			unknown = append(unknown, a)
		}
		if young && ix.young.packs[i].known && !drop[a.object.ID] {
			ix.young.packs[i] = &youngPack{object: a.object, added: a.added, entries: ix.young.packs[i].entries}
		}
	}
	if len(drop) > 0 {
		ix.young.remove(func(p *youngPack) bool { return drop[p.object.ID] })
	}
	return unknown
}

// isHole is for who holds ix.mu.
func (ix *Index) isHole(id log.ObjectID) bool {
	return slices.ContainsFunc(ix.holes, func(h hole) bool { return h.object.ID == id })
}

// readTables takes in packs of which nothing is known. A table that cannot be read is a hole; what
// else goes wrong is an error, after what was read has been taken in. Packs that were holes are
// strays: a segment covers their entries, and does not have their rows.
func (ix *Index) readTables(ctx context.Context, packs []arrival, strays bool) error {
	read := make([]*youngPack, len(packs))
	broken := make([]bool, len(packs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i, a := range packs {
		g.Go(func() error {
			entries, err := ix.tables(gctx, a.object)
			if err == nil && !fits(entries) {
				err = pack.ErrCorrupt
			}
			switch {
			case errors.Is(err, pack.ErrCorrupt), errors.Is(err, blob.ErrNotExist):
				broken[i] = true
			case err != nil:
				return fmt.Errorf("read table of %s: %w", a.object.Name(), err)
			default:
				read[i] = &youngPack{object: a.object, added: a.added, entries: entries}
			}
			return nil
		})
	}
	err := g.Wait()
	ix.mu.Lock()
	defer ix.mu.Unlock()
	covered := covered(ix.segments)
	for i, a := range packs {
		if covered.has(a.added) && !strays {
			continue // by a segment of another process, adopted meanwhile
		}
		ix.holes = slices.DeleteFunc(ix.holes, func(h hole) bool {
			return (read[i] != nil || broken[i]) && h.object.ID == a.object.ID
		})
		if broken[i] {
			ix.holes = append(ix.holes, hole(a))
		} else if read[i] != nil {
			ix.young.add(read[i])
		}
	}
	return err
}

// readHoles looks once whether tables that could not be read can be now, and forgets packs that are
// no longer good.
func (ix *Index) readHoles(ctx context.Context) error {
	ix.mu.RLock()
	holes := slices.Clone(ix.holes)
	ix.mu.RUnlock()
	if len(holes) == 0 {
		return nil
	}
	ids := make([]log.ObjectID, len(holes))
	for i := range holes {
		ids[i] = holes[i].object.ID
	}
	good, err := ix.askGood(ctx, ids)
	if err != nil {
		return err
	}
	var again []arrival
	bad := make(map[log.ObjectID]bool)
	for i, h := range holes {
		if bad[h.object.ID] = !good[i]; good[i] {
			again = append(again, arrival(h))
		}
	}
	ix.mu.Lock()
	ix.holes = slices.DeleteFunc(ix.holes, func(h hole) bool { return bad[h.object.ID] })
	ix.mu.Unlock()
	return ix.readTables(ctx, again, true)
}

// relieve writes young rows before they are too many. That it cannot is no error.
func (ix *Index) relieve(ctx context.Context) error {
	ix.mu.RLock()
	rows := ix.young.rows
	ix.mu.RUnlock()
	if rows <= ix.limits.most {
		return nil
	}
	_ = ix.flush(ctx) // rows stay in memory, and the next Flush meets the same
	return ctx.Err()
}
