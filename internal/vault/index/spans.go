package index

// span is a range of entries of the log: those with counts after from, up to to.
type span struct{ from, to uint64 }

func (s span) has(count uint64) bool { return count > s.from && count <= s.to }

// spans are in order and do not overlap.
type spans []span

func (s spans) has(count uint64) bool {
	for _, x := range s {
		if x.has(count) {
			return true
		}
	}
	return false
}

// minus returns what of s no span of o has.
func (s spans) minus(o spans) (rest spans) {
	for _, x := range s {
		for _, y := range o {
			if y.to <= x.from || y.from >= x.to {
				continue
			}
			if y.from > x.from {
				rest = append(rest, span{x.from, y.from})
			}
			x.from = min(y.to, x.to)
		}
		if x.from < x.to {
			rest = append(rest, x)
		}
	}
	return rest
}

// upTo returns what of s is not after count.
func (s spans) upTo(count uint64) (cut spans) {
	for _, x := range s {
		if x.to = min(x.to, count); x.from < x.to {
			cut = append(cut, x)
		}
	}
	return cut
}
