package index

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

func newName() string {
	var b [16]byte
	rand.Read(b[:])
	return Prefix + hex.EncodeToString(b[:])
}

// SessionEnd writes a segment of the young entries, by which others find what the session stored without listing packs, and merges segments if there are many.
func (ix *Index) SessionEnd(ctx context.Context) error {
	if err := ix.Seal(ctx); err != nil {
		return err
	}
	return ix.mergeClasses(ctx)
}

// Seal writes all young entries into a segment.
func (ix *Index) Seal(ctx context.Context) error {
	ix.seal.Lock()
	defer ix.seal.Unlock()
	rows, packs := ix.youngRows()
	if len(packs) == 0 {
		return nil
	}
	seg, err := ix.write(ctx, int64(len(rows)), func(add func(row) error) ([]packRow, error) {
		for _, r := range rows {
			if err := add(r); err != nil {
				return nil, err
			}
		}
		return packs, nil
	})
	if err != nil {
		return fmt.Errorf("write index segment: %w", err)
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.install(seg, nil)
	sealed := make(map[pack.Ref]bool, len(packs))
	for _, p := range packs {
		sealed[p.ref] = true
		delete(ix.young, p.ref)
	}
	rest := make(map[chunk.ID][]youngLoc)
	for id, locs := range ix.delta {
		for _, l := range locs {
			if !sealed[l.ref] {
				rest[id] = append(rest[id], l)
			}
		}
	}
	ix.delta = rest
	return nil
}

func (ix *Index) youngRows() ([]row, []packRow) {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	packs := make([]packRow, 0, len(ix.young))
	ordinal := make(map[pack.Ref]uint32, len(ix.young))
	for ref, y := range ix.young {
		ordinal[ref] = uint32(len(packs))
		packs = append(packs, packRow{ref, y.size})
	}
	rows := make([]row, 0, len(ix.delta))
	for id, locs := range ix.delta {
		for _, l := range locs {
			rows = append(rows, row{id: id, pack: ordinal[l.ref], offset: l.entry.Offset, stored: l.entry.Stored, plain: l.entry.Plain | uint32(l.entry.Encoding)<<24})
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return bytes.Compare(a.id[:], b.id[:]) })
	return rows, packs
}

// write makes a segment of what fill adds in ascending order, and loads it.
func (ix *Index) write(ctx context.Context, most int64, fill func(add func(row) error) ([]packRow, error)) (*segment, error) {
	name := newName()
	w, err := newSegmentWriter(ctx, ix.src.Store, name, ix.src.Vault, most)
	if err != nil {
		return nil, err
	}
	defer w.w.Abort()
	packs, err := fill(w.add)
	if err != nil {
		return nil, err
	}
	if err := w.commit(ctx, packs); err != nil {
		return nil, err
	}
	info, err := ix.src.Store.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	return loadSegment(ctx, ix.src.Store, info, ix.src.Vault)
}

// install adds seg and removes those in drop. The caller holds ix.mu.
func (ix *Index) install(seg *segment, drop []*segment) {
	seg.see(ix.packs, ix.listed)
	kept := make([]*segment, 0, len(ix.segments)+1)
	for _, s := range append(slices.Clone(ix.segments), seg) {
		if !slices.Contains(drop, s) {
			kept = append(kept, s)
		}
	}
	var base int64
	for i, s := range kept {
		moved := *s // readers of the old list keep their own
		moved.base = base
		base += s.entries
		kept[i] = &moved
	}
	ix.segments = kept
}

func class(entries int64) int { return bits.Len64(uint64(entries)>>10) / 3 }

// mergeClasses merges the segments of every size class that has fanIn of them.
func (ix *Index) mergeClasses(ctx context.Context) error {
	for {
		ix.mu.RLock()
		byClass := make(map[int][]*segment)
		var full []*segment
		for _, s := range ix.segments {
			c := class(s.entries)
			byClass[c] = append(byClass[c], s)
			if len(byClass[c]) >= fanIn {
				full = byClass[c]
			}
		}
		ix.mu.RUnlock()
		if full == nil {
			return nil
		}
		if err := ix.merge(ctx, full); err != nil {
			return err
		}
	}
}

// Merge merges all segments into one, drops entries of packs that the last Refresh has found gone, and deletes damaged segments.
func (ix *Index) Merge(ctx context.Context) error {
	if err := ix.deleteDamaged(ctx); err != nil {
		return err
	}
	ix.mu.RLock()
	all := slices.Clone(ix.segments)
	stale := len(all) > 1
	for _, s := range all {
		stale = stale || s.lacksPacks()
	}
	ix.mu.RUnlock()
	if !stale {
		return nil
	}
	return ix.merge(ctx, all)
}

// lacksPacks reports whether a pack of s is known to be gone.
func (s *segment) lacksPacks() bool {
	for i := range s.now {
		if s.now[i].Load() == packGone {
			return true
		}
	}
	return false
}

// deleteDamaged deletes the segments that could not be read: what they covered was read from packs.
func (ix *Index) deleteDamaged(ctx context.Context) error {
	for _, name := range ix.Damaged() {
		if err := ix.src.Store.Delete(ctx, name); err != nil {
			return fmt.Errorf("delete damaged index segment: %w", err)
		}
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.damaged = nil
	clear(ix.unreadable)
	return nil
}

func (ix *Index) merge(ctx context.Context, in []*segment) error {
	ix.seal.Lock()
	defer ix.seal.Unlock()
	var most int64
	for _, s := range in {
		most += s.entries
	}
	seg, err := ix.write(ctx, most, func(add func(row) error) ([]packRow, error) { return ix.mergeRows(ctx, in, add) })
	if isDamaged(err) || errors.Is(err, blob.ErrNotExist) {
		return ix.dropUnreadable(ctx, err) // the next merge works on what is whole
	}
	if err != nil {
		return fmt.Errorf("merge index segments: %w", err)
	}
	ix.mu.Lock()
	ix.install(seg, in)
	ix.mu.Unlock()
	for _, s := range in {
		if err := ix.src.Store.Delete(ctx, s.name); err != nil {
			return fmt.Errorf("delete merged index segment: %w", err)
		}
	}
	return nil
}

// cursor walks one segment in order.
type cursor struct {
	seg     *segment
	ordinal []uint32 // of the merged pack list, per pack of seg
	buf     []byte
	rows    []byte
	block   int
}

const gone = ^uint32(0)

func (c *cursor) next(ctx context.Context, store blob.Store) (row, bool, error) {
	for {
		if len(c.rows) == 0 {
			if c.block == c.seg.blocks {
				return row{}, false, nil
			}
			rows, err := c.seg.block(ctx, store, c.block, c.buf)
			if err != nil {
				return row{}, false, err
			}
			c.rows = rows
			c.block++
		}
		r := parseRow(c.rows)
		c.rows = c.rows[entrySize:]
		if int(r.pack) >= len(c.ordinal) || c.ordinal[r.pack] == gone {
			continue
		}
		r.pack = c.ordinal[r.pack]
		return r, true, nil
	}
}

func (ix *Index) mergeRows(ctx context.Context, in []*segment, add func(row) error) ([]packRow, error) {
	var packs []packRow
	seen := make(map[pack.Ref]bool)
	cursors := make([]*cursor, len(in))
	heads := make([]row, len(in))
	open := make([]bool, len(in))
	for i, s := range in {
		c := &cursor{seg: s, ordinal: make([]uint32, len(s.packs)), buf: make([]byte, blockSize)}
		for k, p := range s.packs {
			c.ordinal[k] = gone
			if s.now[k].Load() != packGone && !seen[p.ref] { // two processes may have sealed the same pack
				seen[p.ref] = true
				c.ordinal[k] = uint32(len(packs))
				packs = append(packs, p)
			}
		}
		var err error
		cursors[i] = c
		if heads[i], open[i], err = c.next(ctx, ix.src.Store); err != nil {
			return nil, err
		}
	}
	for {
		least := -1
		for i := range heads {
			if open[i] && (least < 0 || bytes.Compare(heads[i].id[:], heads[least].id[:]) < 0) {
				least = i
			}
		}
		if least < 0 {
			return packs, nil
		}
		if err := add(heads[least]); err != nil {
			return nil, err
		}
		var err error
		if heads[least], open[least], err = cursors[least].next(ctx, ix.src.Store); err != nil {
			return nil, err
		}
	}
}
