package ext4

const (
	extentMagic     = 0xF30A
	extentEntry     = 12 // bytes of the header, of an extent and of an index alike
	maxExtentDepth  = 5
	maxExtentBlocks = 1 << 15 // in one extent; a longer one is that much shorter and was never written
	maxFileBlocks   = 1 << 32
)

// extentNode is one checked node of an extent tree.
type extentNode struct {
	raw     []byte
	entries int
	depth   int
}

func (n extentNode) entry(i int) []byte { return n.raw[extentEntry*(i+1):][:extentEntry] }
func (n extentNode) block(i int) uint64 { return uint64(le32(n.entry(i), 0)) }
func (n extentNode) child(i int) uint64 {
	return uint64(le32(n.entry(i), 4)) | uint64(le16(n.entry(i), 8))<<32
}
func (n extentNode) extent(i int) uint64 {
	return uint64(le32(n.entry(i), 8)) | uint64(le16(n.entry(i), 6))<<32
}

// extentLeaf walks down to the leaf of the extent tree that a block belongs to.
func (f *FS) extentLeaf(in *inode, block uint64) (*leaf, error) {
	node, err := parseNode(in.block(), -1)
	if err != nil {
		return nil, err
	}
	lo, hi := uint64(0), uint64(maxFileBlocks)
	for node.depth > 0 {
		i := node.entries - 1
		for i >= 0 && node.block(i) > block {
			hi = node.block(i)
			i--
		}
		if i < 0 {
			return &leaf{lo: lo, hi: hi}, nil
		}
		lo = node.block(i)
		if node, err = f.extentChild(in, node, i); err != nil {
			return nil, err
		}
	}
	return f.extentRuns(node, lo, hi)
}

// extentChild reads a node below another. Its first entry begins where its parent says, so no node
// can have two parents.
func (f *FS) extentChild(in *inode, parent extentNode, i int) (extentNode, error) {
	phys := parent.child(i)
	if err := f.checkBlocks(phys, 1); err != nil {
		return extentNode{}, err
	}
	b, err := f.disk.block(phys)
	if err != nil {
		return extentNode{}, err
	}
	node, err := parseNode(b, parent.depth-1)
	if err != nil {
		return extentNode{}, err
	}
	if node.entries == 0 || node.block(0) != parent.block(i) {
		return extentNode{}, damaged("extent block %d begins elsewhere than its index says", phys)
	}
	if f.sb.hasChecksums() {
		tail := extentEntry * (1 + int(le16(b, 4)))
		if tail+4 > len(b) || crc32c(in.seed, b[:tail]) != le32(b, tail) {
			return extentNode{}, damaged("checksum of extent block %d does not match", phys)
		}
	}
	return node, nil
}

// parseNode checks the header and the order of a node; depth -1 takes any.
func parseNode(b []byte, depth int) (extentNode, error) {
	n := extentNode{raw: b, entries: int(le16(b, 2)), depth: int(le16(b, 6))}
	room := int(le16(b, 4))
	switch {
	case le16(b, 0) != extentMagic:
		return n, damaged("an extent tree without its magic")
	case n.depth > maxExtentDepth || depth >= 0 && n.depth != depth:
		return n, damaged("an extent tree of depth %d where %d is right", n.depth, depth)
	case n.entries > room || extentEntry*(1+room) > len(b):
		return n, damaged("an extent tree with %d entries where %d have room", n.entries, room)
	case n.depth > 0 && n.entries == 0:
		return n, damaged("an extent index without entries")
	}
	for i := 1; i < n.entries; i++ {
		if n.block(i) <= n.block(i-1) {
			return n, damaged("an extent tree out of order")
		}
	}
	return n, nil
}

// extentRuns decodes a leaf that has the blocks from lo up to hi.
func (f *FS) extentRuns(n extentNode, lo, hi uint64) (*leaf, error) {
	l := &leaf{lo: lo, hi: hi}
	next := lo
	for i := range n.entries {
		r := run{start: n.block(i), count: uint64(le16(n.entry(i), 4)), phys: n.extent(i)}
		if r.count > maxExtentBlocks {
			r.count, r.hole = r.count-maxExtentBlocks, true
		}
		if r.count == 0 || r.start < next || r.end() > hi {
			return nil, damaged("extents overlap at block %d of the file", r.start)
		}
		if err := f.checkBlocks(r.phys, r.count); err != nil {
			return nil, err
		}
		next = r.end()
		l.add(r)
	}
	return l, nil
}
