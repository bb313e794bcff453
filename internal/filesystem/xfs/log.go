package xfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// The log is a circle of basic blocks. Every block begins with the number of the round it was
// written in, which is how its head is found: there the numbers fall by one. A record is one or
// more blocks of header, then its data, whose first words the header keeps.
const (
	recordMagic     = 0xfeedbabe
	recordHeader    = 328 // bytes that count for its checksum; 324 where a 32-bit kernel wrote it
	recordHeader32  = 324
	recordCRC       = 32
	extHeader       = 260
	cyclesPerHeader = 64 // blocks whose first words one block of header keeps
	recordFormatLE  = 1
	maxRecordSize   = 256 << 10
	maxInFlight     = 8 // records that may be written at once
	flightBlocks    = maxInFlight * maxRecordSize / basicBlock
	maxRecordBlocks = maxRecordSize / basicBlock
	opUnmount       = 0x20
	opHeader        = 12
	minLogBlocks    = 64
	maxLogBlocks    = 2 << 30 / basicBlock // the largest log there can be
	logWindow       = 1 << 20
	maxVersionOfLog = 2
	unmountRegions  = 1
)

// journal is the log as it is on disk. Block numbers are of its basic blocks.
type journal struct {
	dev    *device
	start  int64 // bytes
	blocks int64
	sunit  int64
	crc    bool // checksums must be right
	uuid   [16]byte

	end      uint64 // where the next record would go, as an LSN; 0 if that is not known
	window   []byte // what was read last, from block windowAt
	windowAt int64
}

// logRecord is the header of a record.
type logRecord struct {
	at      int64
	cycle   uint32
	length  int64 // bytes of data
	headers int64 // blocks before them
	lsn     uint64
	tail    uint64
	sum     uint32
	ops     uint32
	format  uint32
	uuid    [16]byte
	size    int64 // bytes of the buffer it was written from
	version uint32
}

func (r *logRecord) blocks() int64 { return r.headers + (r.length+basicBlock-1)/basicBlock }

func (f *FS) journal() (*journal, error) {
	sb := &f.sb
	if sb.logStart == 0 {
		return nil, unsupported("a log on another device")
	}
	count := int64(sb.logBlocks) << (sb.blockLog - basicBlockLog)
	if !sb.validBlocks(sb.logStart, sb.logBlocks) || count < minLogBlocks || count > maxLogBlocks {
		return nil, corrupt("log of %d blocks at block %d", sb.logBlocks, sb.logStart)
	}
	return &journal{
		dev: f.dev, start: sb.offset(sb.logStart), blocks: count, sunit: sb.logSunit,
		crc: sb.version == 5 && !f.lax, uuid: sb.uuid,
	}, nil
}

// read returns n blocks from block at, going round at the end. They are only good until the next
// call.
func (j *journal) read(at, n int64) ([]byte, error) {
	if rest := j.blocks - at; n > rest {
		first, err := j.read(at, rest)
		if err != nil {
			return nil, err
		}
		first = append([]byte(nil), first...)
		second, err := j.read(0, n-rest)
		return append(first, second...), err
	}
	have := int64(len(j.window)) / basicBlock
	if at < j.windowAt || at+n > j.windowAt+have {
		if err := j.load(at, n); err != nil {
			return nil, err
		}
	}
	return j.window[(at-j.windowAt)*basicBlock:][:n*basicBlock], nil
}

// load reads on from block at: little where one block is wanted, which is while the head is
// searched for.
func (j *journal) load(at, n int64) error {
	if n > 1 {
		n = max(n, logWindow/basicBlock)
	}
	n = min(n, j.blocks-at)
	b := make([]byte, n*basicBlock)
	if err := j.dev.readDisk(b, j.start+at*basicBlock); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	j.window, j.windowAt = b, at
	return nil
}

// cycle returns the round in which a block was written.
func cycle(block []byte) uint32 {
	if be.Uint32(block) == recordMagic {
		return be.Uint32(block[4:])
	}
	return be.Uint32(block)
}

func (j *journal) cycleAt(at int64) (uint32, error) {
	b, err := j.read(at, 1)
	if err != nil {
		return 0, err
	}
	return cycle(b), nil
}

var errNoRecord = errors.New("no record there")

