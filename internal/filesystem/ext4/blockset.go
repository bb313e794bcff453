package ext4

const setPage = 1 << 15 // blocks that a page of a set has a bit for

// blockSet is a set of blocks of the disk, in memory for where there are some.
type blockSet map[uint64]*[setPage / 64]uint64

// add adds a block, and reports whether it was not in the set.
func (s blockSet) add(block uint64) bool {
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
