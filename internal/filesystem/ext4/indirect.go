package ext4

// directBlocks is how many blocks an inode points to itself.
const directBlocks = 12

// indirectLeaf finds the block of pointers, of ext2 and ext3, that a block of a file is listed in.
func (f *FS) indirectLeaf(in *inode, block uint64) (*leaf, error) {
	if block < directBlocks {
		return f.pointerRuns(in.block()[:4*directBlocks], 0)
	}
	perBlock := uint64(f.sb.blockSize) / 4
	lo, span := uint64(directBlocks), perBlock
	for level := range 3 {
		if block < lo+span {
			root := uint64(le32(in.block(), 4*(directBlocks+level)))
			return f.pointerLeaf(root, level, block, lo, span)
		}
		lo, span = lo+span, span*perBlock
	}
	return nil, damaged("block %d of the file is behind what pointers reach", block)
}

// pointerLeaf walks down from a block of pointers that maps span blocks from lo on, with level more
// below it.
func (f *FS) pointerLeaf(pointers uint64, level int, block, lo, span uint64) (*leaf, error) {
	for {
		if pointers == 0 {
			return &leaf{lo: lo, hi: lo + span}, nil
		}
		if err := f.checkBlocks(pointers, 1); err != nil {
			return nil, err
		}
		b, err := f.disk.block(pointers)
		if err != nil {
			return nil, err
		}
		if level == 0 {
			return f.pointerRuns(b, lo)
		}
		span /= uint64(f.sb.blockSize) / 4
		i := (block - lo) / span
		lo += i * span
		pointers = uint64(le32(b, int(4*i)))
		level--
	}
}

// pointerRuns decodes pointers to the blocks of a file from lo on.
func (f *FS) pointerRuns(b []byte, lo uint64) (*leaf, error) {
	count := uint64(len(b) / 4)
	l := &leaf{lo: lo, hi: lo + count}
	for i := range count {
		phys := uint64(le32(b, int(4*i)))
		if phys == 0 {
			continue
		}
		if err := f.checkBlocks(phys, 1); err != nil {
			return nil, err
		}
		l.add(run{start: lo + i, count: 1, phys: phys})
	}
	return l, nil
}
