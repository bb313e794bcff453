package export

import "testing"

// A reader that goes through a disk has more and more read ahead, one that ends early has little
// read in vain.
func TestReadAheadGrowsWithItsReader(t *testing.T) {
	const step = 64 << 10
	r := newReadAhead(256 << 20)
	var end int64 // of what was read ahead
	for at := int64(0); at < 64<<20; at += step {
		if from, to := r.seen(at, step); from < to {
			if from < end {
				t.Fatalf("at %d what ends at %d is read again from %d on", at, end, from)
			}
			end = to
		}
		read := at + step
		if ahead := end - read; ahead > max(firstWindow, read) {
			t.Fatalf("%d bytes were read, and %d ahead", read, ahead)
		}
		if ahead := end - read; read > 32<<20 && ahead < mostWindow/2 {
			t.Fatalf("%d bytes were read, and only %d ahead", read, ahead)
		}
	}
}
