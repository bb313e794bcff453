package point_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
)

// Of every key the newest point is taken, whatever the order, and of many points few are.
func TestNewest(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 3))
		points := make([]*point.RecoveryPoint, 1+rng.IntN(300))
		want := map[string]*point.RecoveryPoint{}
		for i := range points {
			p := &point.RecoveryPoint{ID: point.NewID(), Time: time.Unix(int64(rng.IntN(200)), 0)}
			for range rng.IntN(3) {
				key := string(rune('a' + rng.IntN(4)))
				p.Warnings = append(p.Warnings, key)
				if want[key] == nil || point.ByTime(p, want[key]) > 0 {
					want[key] = p
				}
			}
			points[i] = p
		}
		taken := slices.Clone(points)
		takes := point.Newest(func(p *point.RecoveryPoint) []string { return p.Warnings })
		taken = slices.DeleteFunc(taken, func(p *point.RecoveryPoint) bool { return !takes(p) })
		for key, p := range want {
			if !slices.Contains(taken, p) {
				t.Errorf("seed %d: the newest of %s is not taken", seed, key)
			}
		}
		if len(taken) > 80 { // 4 keys, of each about the logarithm of 150
			t.Errorf("seed %d: %d of %d are taken", seed, len(taken), len(points))
		}
	}
}
