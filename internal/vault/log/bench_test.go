package log_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// BenchmarkPoints commits small points of many machines through one owner, into a directory.
func BenchmarkPoints(b *testing.B) {
	for _, sessions := range []int{1, 64, 1000} {
		b.Run(fmt.Sprintf("%d sessions", sessions), func(b *testing.B) {
			s, err := dir.Create(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			begin(b, s)
			o := open(b, s, log.Options{Owner: true})
			var next atomic.Int64
			var wg sync.WaitGroup
			for range sessions {
				wg.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						_, err := o.Append(context.Background(), func(ctx context.Context) ([]log.Op, error) {
							c := state.Commit{Points: []state.Point{{ID: pointID(int(n)), Manifest: make([]byte, 200)}}}
							return []log.Op{c.Op()}, c.Check(ctx, o.state)
						})
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "points/s")
			b.ReportMetric(float64(o.state.Count())/float64(b.N), "entries/point")
		})
	}
}