// asCorrupt makes a missing record, where one has to be, the damage that it is.
func asCorrupt(err error) error {
	if errors.Is(err, errNoRecord) {
		return corrupt("%v", err)
	}
	return err
}

func isCorrupt(err error) bool { return errors.Is(err, filesystem.ErrCorrupt) }

// header reads the header of the record at a block; errNoRecord if there is none.
func (j *journal) header(at int64) (*logRecord, error) {
	b, err := j.read(at, 1)
	if err != nil {
		return nil, err
	}
	if be.Uint32(b) != recordMagic {
		return nil, errNoRecord
	}
	r := &logRecord{
		at: at, cycle: be.Uint32(b[4:]), version: be.Uint32(b[8:]), length: int64(be.Uint32(b[12:])),
		lsn:  be.Uint64(b[16:]),
		tail: be.Uint64(b[24:]), sum: binary.LittleEndian.Uint32(b[recordCRC:]), ops: be.Uint32(b[40:]),
		format: be.Uint32(b[300:]),
		uuid:   [16]byte(b[304:320]), size: int64(be.Uint32(b[320:])), headers: 1,
	}
	if r.version == maxVersionOfLog {
		size := r.size
		if r.length > size && r.length <= max(j.sunit, maxRecordSize) && r.ops == unmountRegions {
			size = j.sunit // mkfs writes its record in one stripe, whatever it says
		}
		r.headers = max(1, (size+cyclesPerHeader*basicBlock-1)/(cyclesPerHeader*basicBlock))
	}
	return r, nil
}

// check refuses headers that no kernel wrote.
func (j *journal) check(r *logRecord) error {
	switch {
	case r.version != 1 && r.version != maxVersionOfLog:
		return unsupported("log record version %d", r.version)
	case r.length == 0 || r.length > maxRecordSize || r.headers > maxRecordBlocks/cyclesPerHeader ||
		r.blocks() > j.blocks:
		return corrupt("log record of %d bytes at block %d", r.length, r.at)
	case (r.length+basicBlock-1)/basicBlock > r.headers*cyclesPerHeader:
		return corrupt("log record of %d bytes with %d blocks of header", r.length, r.headers)
	case uint32(r.lsn) != uint32(r.at) || uint32(r.lsn>>32) != r.cycle:
		return corrupt("log record at block %d of round %d says it is at %d of %d", r.at, r.cycle, uint32(r.lsn),
			r.lsn>>32)
	case int64(uint32(r.tail)) >= j.blocks:
		return corrupt("log record at block %d with its tail at block %d", r.at, uint32(r.tail))
	}
	return nil
}

// data reads and checks a whole record and returns its data with the first words put back.
func (j *journal) data(r *logRecord) ([]byte, error) {
	if err := j.check(r); err != nil {
		return nil, err
	}
	all, err := j.read(r.at, r.blocks())
	if err != nil {
		return nil, err
	}
	head, data := all[:r.headers*basicBlock], append([]byte(nil), all[r.headers*basicBlock:]...)
	if j.crc && r.sum != 0 && !recordSumOK(r, head, data[:r.length]) {
		return nil, fmt.Errorf("%w of the log record at block %d", errBadSum, r.at)
	}
	for i := range len(data) / basicBlock {
		words := head[44:]
		if i >= cyclesPerHeader {
			words = head[i/cyclesPerHeader*basicBlock+4:]
		}
		copy(data[i*basicBlock:][:4], words[i%cyclesPerHeader*4:])
	}
	return data[:r.length], nil
}

var errBadSum = corrupt("bad checksum")

func recordSumOK(r *logRecord, head, data []byte) bool {
	return recordSum(recordHeader, head, data) == r.sum || recordSum(recordHeader32, head, data) == r.sum
}

// recordSum is over the header, as much of the blocks of further headers as holds first words, and
// the data.
func recordSum(size int, head, data []byte) uint32 {
	all := append([]byte(nil), head[:size]...)
	clear(all[recordCRC:][:4])
	for i := 1; i*cyclesPerHeader*basicBlock < len(data); i++ {
		all = append(all, head[i*basicBlock:][:extHeader]...)
	}
	return crc32.Update(crc32.Update(0, castagnoli, all), castagnoli, data)
}
