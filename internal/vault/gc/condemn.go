package gc

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

const (
	condemnAtOnce = 1000 // names in an entry
	tableWays     = 8    // tables that are read at the same time
)

// asOf is the entry as of which a run knows what lives.
type asOf struct {
	at    log.Position
	count uint64
}

// condemn finds packs in which little lives, moves that elsewhere, and condemns them.
func (c *collector) condemn(ctx context.Context) error {
	m, packs, err := c.look(ctx)
	if err != nil {
		return err
	}
	p, merged := c.o.Policy.plan(packs, c.o.Now())
	c.report.SmallPacks = merged
	// Dead ones first: that takes no room and gives some.
	alive, err := c.condemnDead(ctx, m, p.dead, p.part)
	if err != nil {
		return err
	}
	for _, x := range alive {
		if c.o.Policy.isThin(&x, 0, c.o.Now()) {
			p.thin = append(p.thin, x)
		}
	}
	if c.spent {
		if err := c.deleteCondemned(ctx); err != nil {
			return err
		}
	}
	return c.rewrite(ctx, m, p.thin)
}

// look returns the good packs that may be condemned and of which anything is to be done perhaps.
func (c *collector) look(ctx context.Context) (m asOf, packs []state.Pack, err error) {
	now := c.o.Now()
	err = c.scan(ctx, func(s *state.State) error {
		m, packs = asOf{s.At(), s.Count()}, nil
		c.report.LiveBytes = 0
		pins, err := s.Pins(ctx)
		if err != nil {
			return err
		}
		c.mirrored = len(pins) > 0
		needed, err := openNeeds(ctx, s)
		if err != nil {
			return err
		}
		var damaged []log.ObjectID
		err = s.EachPack(ctx, func(p state.Pack) bool {
			if f := c.dry[p.Object.ID]; f != nil && len(f.slots) > 0 {
				p.Freed, p.FreedBytes = f.freed, p.FreedBytes+f.bytes
				if p.FreedSince == 0 {
					p.FreedSince = now.UnixMilli()
				}
			}
			living, _ := live(&p)
			c.report.LiveBytes += living
			if !needed[p.Object.ID] && c.o.Policy.judge(&p, now) != keep {
				packs = append(packs, p)
			}
			return true
		})
		if err != nil {
			return err
		}
		packs, damaged, err = withoutDamaged(ctx, s, packs)
		for _, id := range damaged {
			c.trouble("pack %s is damaged and left alone", id)
		}
		return err
	})
	return m, packs, err
}

// openNeeds returns the packs that open sessions need whole.
func openNeeds(ctx context.Context, s *state.State) (map[log.ObjectID]bool, error) {
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

func withoutDamaged(ctx context.Context, s *state.State, packs []state.Pack) (sound []state.Pack,
	damaged []log.ObjectID, err error) {
	for _, p := range packs {
		is, err := s.IsDamaged(ctx, p.Object.ID)
		if err != nil {
			return nil, nil, err
		}
		if is {
			damaged = append(damaged, p.Object.ID)
		} else {
			sound = append(sound, p)
		}
	}
	return sound, damaged, nil
}

// condemnDead condemns the packs in which all rows are freed, and parts. It returns those in which
// some are not.
func (c *collector) condemnDead(ctx context.Context, m asOf, packs, parts []state.Pack) (alive []state.Pack,
	err error) {
	var mu sync.Mutex
	gone := parts
	err = each(ctx, tableWays, packs, func(ctx context.Context, p state.Pack) error {
		rows, err := c.rows(ctx, &p)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil && !isDamage(err):
			return err
		case err != nil:
			return c.damaged(ctx, p.Object.ID, err)
		case len(rows) == 0:
			gone = append(gone, p)
			c.report.DeadPacks++
		default:
			alive = append(alive, p)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if c.o.DryRun {
		c.freed(gone)
		return alive, nil
	}
	for len(gone) > 0 {
		n := min(len(gone), condemnAtOnce)
		if err := c.condemnThese(ctx, m, gone[:n]); err != nil {
			return nil, err
		}
		gone = gone[n:]
	}
	return alive, nil
}

func (c *collector) freed(packs []state.Pack) {
	for i := range packs {
		c.report.FreedBytes += int64(packs[i].Object.Size)
	}
}

// rows returns the rows of a pack that live.
func (c *collector) rows(ctx context.Context, p *state.Pack) (rows []moving, err error) {
	table, err := c.Secret.Table(ctx, c.Store, c.ID, p.Object)
	if err != nil {
		return nil, err
	}
	freed := bitmap(p.Freed)
	for i := range table {
		if !freed.has(uint32(i)) {
			rows = append(rows, moving{from: p.Object, slot: uint32(i), Entry: table[i]})
		}
	}
	return rows, nil
}

// condemnThese condemns packs in which nothing lives.
func (c *collector) condemnThese(ctx context.Context, m asOf, packs []state.Pack) error {
	ids := make([]log.ObjectID, len(packs))
	for i := range packs {
		ids[i] = packs[i].Object.ID
	}
	var bytes uint64
	err := c.append(ctx, func(ctx context.Context, s *state.State) ([]log.Op, error) {
		// What others condemned since may be taken into account: no copy elsewhere is relied on.
		op := state.Condemn{Packs: ids, Mark: m.at, MarkAt: m.count, Last: s.LastCondemn()}
		if err := op.Prune(ctx, s); err != nil {
			return nil, err
		}
		bytes = op.Bytes
		return []log.Op{op.Op()}, nil
	})
	if errors.Is(err, state.ErrNoChange) || errors.Is(err, state.ErrVoid) {
		return nil // by others, or for the next run
	}
	if err != nil {
		return fmt.Errorf("condemn packs: %w", err)
	}
	c.report.FreedBytes += int64(bytes)
	return nil
}

// noRoom notes that the store is full: what lives cannot be moved in this run.
func (c *collector) noRoom(err error) bool {
	if !errors.Is(err, blob.ErrNoSpace) {
		return false
	}
	c.o.Log("no room to rewrite packs in this run")
	c.trouble("there was no room to rewrite packs")
	return true
}

// moving is a row that is moved.
type moving struct {
	from log.Object
	slot uint32
	pack.Entry
}
