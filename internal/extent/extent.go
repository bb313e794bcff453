// Package extent knows byte ranges of a disk and sorted sets of them.
//
// Offsets and lengths are bytes. A [Set] is sorted, and its members neither overlap nor touch;
// every function here returns such a set and keeps no slice it was given.
package extent

import "slices"

// Extent is the range [Off, Off+Len) of a disk, in bytes.
type Extent struct {
	Off int64 `json:"offset"`
	Len int64 `json:"length"`
}

// End returns the first byte after e.
func (e Extent) End() int64 { return e.Off + e.Len }

// Set is a sorted list of extents that neither overlap nor touch.
type Set []Extent

// Of returns the canonical set of the bytes covered by list, which may be in any order and overlap.
func Of(list ...Extent) Set {
	in := make([]Extent, 0, len(list))
	for _, e := range list {
		if e.Len > 0 {
			in = append(in, e)
		}
	}
	slices.SortFunc(in, func(a, b Extent) int {
		switch {
		case a.Off < b.Off:
			return -1
		case a.Off > b.Off:
			return 1
		}
		return 0
	})
	var out Set
	for _, e := range in {
		out = out.Append(e)
	}
	return out
}

// Append adds e, which must not begin before the last member of s, merging where they touch.
func (s Set) Append(e Extent) Set {
	if e.Len <= 0 {
		return s
	}
	if n := len(s); n > 0 && e.Off <= s[n-1].End() {
		s[n-1].Len = max(s[n-1].End(), e.End()) - s[n-1].Off
		return s
	}
	return append(s, e)
}

// Bytes returns the number of bytes that s covers.
func (s Set) Bytes() int64 {
	var n int64
	for _, e := range s {
		n += e.Len
	}
	return n
}

// Union returns the bytes that are in s or t.
func (s Set) Union(t Set) Set { return Of(append(slices.Clone([]Extent(s)), t...)...) }

// Intersect returns the bytes that are in both s and t.
func (s Set) Intersect(t Set) Set {
	var out Set
	for i, j := 0, 0; i < len(s) && j < len(t); {
		from, to := max(s[i].Off, t[j].Off), min(s[i].End(), t[j].End())
		if from < to {
			out = out.Append(Extent{from, to - from})
		}
		if s[i].End() < t[j].End() {
			i++
		} else {
			j++
		}
	}
	return out
}

// Subtract returns the bytes of s that are not in t.
func (s Set) Subtract(t Set) Set {
	var out Set
	j := 0
	for _, e := range s {
		at := e.Off
		for j < len(t) && t[j].End() <= at {
			j++
		}
		for k := j; k < len(t) && t[k].Off < e.End(); k++ {
			if t[k].Off > at {
				out = out.Append(Extent{at, t[k].Off - at})
			}
			at = max(at, t[k].End())
		}
		if at < e.End() {
			out = out.Append(Extent{at, e.End() - at})
		}
	}
	return out
}

// Align widens every member to multiples of unit bytes and clips the result at size, the end of the
// disk.
func (s Set) Align(unit, size int64) Set {
	var out Set
	for _, e := range s {
		from := e.Off / unit * unit
		to := min((e.End()+unit-1)/unit*unit, size)
		out = out.Append(Extent{from, to - from})
	}
	return out
}

// Clip returns the part of s inside window.
func (s Set) Clip(window Extent) Set { return s.Intersect(Set{window}) }
