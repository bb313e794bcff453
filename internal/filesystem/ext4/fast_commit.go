package ext4

const (
	fastAddRange = 1
	fastDelRange = 2
	fastCreate   = 3
	fastLink     = 4
	fastUnlink   = 5
	fastInode    = 6
	fastPad      = 7
	fastTail     = 8
	fastHead     = 9

	fastHeader    = 4
	maxFastBlocks = 1 << 14 // of the journal that fast commits may take; the default is 256
)

// fastTag is one change that a fast commit records.
type fastTag struct {
	kind uint16
	data []byte
}

// fastScanner collects the changes of complete fast commits behind the transaction that comes next.
type fastScanner struct {
	sequence uint32
	complete []fastTag
	pending  []fastTag
	sum      uint32
}

// scanFast reads the fast commits behind the ring.
func (j *journal) scanFast(sequence uint32) ([]fastTag, error) {
	if j.max-j.end > maxFastBlocks {
		return nil, unsupported("fast commits in %d blocks", j.max-j.end)
	}
	s := fastScanner{sequence: sequence}
	for n := j.end + 1; n < j.max; n++ {
		b, err := j.block(n)
		if err != nil {
			return nil, err
		}
		more, err := s.block(b)
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
	}
	return s.complete, nil
}

// block takes the tags of one block. It returns false where the fast commits end.
func (s *fastScanner) block(b []byte) (bool, error) {
	for at := 0; at+fastHeader <= len(b); {
		kind, size := le16(b, at), int(le16(b, at+2))
		end := at + fastHeader + size
		if end > len(b) || !fastLengthValid(kind, size, len(b)) {
			return false, nil
		}
		value := b[at+fastHeader : end]
		switch kind {
		case fastTail:
			if !s.tail(b[at:at+fastHeader+4], value) {
				return false, nil
			}
		case fastHead:
			if unknown := le32(value, 0); unknown != 0 {
				return false, unsupported("fast commit feature %#x", unknown)
			}
			if le32(value, 4) != s.sequence {
				return false, nil
			}
			s.sum = crc32c(s.sum, b[at:end])
		default:
			s.sum = crc32c(s.sum, b[at:end])
			if kind != fastPad {
				s.pending = append(s.pending, fastTag{kind: kind, data: append([]byte(nil), value...)})
			}
		}
		at = end
	}
	return true, nil
}

// tail ends one fast commit. It returns false if it is not whole, or of another file system.
func (s *fastScanner) tail(summed, value []byte) bool {
	if le32(value, 0) != s.sequence || le32(value, 4) != crc32c(s.sum, summed) {
		return false
	}
	s.complete = append(s.complete, s.pending...)
	s.pending, s.sum = nil, 0
	return true
}

// fastLengthValid tells whether a tag can have so many bytes.
func fastLengthValid(kind uint16, size, blockSize int) bool {
	switch kind {
	case fastAddRange:
		return size == 16
	case fastDelRange:
		return size == 12
	case fastCreate, fastLink, fastUnlink:
		return size > 8 && size <= 8+255
	case fastInode:
		return size >= 4+128 && size <= 4+blockSize
	case fastPad:
		return true
	case fastTail:
		return size >= 8
	case fastHead:
		return size == 8
	}
	return false
}
