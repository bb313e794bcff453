package gc

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// run is a stretch of a pack that is read at once, with the rows in it.
type run struct {
	from log.Object
	off  int64
	size int64
	rows []int
}

// read returns the sealed bytes of rows, in their order. Those of packs that cannot be read are
// nil.
func (w *rewriting) read(ctx context.Context, rows []moving) ([][]byte, error) {
	sealed := make([][]byte, len(rows))
	var mu sync.Mutex
	err := each(ctx, readWays, runsOf(rows), func(ctx context.Context, r run) error {
		buf := make([]byte, r.size)
		if err := w.Packs.ReadSealed(ctx, r.from, buf, r.off); isDamage(err) {
			mu.Lock()
			defer mu.Unlock()
			if w.bad[r.from.ID] {
				return nil
			}
			return w.leave(ctx, r.from.ID, err)
		} else if err != nil {
			return err
		}
		for _, i := range r.rows {
			at := int64(rows[i].Offset) - r.off
			sealed[i] = buf[at : at+int64(rows[i].Stored)]
		}
		return nil
	})
	return sealed, err
}

// runsOf returns the stretches in which rows lie.
func runsOf(rows []moving) (runs []run) {
	order := make([]int, len(rows))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		if d := cmp.Compare(string(rows[i].from.ID[:]), string(rows[j].from.ID[:])); d != 0 {
			return d
		}
		return cmp.Compare(rows[i].Offset, rows[j].Offset)
	})
	for _, i := range order {
		off, size := int64(rows[i].Offset), int64(rows[i].Stored)
		if n := len(runs); n > 0 {
			last := &runs[n-1]
			if last.from.ID == rows[i].from.ID && off-(last.off+last.size) <= runGap && off+size-last.off <= runSize {
				last.size = off + size - last.off
				last.rows = append(last.rows, i)
				continue
			}
		}
		runs = append(runs, run{from: rows[i].from, off: off, size: size, rows: []int{i}})
	}
	return runs
}
