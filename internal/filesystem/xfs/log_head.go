package xfs

import (
	"errors"
	"fmt"
)

// head returns the block after the last record that was written, as far as the rounds tell, or -1
// if nothing ever was.
func (j *journal) head() (int64, error) {
	first, err := j.cycleAt(0)
	if err != nil || first == 0 {
		return -1, err
	}
	last, err := j.cycleAt(j.blocks - 1)
	if err != nil {
		return 0, err
	}
	var head int64
	switch {
	case last == 0: // the log was not written to its end yet
		head, err = j.firstOf(0)
		if err == nil {
			head, err = j.backTo(head, 0)
		}
	case last == first: // the head is at the end, or there is a gap near the beginning
		head, err = j.backOverGaps(j.blocks, last-1)
	default:
		head, err = j.firstOf(last)
		if err == nil {
			head, err = j.backOverGaps(head, last)
		}
	}
	if err != nil {
		return 0, err
	}
	if head, err = j.backToWhole(head); err != nil {
		return 0, err
	}
	return head % j.blocks, nil
}

// firstOf returns the first block of a round, which is that of the last block of the log but not of
// the first.
func (j *journal) firstOf(round uint32) (int64, error) {
	low, high := int64(0), j.blocks-1 // low is not of the round, high is
	for high-low > 1 {
		mid := (low + high) / 2
		c, err := j.cycleAt(mid)
		if err != nil {
			return 0, err
		}
		if c == round {
			high = mid
		} else {
			low = mid
		}
	}
	return high, nil
}

// backOverGaps moves the head back to the first block of the round before, among those that were in
// flight: records are written at once and land in any order.
func (j *journal) backOverGaps(head int64, stop uint32) (int64, error) {
	if head >= flightBlocks || head == j.blocks {
		return j.backTo(head, stop)
	}
	wrapped := min(flightBlocks, j.blocks) - head
	at, err := j.find(j.blocks-wrapped, wrapped, stop-1)
	if err != nil || at >= 0 {
		return at, err
	}
	return j.backTo(head, stop)
}

// backTo returns the first block of a round among those before head that may have been in flight,
// or head.
func (j *journal) backTo(head int64, round uint32) (int64, error) {
	from := max(0, head-flightBlocks)
	at, err := j.find(from, head-from, round)
	if err != nil || at >= 0 {
		return at, err
	}
	return head, nil
}

// find returns the first of n blocks that is of a round, or -1.
func (j *journal) find(at, n int64, round uint32) (int64, error) {
	for end := at + n; at < end; at++ {
		b, err := j.read(at, min(end-at, logWindow/basicBlock))
		if err != nil {
			return 0, err
		}
		for ; len(b) > 0; b = b[basicBlock:] {
			if cycle(b) == round {
				return at, nil
			}
			at++
		}
		at--
	}
	return -1, nil
}

// backToWhole moves the head back to the beginning of the last record, if that is not all there.
func (j *journal) backToWhole(head int64) (int64, error) {
	r, err := j.lastBefore(head, maxRecordBlocks+maxRecordBlocks/cyclesPerHeader)
	if errors.Is(err, errNoRecord) {
		return 0, corrupt("no record before the head of the log at block %d", head)
	}
	if err != nil {
		return 0, err
	}
	if used := (head - r.at + j.blocks) % j.blocks; used != r.blocks() {
		return r.at, nil
	}
	return head, nil
}

// lastBefore returns the record whose header is the last before a block, at most limit blocks back;
// errNoRecord if there is none.
func (j *journal) lastBefore(head, limit int64) (*logRecord, error) {
	const step = 128
	limit = min(limit, j.blocks)
	for back := int64(0); back < limit; {
		end := (head-back+2*j.blocks-1)%j.blocks + 1
		n := min(step, end, limit-back)
		b, err := j.read(end-n, n)
		if err != nil {
			return nil, err
		}
		for i := n - 1; i >= 0; i-- {
			if be.Uint32(b[i*basicBlock:]) == recordMagic {
				return j.header(end - n + i)
			}
		}
		back += n
	}
	return nil, errNoRecord
}

// firstAfter returns the record whose header is the first from a block on, before head; errNoRecord
// if there is none.
func (j *journal) firstAfter(at, head int64) (*logRecord, error) {
	for n := j.distance(at, head); n > 0; n-- {
		r, err := j.header(at)
		if !errors.Is(err, errNoRecord) {
			return r, err
		}
		at = (at + 1) % j.blocks
	}
	return nil, errNoRecord
}

// distance returns the blocks from one to another; from one to itself it is once round.
func (j *journal) distance(from, to int64) int64 {
	if d := (to - from + j.blocks) % j.blocks; d != 0 {
		return d
	}
	return j.blocks
}

// dirty is the part of the log that has to be replayed.
type dirty struct{ tail, head int64 }

// visitor is told of each record in turn, and of its data.
type visitor func(r *logRecord, data []byte) error

