package ext4

import (
	"iter"
	"slices"
	"sync/atomic"
)

// run is a number of consecutive blocks of a file that are consecutive on disk too.
type run struct {
	start, count uint64 // logical blocks
	phys         uint64 // the first one on disk
	hole         bool   // nothing is stored, or nothing was ever written
}

func (r run) end() uint64 { return r.start + r.count }

// leaf is the mapping of the blocks from lo up to hi, as one mapping block holds it. It is never
// changed.
type leaf struct {
	lo, hi uint64
	runs   []run // ascending, apart, all within lo and hi; what is missing is a hole
}

// at returns the rest of the run, or of the hole, that a block is in.
func (l *leaf) at(block uint64) run {
	i, found := slices.BinarySearchFunc(l.runs, block, func(r run, b uint64) int {
		switch {
		case r.end() <= b:
			return -1
		case r.start > b:
			return 1
		}
		return 0
	})
	if found {
		r := l.runs[i]
		skip := block - r.start
		return run{start: block, count: r.count - skip, phys: r.phys + skip, hole: r.hole}
	}
	end := l.hi
	if i < len(l.runs) {
		end = l.runs[i].start
	}
	return run{start: block, count: end - block, hole: true}
}

// add appends a run behind all others, as one with the last where they are one on disk.
func (l *leaf) add(r run) {
	if n := len(l.runs); n > 0 {
		last := &l.runs[n-1]
		if last.end() == r.start && !last.hole && !r.hole && last.phys+last.count == r.phys {
			last.count += r.count
			return
		}
	}
	l.runs = append(l.runs, r)
}

// blockMap finds the blocks of one file. It keeps the last leaf, and is safe for concurrent use.
type blockMap struct {
	fs   *FS
	in   *inode
	last atomic.Pointer[leaf]
}

// at returns the run that begins with a block of the file.
func (m *blockMap) at(block uint64) (run, error) {
	if l := m.last.Load(); l != nil && l.lo <= block && block < l.hi {
		return l.at(block), nil
	}
	l, err := m.leaf(block)
	if err != nil {
		return run{}, m.in.wrap(err)
	}
	if block < l.lo || block >= l.hi {
		return run{}, m.in.damaged("no mapping of block %d", block)
	}
	m.last.Store(l)
	return l.at(block), nil
}

func (m *blockMap) leaf(block uint64) (*leaf, error) {
	var l *leaf
	var err error
	if m.in.has(flagExtents) {
		l, err = m.fs.extentLeaf(m.in, block)
	} else {
		l, err = m.fs.indirectLeaf(m.in, block)
	}
	if err != nil || len(m.in.edits) == 0 {
		return l, err
	}
	return l.edited(m.in.edits), nil
}

// maxRuns bounds what one walk over the mapping of a file may find.
const maxRuns = 1 << 24

// runs yields the runs of the first count blocks, holes among them.
func (m *blockMap) runs(count uint64) iter.Seq2[run, error] {
	return func(yield func(run, error) bool) {
		steps := 0
		for block := uint64(0); block < count; {
			r, err := m.at(block)
			if steps++; err == nil && steps > m.fs.maxSteps() {
				err = m.in.damaged("its blocks are in more pieces than there are blocks")
			}
			if err != nil {
				yield(run{}, err)
				return
			}
			r.count = min(r.count, count-block)
			if !yield(r, nil) {
				return
			}
			block = r.end()
		}
	}
}

// maxSteps bounds the runs of a file: each holds a block of its own, or is the hole before or
// behind one.
func (f *FS) maxSteps() int {
	if f.sb.roCompat&roCompatSharedBlocks != 0 {
		return maxRuns
	}
	return int(min(maxRuns, 4*f.sb.blocks+16))
}

// blocksOf returns how many blocks hold size bytes.
func (f *FS) blocksOf(size int64) uint64 {
	return (uint64(size) + uint64(f.sb.blockSize) - 1) / uint64(f.sb.blockSize)
}

// checkBlocks refuses blocks on disk that no file can have.
func (f *FS) checkBlocks(phys, count uint64) error {
	if phys <= f.sb.firstDataBlock || phys >= f.sb.blocks || count > f.sb.blocks-phys {
		return damaged("blocks %d to %d of %d are not for files", phys, phys+count, f.sb.blocks)
	}
	return nil
}
