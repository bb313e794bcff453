// Package tier keeps sorted rows in tiers of immutable parts, so that many changes cost little and
// two who make the same changes in the same order store the same parts.
//
// Rows come in stretches. Each stretch is a run; eight runs of one length in a row become one run
// of eight times the length. What is merged, and when, follows from the number of stretches alone,
// and what stands in a part from its rows and the stretches that it spans. A part is read when a
// row in its range is asked for. [Tiers] is not safe for concurrent use, but parts may be shared.
package tier

import (
	"bytes"
	"context"
	"iter"
	"slices"
	"sort"
	"sync"

	"golang.org/x/sync/errgroup"
)

// fanOut is how many runs of one length become one.
const fanOut = 8

// partSize is about how many bytes of rows a part holds.
const partSize = 256 << 10

// Row is a key with its value, or with the note that it is gone.
type Row struct {
	Key, Value []byte
	Gone       bool
}

// Rules are what rows of a kind obey when they meet.
type Rules interface {
	// Adds reports whether the values of a key add up; otherwise the newest row of it counts. A key
	// that adds up is not put again once it is gone.
	Adds(key []byte) bool
	// Join returns the row of a key that adds up and has an older one.
	Join(older, newer Row) Row
	// Keep reports whether a row is still wanted now.
	Keep(r Row) bool
}

// Store keeps parts.
type Store interface {
	// Put stores the rows of a part, and says where.
	Put(ctx context.Context, from, to uint64, rows []Row) (Part, error)
	// Get returns the rows of a part. Nobody changes them.
	Get(ctx context.Context, p Part) ([]Row, error)
}

// Part is a stored piece of a run.
type Part struct {
	From, To    uint64 // the stretches that it spans: after From, up to To
	Salt        [16]byte
	Size        uint32 // bytes as stored
	First, Last []byte // keys
}

// Run is the rows of some stretches, in the order of their keys.
type Run struct {
	From, To uint64
	Parts    []Part
	rows     []Row          // not stored yet; then there are no parts
	keep     func(Row) bool // which rows were wanted when the stretch was added
}

// Tiers are all runs, the oldest first.
type Tiers struct {
	Runs  []Run
	store Store
	rules Rules
	made  []Run // stretches that were added since Settle
}

// New returns tiers of stored runs.
func New(s Store, r Rules, runs []Run) *Tiers { return &Tiers{Runs: runs, store: s, rules: r} }

// Add adds the rows of the next stretch, sorted by key. Nothing is stored before Settle. What is
// merged because of this stretch loses the rows that keep does not want.
func (t *Tiers) Add(rows []Row, keep func(Row) bool) {
	n := t.Stretches()
	t.made = append(t.made, Run{From: n, To: n + 1, rows: rows, keep: keep})
}

// Stretches returns how many stretches were added.
func (t *Tiers) Stretches() uint64 {
	if n := len(t.made); n > 0 {
		return t.made[n-1].To
	}
	if n := len(t.Runs); n > 0 {
		return t.Runs[n-1].To
	}
	return 0
}

// Settle stores what was added and merges what is due. If it fails what was added stays as it is.
func (t *Tiers) Settle(ctx context.Context) error {
	for len(t.made) > 0 {
		runs := append(slices.Clone(t.Runs), t.made[0])
		for due(runs) {
			at := len(runs) - fanOut
			merged, err := t.merge(ctx, runs[at:], t.made[0].keep)
			if err != nil {
				return err
			}
			runs = append(runs[:at:at], merged)
		}
		last := &runs[len(runs)-1]
		if len(last.rows) > 0 {
			stored, err := t.put(ctx, last.From, last.To, slices.Values(last.rows))
			if err != nil {
				return err
			}
			*last = stored
		}
		t.Runs, t.made = runs, t.made[1:]
	}
	return nil
}

func due(runs []Run) bool {
	if len(runs) < fanOut {
		return false
	}
	last := runs[len(runs)-1]
	for _, r := range runs[len(runs)-fanOut:] {
		if r.To-r.From != last.To-last.From {
			return false
		}
	}
	return true
}

