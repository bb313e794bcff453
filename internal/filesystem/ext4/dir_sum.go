package ext4

const (
	dirTailSize = 12   // a last entry of no name that holds the checksum of a block
	dirTailKind = 0xDE // its type
	dxEntrySize = 8
)

// verifyDirBlock verifies the checksum of the n-th block of a directory and returns the part that
// holds entries.
func (f *FS) verifyDirBlock(in *inode, n uint64, b []byte) ([]byte, error) {
	if in.has(flagIndex) && f.sb.compat&compatDirIndex != 0 && (n == 0 || f.recordLength(le16(b, 4)) == len(b)) {
		if !f.indexSumMatches(in, b) {
			return nil, damaged("checksum of index block %d of the directory does not match", n)
		}
		return b, nil
	}
	end := len(b) - dirTailSize
	tail := b[end:]
	if le32(tail, 0) != 0 || le16(tail, 4) != dirTailSize || tail[6] != 0 || tail[7] != dirTailKind {
		return nil, damaged("block %d of the directory has no checksum", n)
	}
	if crc32c(in.seed, b[:end]) != le32(tail, 8) {
		return nil, damaged("checksum of block %d of the directory does not match", n)
	}
	return b[:end], nil
}

// indexSumMatches verifies a block of a hashed directory's index, which looks like one with no
// entries but . and ..
func (f *FS) indexSumMatches(in *inode, b []byte) bool {
	table := 8 // behind the entry that covers the block
	if first := le16(b, 4); f.recordLength(first) != len(b) {
		const rootInfo = 24 // behind . and ..
		if first != 12 || f.recordLength(le16(b, 16)) != len(b)-12 || le32(b, rootInfo) != 0 || b[rootInfo+5] != 8 {
			return false
		}
		table = rootInfo + 8
	}
	limit, count := int(le16(b, table)), int(le16(b, table+2))
	tail := table + limit*dxEntrySize
	if count > limit || tail+8 > len(b) {
		return false
	}
	sum := crc32c(in.seed, b[:table+count*dxEntrySize])
	sum = crc32c(crc32c(sum, b[tail:tail+4]), make([]byte, 4))
	return sum == le32(b, tail+4)
}
