package gc

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

const (
	batchRows  = 8192     // rows that one condemnation moves, about: the more, the better they are gathered
	pinnedRows = 1000     // so many while a mirror follows: their recipes fit in an entry
	batchPacks = 800      // packs that one condemns
	batchSize  = 8        // packs that one makes, about
	runSize    = 8 << 20  // bytes that are read at once
	runGap     = 64 << 10 // bytes that are read for nothing rather than to read twice
	readWays   = 8        // reads at the same time
)

// batch is packs that are condemned together, with what lives in them: the oldest first, so that
// what was written together stays together.
type batch struct {
	packs []state.Pack
	rows  []moving
	bytes int64
}

func (b *batch) full(o *Options, mirrored bool) bool {
	return len(b.rows) >= batchRows || mirrored && len(b.rows) >= pinnedRows || len(b.packs) >= batchPacks ||
		b.bytes >= batchSize*o.Policy.PackSize
}

// rewrite moves what lives in packs to new ones and condemns them, in batches.
func (c *collector) rewrite(ctx context.Context, m asOf, packs []state.Pack) error {
	var b batch
	flush := func() error {
		err := c.rewriteBatch(ctx, m, &b)
		b = batch{}
		return err
	}
	for i := range packs {
		if c.report.RewrittenBytes+b.bytes >= c.o.Policy.Budget {
			break
		}
		if err := c.gather(ctx, &b, &packs[i]); err != nil {
			return err
		}
		if b.full(&c.o, c.mirrored) {
			if err := flush(); c.noRoom(err) {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil && !c.noRoom(err) {
		return err
	}
	return nil
}

// gather adds a pack with its living rows to a batch. A damaged one is left alone.
func (c *collector) gather(ctx context.Context, b *batch, p *state.Pack) error {
	rows, err := c.rows(ctx, p)
	if isDamage(err) {
		return c.damaged(ctx, p.Object.ID, err)
	}
	if err != nil {
		return err
	}
	b.packs, b.rows = append(b.packs, *p), append(b.rows, rows...)
	for i := range rows {
		b.bytes += int64(rows[i].Stored)
	}
	return nil
}

// rewriteBatch moves the rows of a batch and condemns its packs.
func (c *collector) rewriteBatch(ctx context.Context, m asOf, b *batch) error {
	if len(b.packs) == 0 {
		return nil
	}
	if c.o.DryRun {
		c.tally(b, b.packs)
		return nil
	}
	w := &rewriting{collector: c, mark: m, batch: b, bad: map[log.ObjectID]bool{}}
	err := w.move(ctx)
	if err == nil {
		err = w.storeLiterals(ctx)
	}
	if err == nil {
		err = w.append(ctx)
	}
	if err == nil {
		return nil
	}
	if giveUpErr := w.giveUp(ctx, err); giveUpErr != nil {
		return errors.Join(err, giveUpErr)
	}
	if errors.Is(err, state.ErrNoChange) || errors.Is(err, state.ErrVoid) {
		return nil // others did it, or somebody counts on all of it by now
	}
	return err
}

// tally adds a batch to the report.
func (c *collector) tally(b *batch, condemned []state.Pack) {
	is := map[log.ObjectID]bool{}
	for i := range condemned {
		is[condemned[i].Object.ID] = true
	}
	var moved int64
	for i := range b.rows {
		if is[b.rows[i].from.ID] {
			moved += int64(b.rows[i].Stored)
		}
	}
	c.report.ThinPacks += len(condemned)
	c.report.RewrittenBytes += moved
	c.report.FreedBytes -= moved
	c.freed(condemned)
}

// rewriting is a batch at work.
type rewriting struct {
	*collector
	mark     asOf
	batch    *batch
	bad      map[log.ObjectID]bool // packs of the batch that turned out damaged, or gone
	writer   *pack.Writer
	made     []made
	recipes  []log.Recipe
	literals *log.Object
	begun    []log.Object // names that may be in the store, with or without an entry
}

// made is a new pack.
type made struct {
	object  log.Object
	entries []pack.Entry
	rows    []moving // by slot
	recipe  *log.Recipe
	literal []byte
}

// move writes the rows of the batch to new packs, of which no entry tells yet.
func (w *rewriting) move(ctx context.Context) error {
	defer func() {
		if w.writer != nil {
			w.writer.Abort()
		}
	}()
	for rows := w.batch.rows; len(rows) > 0; {
		n, size := 0, int64(0)
		for n < len(rows) && (n == 0 || size+int64(rows[n].Stored) <= w.o.Memory) {
			size += int64(rows[n].Stored)
			n++
		}
		if err := w.moveThese(ctx, rows[:n]); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return w.finish(ctx)
}

// moveThese moves rows that fit in memory.
func (w *rewriting) moveThese(ctx context.Context, rows []moving) error {
	sealed, err := w.read(ctx, rows)
	if err != nil {
		return err
	}
	for i := range rows {
		r := &rows[i]
		if w.bad[r.from.ID] {
			continue
		}
		if err := w.begin(); err != nil {
			return err
		}
		_, err := w.writer.Move(ctx, r.from.ID, &r.Entry, sealed[i])
		if errors.Is(err, pack.ErrCorrupt) {
			if err := w.leave(ctx, r.from.ID, err); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		last := &w.made[len(w.made)-1]
		last.rows = append(last.rows, *r)
		if w.writer.Full(w.o.Policy.PackSize) {
			if err := w.finish(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *rewriting) begin() error {
	if w.writer != nil {
		return nil
	}
	w.writer = w.Secret.Begin(w.Store, w.Vault.ID, w.ids.Next())
	w.begun = append(w.begun, log.Object{ID: w.writer.ID(), Kind: log.Pack})
	w.made = append(w.made, made{})
	return nil
}

// finish stores the pack that is being written.
func (w *rewriting) finish(ctx context.Context) error {
	if w.writer == nil {
		return nil
	}
	m := &w.made[len(w.made)-1]
	if len(m.rows) == 0 {
		w.writer.Abort()
		w.writer, w.made, w.begun = nil, w.made[:len(w.made)-1], w.begun[:len(w.begun)-1]
		return nil
	}
	var err error
	if m.object, m.entries, err = w.writer.Commit(ctx); err != nil {
		return err
	}
	if r, literal, ok := w.writer.Recipe(); ok {
		m.recipe, m.literal = &r, literal
	}
	w.writer = nil
	return nil
}

// leave leaves a pack alone: it is damaged, unless others condemned it meanwhile.
func (w *rewriting) leave(ctx context.Context, id log.ObjectID, why error) error {
	w.bad[id] = true
	return w.damaged(ctx, id, why)
}

// storeLiterals stores what of the new packs does not come from elsewhere, for mirrors, as one
// object. Recipes that do not fit in an entry are left out: a mirror copies such packs.
func (w *rewriting) storeLiterals(ctx context.Context) error {
	id := w.ids.Next()
	var all []byte
	room := maxOp - w.opSize(nil)
	for i := range w.made {
		m := &w.made[i]
		if m.recipe == nil {
			continue
		}
		op := log.Op{Recipes: []log.Recipe{*m.recipe}}
		if room -= op.Size(); room < 0 {
			break
		}
		for j := range m.recipe.Pieces {
			if p := &m.recipe.Pieces[j]; p.Kind == log.Part {
				p.Of, p.Offset = id, p.Offset+uint64(len(all))
			}
		}
		w.recipes, all = append(w.recipes, *m.recipe), append(all, m.literal...)
		m.literal = nil
	}
	if len(w.recipes) == 0 {
		return nil
	}
	o := log.Object{ID: id, Kind: log.Part, Size: uint64(len(all)), Sum: log.HashOf(all)}
	w.begun = append(w.begun, o)
	if err := blob.Put(ctx, w.Store, o.Name(), all); err != nil {
		return fmt.Errorf("store recipes of packs: %w", err)
	}
	w.literals = &o
	return nil
}

// opSize returns about how many bytes the condemnation takes with some recipes.
func (w *rewriting) opSize(recipes []log.Recipe) int {
	op := log.Op{Recipes: recipes}
	n := op.Size() + 200 + len(w.batch.packs)*(24+8+1)
	for i := range w.made {
		n += 66 + 24 + 4 + 4 + 8 + 2*(len(w.made[i].rows)/8+1)
	}
	return n
}
