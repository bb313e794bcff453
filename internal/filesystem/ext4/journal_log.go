package ext4

import "encoding/binary"

const (
	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8
)

// logged is a block that a transaction wrote.
type logged struct {
	block    uint64 // where it belongs
	at       uint32 // block of the journal that has it
	sequence uint32 // of the transaction
	escaped  bool
	broken   bool // its checksum does not match
}

// revocation is a block of the journal that lists blocks that earlier transactions wrote in vain.
type revocation struct {
	at, sequence uint32
}

// journalLog is what scan found: the committed transactions in the order they were made.
type journalLog struct {
	sequence     uint32 // behind the last one that was committed
	transactions int
	blocks       []logged
	revoked      []revocation
}

// scanner reads the log up to where it was cut off. It decides as the kernel does between a log
// that ends and one that is damaged.
type scanner struct {
	*journal
	at       uint32 // next block
	left     uint32 // blocks that may be read before the ring is closed
	log      journalLog
	pending  journalLog // the transaction that is not known to be committed
	lastTime uint64     // of the last commit, in seconds
	doubt    bool       // a checksum in this transaction did not match: it is damage, or the remains of an older log
	sumV1    uint32     // over the blocks of this transaction
	cut      bool       // a transaction whose commit does not match its checksum has ended the log
}

func (j *journal) scan() (journalLog, error) {
	s := &scanner{journal: j, at: j.start, left: j.end - j.first, sumV1: ^uint32(0)}
	s.log.sequence, s.pending.sequence = j.sequence, j.sequence
	for more := true; more && s.left > 0; {
		b, err := s.take()
		if err != nil {
			return s.log, err
		}
		if more, err = s.step(b); err != nil {
			return s.log, err
		}
	}
	return s.log, nil
}

// take returns the next block of the log.
func (s *scanner) take() ([]byte, error) {
	b, err := s.block(s.at)
	s.at, s.left = s.next(s.at, 1), s.left-1
	return b, err
}

// step handles one block that is not data. It returns false where the log ends.
func (s *scanner) step(b []byte) (bool, error) {
	if be32(b, 0) != journalMagic || be32(b, 8) != s.pending.sequence {
		return false, nil
	}
	switch be32(b, 4) {
	case journalDescriptor:
		return s.descriptor(b)
	case journalRevoke:
		s.doubt = s.doubt || !s.tailMatches(b)
		at := s.next(s.at, s.end-s.first-1)
		s.pending.revoked = append(s.pending.revoked, revocation{at: at, sequence: s.pending.sequence})
		return true, nil
	case journalCommit:
		return s.commit(b)
	}
	return false, nil
}

// tailMatches verifies the checksum at the end of a descriptor or a revocation.
func (j *journal) tailMatches(b []byte) bool {
	if !j.hasSums() {
		return true
	}
	end := len(b) - journalTailChecksum
	return crc32c(crc32c(j.seed, b[:end]), make([]byte, 4)) == be32(b, end)
}

// descriptor takes the blocks that a descriptor lists, which follow it.
func (s *scanner) descriptor(b []byte) (bool, error) {
	s.doubt = s.doubt || !s.tailMatches(b)
	s.addSumV1(b)
	for _, tag := range s.tags(b) {
		if s.left == 0 {
			return false, nil
		}
		l := logged{block: tag.block, at: s.at, sequence: s.pending.sequence, escaped: tag.flags&tagEscaped != 0}
		if s.hasSums() || s.compat&journalCompatChecksum != 0 {
			data, err := s.take()
			if err != nil {
				return false, err
			}
			s.addSumV1(data)
			l.broken = !s.tagMatches(tag, l.sequence, data)
		} else {
			s.at, s.left = s.next(s.at, 1), s.left-1
		}
		s.pending.blocks = append(s.pending.blocks, l)
	}
	return true, nil
}

func (s *scanner) addSumV1(b []byte) {
	if s.compat&journalCompatChecksum != 0 && !s.doubt && !s.cut {
		s.sumV1 = crc32be(s.sumV1, b)
	}
}

// tag is an entry of a descriptor.
type tag struct {
	block uint64
	flags uint32
	sum   uint32
}

// tags decodes a copy of the entries of a descriptor, whose form depends on the features.
func (j *journal) tags(b []byte) []tag {
	size, end := j.tagSize(), len(b)
	if j.hasSums() {
		end -= journalTailChecksum
	}
	var list []tag
	for at := journalHeader; at+size <= end; {
		t := tag{block: uint64(be32(b, at))}
		if j.has(journalCsumV3) {
			t.flags, t.sum = be32(b, at+4), be32(b, at+12)
		} else {
			t.sum, t.flags = uint32(binary.BigEndian.Uint16(b[at+4:])), uint32(binary.BigEndian.Uint16(b[at+6:]))
		}
		if j.has(journal64bit) {
			t.block |= uint64(be32(b, at+8)) << 32
		}
		list = append(list, t)
		at += size
		if t.flags&tagSameUUID == 0 {
			at += 16
		}
		if t.flags&tagLast != 0 {
			break
		}
	}
	return list
}

func (j *journal) tagSize() int {
	if j.has(journalCsumV3) {
		return 16
	}
	size := 8
	if j.has(journalCsumV2) {
		size += 2
	}
	if j.has(journal64bit) {
		size += 4
	}
	return size
}

func (j *journal) tagMatches(t tag, sequence uint32, data []byte) bool {
	if !j.hasSums() {
		return true
	}
	sum := crc32c(crc32c(j.seed, binary.BigEndian.AppendUint32(nil, sequence)), data)
	if j.has(journalCsumV2) {
		return sum&0xFFFF == t.sum
	}
	return sum == t.sum
}

// commit ends a transaction.
func (s *scanner) commit(b []byte) (bool, error) {
	const timeAt = 48
	now := binary.BigEndian.Uint64(b[timeAt:])
	if s.doubt {
		if now >= s.lastTime {
			return false, damaged("checksum of transaction %d does not match", s.pending.sequence)
		}
		return false, nil
	}
	if s.cut && s.compat&journalCompatChecksum != 0 {
		return false, damaged("transaction %d was committed behind one whose checksum does not match",
			s.pending.sequence)
	}
	if !s.commitMatches(b) {
		if now < s.lastTime {
			return false, nil
		}
		if !s.has(journalAsyncCommit) {
			return false, damaged("checksum of the commit of transaction %d does not match", s.pending.sequence)
		}
		s.cut = true
	}
	s.lastTime, s.sumV1 = now, ^uint32(0)
	s.accept()
	return true, nil
}

// accept takes the pending transaction, unless the log has ended before it.
func (s *scanner) accept() {
	next := s.pending.sequence + 1
	if !s.cut {
		s.log.blocks = append(s.log.blocks, s.pending.blocks...)
		s.log.revoked = append(s.log.revoked, s.pending.revoked...)
		s.log.transactions++
		s.log.sequence = next
	}
	s.pending = journalLog{sequence: next}
}

// commitMatches verifies the checksum in the commit of a transaction.
func (s *scanner) commitMatches(b []byte) bool {
	const typeAt, sumAt = 12, 16
	found := be32(b, sumAt)
	switch {
	case s.compat&journalCompatChecksum != 0:
		kind, size := b[typeAt], b[typeAt+1]
		return kind == 1 && size == 4 && found == s.sumV1 || kind == 0 && size == 0 && found == 0
	case s.hasSums():
		sum := crc32c(crc32c(s.seed, b[:sumAt]), make([]byte, 4))
		return crc32c(sum, b[sumAt+4:]) == found
	}
	return true
}