// merge makes one run of several that follow each other. In the oldest run nothing need be gone.
func (t *Tiers) merge(ctx context.Context, runs []Run, keep func(Row) bool) (Run, error) {
	from, to := runs[0].From, runs[len(runs)-1].To
	var failed error
	rows := func(yield func(Row) bool) {
		for row, err := range t.walk(ctx, runs, nil, nil) {
			if failed = err; err != nil {
				return
			}
			if from == 0 && row.Gone || !keep(row) {
				continue
			}
			if !yield(row) {
				return
			}
		}
	}
	merged, err := t.put(ctx, from, to, rows)
	if failed != nil {
		err = failed
	}
	return merged, err
}

// put stores rows as the parts of a run.
func (t *Tiers) put(ctx context.Context, from, to uint64, rows iter.Seq[Row]) (Run, error) {
	run := Run{From: from, To: to}
	var part []Row
	size := 0
	flush := func() error {
		if len(part) == 0 {
			return nil
		}
		p, err := t.store.Put(ctx, from, to, part)
		if err != nil {
			return err
		}
		p.From, p.To, p.First, p.Last = from, to, part[0].Key, part[len(part)-1].Key
		run.Parts = append(run.Parts, p)
		part, size = nil, 0
		return nil
	}
	for row := range rows {
		if size >= partSize {
			if err := flush(); err != nil {
				return run, err
			}
		}
		part = append(part, row)
		size += len(row.Key) + len(row.Value) + 8
	}
	return run, flush()
}

// all returns the runs, those that are not settled too.
func (t *Tiers) all() []Run { return append(t.Runs[:len(t.Runs):len(t.Runs)], t.made...) }

// Get returns the row of a key and whether there is one; one that is gone is none. over are newer
// rows that have not been added, the newest first.
func (t *Tiers) Get(ctx context.Context, key []byte, over ...map[string]Row) (Row, bool, error) {
	var found Row
	have := false
	adds := t.rules.Adds(key)
	join := func(older Row) (enough bool) {
		if have {
			older = t.rules.Join(older, found)
		}
		found, have = older, true
		return !adds
	}
	for _, m := range over {
		if row, ok := m[string(key)]; ok && join(row) {
			return found, !found.Gone && t.rules.Keep(found), nil
		}
	}
	for _, run := range slices.Backward(t.all()) {
		row, ok, err := t.inRun(ctx, run, key)
		if err != nil {
			return found, false, err
		}
		if ok && join(row) {
			break
		}
	}
	return found, have && !found.Gone && t.rules.Keep(found), nil
}

// Warm reads the parts that Get of keys will ask for, all at once, so that a store far away is
// asked in one round trip. What goes wrong is left for Get to find.
func (t *Tiers) Warm(ctx context.Context, keys ...[]byte) {
	wanted := map[[16]byte]Part{}
	for _, run := range t.Runs {
		for _, key := range keys {
			if p, ok := run.part(key); ok {
				wanted[p.Salt] = p
			}
		}
	}
	if len(wanted) < 2 {
		return
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, readAhead)
	for _, p := range wanted {
		slots <- struct{}{}
		wg.Go(func() {
			_, _ = t.store.Get(ctx, p)
			<-slots
		})
	}
	wg.Wait()
}

// readAhead is how many parts are read at once.
const readAhead = 32

// part returns the part of a run that may have a key.
func (r *Run) part(key []byte) (Part, bool) {
	i := sort.Search(len(r.Parts), func(i int) bool { return bytes.Compare(r.Parts[i].Last, key) >= 0 })
	if i == len(r.Parts) || bytes.Compare(key, r.Parts[i].First) < 0 {
		return Part{}, false
	}
	return r.Parts[i], true
}

func (t *Tiers) inRun(ctx context.Context, run Run, key []byte) (Row, bool, error) {
	rows := run.rows
	if len(run.Parts) > 0 {
		p, ok := run.part(key)
		if !ok {
			return Row{}, false, nil
		}
		var err error
		if rows, err = t.store.Get(ctx, p); err != nil {
			return Row{}, false, err
		}
	}
	i := sort.Search(len(rows), func(i int) bool { return bytes.Compare(rows[i].Key, key) >= 0 })
	if i == len(rows) || !bytes.Equal(rows[i].Key, key) {
		return Row{}, false, nil
	}
	return rows[i], true, nil
}

