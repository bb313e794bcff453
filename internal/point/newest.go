package point

import (
	"cmp"
	"strings"
	"time"
)

// ByTime puts the oldest first; among points of one instant the order is that of their IDs.
func ByTime(a, b *RecoveryPoint) int {
	return compare(a.Time, a.ID, b.Time, b.ID)
}

func compare(at time.Time, a ID, bt time.Time, b ID) int {
	return cmp.Or(at.Compare(bt), strings.Compare(string(a), string(b)))
}

// Newest returns a filter that is shown points in any order, one after the other. It takes a point
// that is the newest by [ByTime] of one of its keys so far: so the newest of every key is among
// those taken, and if the order is by chance few others are. A point without keys is not taken.
func Newest(keys func(*RecoveryPoint) []string) func(*RecoveryPoint) bool {
	type instant struct {
		at time.Time
		id ID
	}
	newest := make(map[string]instant)
	return func(p *RecoveryPoint) bool {
		take := false
		for _, k := range keys(p) {
			if last, ok := newest[k]; !ok || compare(p.Time, p.ID, last.at, last.id) > 0 {
				newest[k] = instant{p.Time, p.ID}
				take = true
			}
		}
		return take
	}
}
