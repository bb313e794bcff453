package filesystem

const setPage = 1 << 15 // blocks that a page of a set has a bit for

// BlockSet is a set of blocks of a disk, in memory for where there are some. Readers note in one
// what they have read of a directory, of which no two blocks are the same: by one block of names a
// directory would have as many as its size says. The zero value is not ready: make it.
type BlockSet map[uint64]*[setPage / 64]uint64

// Add adds a block, and reports whether it was not in the set.
func (s BlockSet) Add(block uint64) bool {
	page := s[block/setPage]
	if page == nil {
		page = new([setPage / 64]uint64)
		s[block/setPage] = page
	}
	word, bit := &page[block%setPage/64], uint64(1)<<(block%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}