// Scan yields the rows whose key begins with prefix, in order. over are as for Get.
func (t *Tiers) Scan(ctx context.Context, prefix []byte, over ...map[string]Row) iter.Seq2[Row, error] {
	return t.ScanFrom(ctx, prefix, prefix, over...)
}

// ScanFrom is Scan from a key on that begins with prefix.
func (t *Tiers) ScanFrom(ctx context.Context, prefix, from []byte, over ...map[string]Row) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		runs := t.all()
		for _, m := range slices.Backward(over) {
			runs = append(runs, Run{rows: Sorted(m, prefix)})
		}
		for row, err := range t.walk(ctx, runs, from, after(prefix)) {
			if err == nil && (row.Gone || !t.rules.Keep(row)) {
				continue
			}
			if !yield(row, err) || err != nil {
				return
			}
		}
	}
}

// after returns the first key beyond all that begin with prefix; nil if there is none.
func after(prefix []byte) []byte {
	end := slices.Clone(prefix)
	for len(end) > 0 {
		if end[len(end)-1]++; end[len(end)-1] != 0 {
			return end
		}
		end = end[:len(end)-1]
	}
	return nil
}

// Sorted returns the rows of a map whose keys begin with prefix, in order.
func Sorted(m map[string]Row, prefix []byte) []Row {
	var rows []Row
	for k, row := range m {
		if bytes.HasPrefix([]byte(k), prefix) {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b Row) int { return bytes.Compare(a.Key, b.Key) })
	return rows
}

// cursor walks the rows of a run.
type cursor struct {
	run  Run
	part int // the next one to read
	rows []Row
}

// walk yields the rows of runs, the oldest first, from the key begin on and before end, joined.
func (t *Tiers) walk(ctx context.Context, runs []Run, begin, end []byte) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		cursors := make([]*cursor, len(runs))
		var g errgroup.Group // a store far away is asked for all runs in one round trip
		g.SetLimit(readAhead)
		for i, r := range runs {
			cursors[i] = &cursor{run: r, rows: r.rows}
			g.Go(func() error { return cursors[i].seek(ctx, t.store, begin) })
		}
		if err := g.Wait(); err != nil {
			yield(Row{}, err)
			return
		}
		for {
			row, ok, err := t.step(ctx, cursors)
			if err != nil {
				yield(Row{}, err)
				return
			}
			if !ok || end != nil && bytes.Compare(row.Key, end) >= 0 || !yield(row, nil) {
				return
			}
		}
	}
}

// step takes the row of the least key off all cursors.
func (t *Tiers) step(ctx context.Context, cursors []*cursor) (row Row, ok bool, err error) {
	var least []byte
	for _, c := range cursors {
		if len(c.rows) > 0 && (!ok || bytes.Compare(c.rows[0].Key, least) < 0) {
			least, ok = c.rows[0].Key, true
		}
	}
	if !ok {
		return row, false, nil
	}
	have := false
	for _, c := range cursors {
		if len(c.rows) == 0 || !bytes.Equal(c.rows[0].Key, least) {
			continue
		}
		if have && t.rules.Adds(least) {
			row = t.rules.Join(row, c.rows[0])
		} else {
			row, have = c.rows[0], true
		}
		c.rows = c.rows[1:]
		if err := c.seek(ctx, t.store, nil); err != nil {
			return row, false, err
		}
	}
	return row, true, nil
}

// seek drops rows before a key, and reads the next part when none are left.
func (c *cursor) seek(ctx context.Context, s Store, key []byte) error {
	for {
		i := sort.Search(len(c.rows), func(i int) bool { return bytes.Compare(c.rows[i].Key, key) >= 0 })
		if c.rows = c.rows[i:]; len(c.rows) > 0 || c.part >= len(c.run.Parts) {
			return nil
		}
		p := c.run.Parts[c.part]
		c.part++
		if bytes.Compare(p.Last, key) < 0 {
			continue
		}
		rows, err := s.Get(ctx, p)
		if err != nil {
			return err
		}
		c.rows = rows
	}
}

// On returns a copy of the tiers, changed apart from them, that keeps its parts elsewhere.
func (t *Tiers) On(s Store, r Rules) *Tiers {
	return &Tiers{Runs: slices.Clip(t.Runs), store: s, rules: r, made: slices.Clip(t.made)}
}
