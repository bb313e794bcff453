package restore

import "sync/atomic"

// sumOf is a sum that several goroutines add to.
type sumOf struct{ n atomic.Int64 }

func (s *sumOf) add(more int64) int64 { return s.n.Add(more) }
