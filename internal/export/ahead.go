package export

import (
	"sync"

	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

const (
	maxStreams  = 16        // sequential readers of one disk that are told apart
	streamSlack = 512 << 10 // bytes by which requests of a stream may be out of order, or leave out
	streamHits  = 3         // reads in a row that make a stream
	firstWindow = 512 << 10 // bytes read ahead at first
	mostWindow  = 8 << 20   // bytes read ahead at most
)

// readAhead finds sequential readers among the reads of a disk, and says what they will want next.
type readAhead struct {
	most int64 // bytes; 0 reads nothing ahead

	mu      sync.Mutex
	streams [maxStreams]stream
	clock   uint64
}

type stream struct {
	start  int64 // where it began
	next   int64 // where the reader is
	ahead  int64 // what was read ahead ends here
	window int64
	hits   int
	used   uint64 // clock of the last read
}

func newReadAhead(cache int64) *readAhead { return &readAhead{most: min(mostWindow, cache/8)} }

// seen takes in a read and returns the range to read ahead, which may be empty or reach past the
// disk's end. It does not wait: while another read is being looked at, it returns nothing.
func (r *readAhead) seen(off, n int64) (from, to int64) {
	if r.most < firstWindow || !r.mu.TryLock() {
		return 0, 0
	}
	defer r.mu.Unlock()
	r.clock++
	s := r.find(off)
	s.used = r.clock
	s.next = max(s.next, off+n)
	if s.hits++; s.hits < streamHits {
		return 0, 0
	}
	s.ahead = max(s.ahead, s.next)
	if s.next+s.window/2 < s.ahead {
		return 0, 0
	}
	from, to = s.ahead, s.next+s.window
	s.ahead = max(to, s.ahead)
	s.window = min(max(firstWindow, s.next-s.start), r.most) // as far ahead as it has come: most end early
	return from, to
}

// find returns the stream that a read at off belongs to, or a new one in place of the one that
// waited longest.
func (r *readAhead) find(off int64) *stream {
	oldest := &r.streams[0]
	for i := range r.streams {
		s := &r.streams[i]
		if s.hits > 0 && off >= s.next-streamSlack && off <= s.next+streamSlack {
			return s
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	*oldest = stream{start: off, next: off, window: firstWindow}
	return oldest
}

// refused takes back that [from, to) is read ahead.
func (r *readAhead) refused(from, to int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.streams {
		if s := &r.streams[i]; s.hits > 0 && s.ahead == to {
			s.ahead = from
		}
	}
}

// fetchAhead brings the chunks of [from, to) into the cache, in the background. If that is busy
// already it leaves it to a later read.
func (d *Disk) fetchAhead(from, to int64) {
	end := min(to, d.size)
	if from >= end {
		return
	}
	if !d.bg.try(func() { d.prefetch(from/d.chunk, (end+d.chunk-1)/d.chunk) }) {
		d.ahead.refused(from, to)
	}
}

// prefetch brings chunks [first, end) into the cache. Faults are not reported here: whoever reads
// the chunk is told.
func (d *Disk) prefetch(first, end int64) {
	var ids []chunk.ID
	for at := first; at < min(end, d.disk.Chunks()) && d.life.Err() == nil; at++ {
		id, err := d.disk.Chunk(d.life, at)
		if err != nil {
			return
		}
		if !id.IsHole() {
			ids = append(ids, id)
		}
	}
	d.bring(ids)
}

// bring fetches those of ids that are neither in the cache nor on their way.
func (d *Disk) bring(ids []chunk.ID) {
	var wanted []vault.Wanted
	for i := range ids {
		if d.cache.has(&ids[i]) {
			continue
		}
		f, mine := d.cache.claim(&ids[i], d.chunk)
		if !mine {
			continue
		}
		wanted = append(wanted, vault.Wanted{ID: f.id, Plain: f.plain, Done: func(err error) { d.cache.land(f, err) }})
	}
	if len(wanted) == 0 {
		return
	}
	d.stats.fetched.Add(int64(len(wanted)) * d.chunk)
	d.stats.ahead.Add(int64(len(wanted)) * d.chunk)
	d.reader.ReadChunks(d.life, wanted)
}
