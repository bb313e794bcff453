package ext4

import (
	"encoding/binary"
	"fmt"
)

// overlay returns for each block that the log wrote, and did not revoke later, where its last
// content is.
func (j *journal) overlay(log journalLog) ([]moved, error) {
	revoked, err := j.revoked(log)
	if err != nil {
		return nil, err
	}
	last := map[uint64]logged{}
	for _, l := range log.blocks {
		if seq, ok := revoked[l.block]; ok && !after(l.sequence, seq) {
			continue
		}
		if l.broken {
			return nil, damaged("checksum of block %d in transaction %d does not match", l.block, l.sequence)
		}
		last[l.block] = l
	}
	list := make([]moved, 0, len(last))
	for block, l := range last {
		if block >= uint64(j.fs.disk.size/j.fs.sb.blockSize) {
			return nil, damaged("transaction %d writes block %d, which is behind the end", l.sequence, block)
		}
		from, err := j.where(l.at)
		if err != nil {
			return nil, err
		}
		list = append(list, moved{block: block, from: from, escaped: l.escaped})
	}
	return list, nil
}

// after tells whether transaction a was made later than b. Their numbers wrap around.
func after(a, b uint32) bool { return int32(a-b) > 0 }

// revoked returns the last transaction that revoked a block, for the blocks that the log wrote:
// others do not matter, and a log can revoke very many.
func (j *journal) revoked(log journalLog) (map[uint64]uint32, error) {
	if len(log.revoked) == 0 {
		return nil, nil
	}
	written := make(map[uint64]bool, len(log.blocks))
	for _, l := range log.blocks {
		written[l.block] = true
	}
	revoked := map[uint64]uint32{}
	for _, r := range log.revoked {
		b, err := j.block(r.at)
		if err != nil {
			return nil, err
		}
		if err := j.eachRevoked(b, func(block uint64) {
			if seq, ok := revoked[block]; written[block] && (!ok || after(r.sequence, seq)) {
				revoked[block] = r.sequence
			}
		}); err != nil {
			return nil, fmt.Errorf("transaction %d: %w", r.sequence, err)
		}
	}
	return revoked, nil
}

func (j *journal) eachRevoked(b []byte, do func(block uint64)) error {
	const countAt, listAt = 12, 16
	end, room := int(be32(b, countAt)), len(b)
	if j.hasSums() {
		room -= journalTailChecksum
	}
	if end > room {
		return damaged("a list of revoked blocks with %d bytes", end)
	}
	size := 4
	if j.has(journal64bit) {
		size = 8
	}
	for at := listAt; at+size <= end; at += size {
		if size == 8 {
			do(binary.BigEndian.Uint64(b[at:]))
		} else {
			do(uint64(be32(b, at)))
		}
	}
	return nil
}
