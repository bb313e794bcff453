package ext4

import (
	"slices"
	"sort"
)

// fastEdit is a range of a file that a fast commit mapped anew, or unmapped.
type fastEdit struct {
	run
	removed bool
}

// replace puts e over the edits before it.
func (s *fastState) replace(e fastEdit) {
	if e.count == 0 {
		return
	}
	i := sort.Search(len(s.edits), func(i int) bool { return s.edits[i].end() > e.start })
	k := sort.Search(len(s.edits), func(k int) bool { return s.edits[k].start >= e.end() })
	var with []fastEdit
	if i < k && s.edits[i].start < e.start {
		with = append(with, s.edits[i].clip(0, e.start))
	}
	with = append(with, e)
	if i < k && s.edits[k-1].end() > e.end() {
		with = append(with, s.edits[k-1].clip(e.end(), s.edits[k-1].end()))
	}
	s.edits = slices.Replace(s.edits, i, k, with...)
}

func (e fastEdit) clip(lo, hi uint64) fastEdit {
	return fastEdit{run: e.run.clip(lo, hi), removed: e.removed}
}

// clip returns the part of a run from lo up to hi, which it must touch.
func (r run) clip(lo, hi uint64) run {
	lo, hi = max(lo, r.start), min(hi, r.end())
	return run{start: lo, count: hi - lo, phys: r.phys + lo - r.start, hole: r.hole}
}

// edited returns a leaf as edits left it.
func (l *leaf) edited(edits []fastEdit) *leaf {
	out := &leaf{lo: l.lo, hi: l.hi}
	at, rest := l.lo, l.runs
	keep := func(end uint64) {
		for ; len(rest) > 0 && rest[0].start < end; rest = rest[1:] {
			if rest[0].end() > at {
				out.add(rest[0].clip(at, end))
			}
			if rest[0].end() > end {
				break
			}
		}
	}
	first := sort.Search(len(edits), func(i int) bool { return edits[i].end() > l.lo })
	for _, e := range edits[first:] {
		if e.start >= l.hi {
			break
		}
		keep(e.start)
		if !e.removed {
			out.add(e.run.clip(l.lo, l.hi))
		}
		at = e.end()
	}
	keep(l.hi)
	return out
}