// active finds what has to be replayed, if anything, and has everything in it visited once: by what
// begin returned last.
func (j *journal) active(begin func() visitor) (dirty, bool, error) {
	head, err := j.head()
	if err != nil || head < 0 {
		return dirty{}, false, err
	}
	last, err := j.lastBefore(head, j.blocks)
	if err != nil {
		return dirty{}, false, fmt.Errorf("find the last record before block %d: %w", head, asCorrupt(err))
	}
	j.endAt(last, head)
	if clean, err := j.unmounted(last, head); clean || err != nil {
		return dirty{}, false, err
	}
	d, err := j.dropTorn(dirty{tail: int64(uint32(last.tail)), head: head}, &last)
	if err != nil {
		return d, false, err
	}
	j.endAt(last, d.head)
	if clean, err := j.unmounted(last, d.head); clean || err != nil || d.tail == d.head {
		return dirty{}, false, err
	}
	if err := j.checkTail(last.tail); err != nil {
		return d, false, err
	}
	d.tail, err = j.wholeTail(d, last.size, begin)
	return d, err == nil, err
}

// endAt takes note of where the log ends, of which last is the last record.
func (j *journal) endAt(last *logRecord, head int64) {
	round := uint64(last.cycle)
	if last.at >= head {
		round++
	}
	j.end = round<<32 | uint64(head)
}

// checkTail refuses a tail that is not within the last round before the head.
func (j *journal) checkTail(tail uint64) error {
	rounds := j.end>>32 - tail>>32
	if at, head := uint32(tail), uint32(j.end); rounds == 0 && at <= head || rounds == 1 && at > head {
		return nil
	}
	return corrupt("log from block %d of round %d to block %d of round %d", uint32(tail), tail>>32, uint32(j.end),
		j.end>>32)
}

// unmounted says whether a record, the last before head, is what a clean unmount writes.
func (j *journal) unmounted(r *logRecord, head int64) (bool, error) {
	if r.ops != unmountRegions || (r.at+r.blocks())%j.blocks != head || r.headers > maxRecordBlocks {
		return false, nil
	}
	b, err := j.read((r.at+r.headers)%j.blocks, 1)
	if err != nil {
		return false, err
	}
	return b[9]&opUnmount != 0, nil
}

// dropTorn moves the head back to the first record, among those that were in flight, that did not
// get to the disk whole, and the tail and last to what the record before that says.
func (j *journal) dropTorn(d dirty, last **logRecord) (dirty, error) {
	if d.tail >= j.blocks {
		return d, corrupt("tail of the log at block %d", d.tail)
	}
	first := *last
	for range maxInFlight - 1 {
		if first.at == d.tail {
			break
		}
		r, err := j.lastBefore(first.at, j.distance(d.tail, first.at))
		if errors.Is(err, errNoRecord) {
			break
		}
		if err != nil {
			return d, err
		}
		first = r
	}
	bad, err := j.visit(dirty{first.at, d.head}, func(*logRecord, []byte) error { return nil })
	if bad < 0 || !isCorrupt(err) {
		return d, err
	}
	good, err := j.lastBefore(bad, j.blocks)
	if err != nil {
		return d, fmt.Errorf("find the last record before block %d: %w", bad, asCorrupt(err))
	}
	*last = good
	d = dirty{tail: int64(uint32(good.tail)), head: bad}
	if d.tail == bad || d.tail >= j.blocks {
		return d, corrupt("bad log record at block %d, where the log begins", bad)
	}
	return d, nil
}

// wholeTail moves the tail over records that the last writes, which are lost, had begun to
// overwrite.
func (j *journal) wholeTail(d dirty, size int64, begin func() visitor) (int64, error) {
	for at := d.tail; ; {
		r, err := j.firstAfter(at, d.head)
		if err != nil {
			return 0, fmt.Errorf("find the first record from block %d: %w", at, asCorrupt(err))
		}
		bad, err := j.visit(dirty{r.at, d.head}, begin())
		if err == nil {
			return r.at, nil
		}
		if !isCorrupt(err) || bad < 0 || (bad-d.head+j.blocks)%j.blocks > maxInFlight*size/basicBlock {
			return 0, err
		}
		at = (bad + 1) % j.blocks
		if at == d.head {
			return 0, err
		}
	}
}

// visit calls fn with each record of d in turn. With its error it returns the block of a record
// that contradicts itself, or -1.
func (j *journal) visit(d dirty, fn visitor) (int64, error) {
	for at, left := d.tail, j.distance(d.tail, d.head); left > 0; {
		r, err := j.header(at)
		if err != nil {
			return at, asCorrupt(err)
		}
		data, err := j.data(r)
		if err == nil && r.blocks() > left {
			err = corrupt("log record at block %d goes over the head at block %d", at, d.head)
		}
		if err != nil {
			if !isCorrupt(err) {
				at = -1
			}
			return at, err
		}
		if err := fn(r, data); err != nil {
			return -1, err
		}
		at, left = (at+r.blocks())%j.blocks, left-r.blocks()
	}
	return -1, nil
}
