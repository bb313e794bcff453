package xfs

import "encoding/binary"

// The log's own structures are in the byte order of the machine that wrote them; others are
// refused.
var le = binary.LittleEndian

const (
	opStart     = 0x01
	opCommit    = 0x02
	opContinue  = 0x04
	opContinued = 0x08
	opEnd       = 0x10

	clientTransaction = 0x69
	clientLog         = 0xaa

	transactionMagic  = 0x5452414e
	transactionHeader = 16

	maxRegion  = 1 << 20 // bytes; the largest are of 64 KiB
	maxPending = 1 << 20 // operations; a kernel gathers at most 64 MiB of changes before it writes them
)

// transaction is a set of changes of which all are made or none.
type transaction struct {
	lsn    uint64 // of the record in which it began
	header []byte
	items  []*logItem

	operations int
}

// logItem is one change: a header that says of what, then what is new.
type logItem struct {
	want    int
	regions [][]byte
	grown   int // regions whose memory is ours to append to
}

func (i *logItem) kind() uint16 { return le.Uint16(i.regions[0]) }

// assembler puts transactions together, whose parts are anywhere in the records, and commits them
// in order.
type assembler struct {
	open      map[uint32]*transaction
	commit    func(*transaction) error
	pending   int // operations of transactions that are open
	records   int
	committed int
}

func newAssembler(commit func(*transaction) error) *assembler {
	return &assembler{open: map[uint32]*transaction{}, commit: commit}
}

// record takes the operations of one record.
func (a *assembler) record(r *logRecord, data []byte) error {
	a.records++
	for n := r.ops; n > 0 && len(data) > 0; n-- {
		if len(data) < opHeader {
			return corrupt("log record at block %d ends within an operation", r.at)
		}
		tid, size, client, flags := be.Uint32(data), int64(be.Uint32(data[4:])), data[8], data[9]
		data = data[opHeader:]
		if size > int64(len(data)) || client != clientTransaction && client != clientLog {
			return corrupt("operation of %d bytes for client %#x in the log record at block %d", size, client, r.at)
		}
		if err := a.operation(tid, flags, data[:size:size], r.lsn); err != nil {
			return err
		}
		data = data[size:]
	}
	return nil
}

func (a *assembler) operation(tid uint32, flags byte, data []byte, lsn uint64) error {
	t := a.open[tid]
	if t == nil && flags&opStart == 0 {
		return nil // the rest of a transaction that began before the tail has nothing to change any more
	}
	if a.pending++; a.pending > maxPending {
		return unsupported("a log with more than %d changes that are not committed", maxPending)
	}
	if t == nil {
		a.open[tid] = &transaction{lsn: lsn, operations: 1}
		return nil
	}
	t.operations++
	flags &^= opEnd
	if flags&opContinued != 0 {
		flags &^= opContinue
	}
	switch flags {
	case 0, opContinue:
		return t.add(data)
	case opContinued:
		return t.extend(data)
	case opCommit:
		delete(a.open, tid)
		a.pending -= t.operations
		a.committed++
		return a.commit(t)
	case opUnmount:
		delete(a.open, tid)
		a.pending -= t.operations
		return nil
	}
	return corrupt("operation with flags %#x in the log", flags)
}

// add takes the next region, or the transaction's header, which is the first.
func (t *transaction) add(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if len(t.header) < transactionHeader {
		return t.addHeader(data)
	}
	if n := len(t.items); n > 0 && len(t.items[n-1].regions) < t.items[n-1].want {
		t.items[n-1].regions = append(t.items[n-1].regions, data)
		return nil
	}
	if len(data) < 4 {
		return corrupt("log item of %d bytes", len(data))
	}
	item := &logItem{want: int(le.Uint16(data[2:])), regions: [][]byte{data}}
	if item.want == 0 {
		return corrupt("log item of no regions")
	}
	t.items = append(t.items, item)
	return nil
}

func (t *transaction) addHeader(data []byte) error {
	t.header = append(t.header, data...)
	if len(t.header) > transactionHeader || len(t.header) >= 4 && le.Uint32(t.header) != transactionMagic {
		return corrupt("bad transaction header of %d bytes in the log", len(t.header))
	}
	return nil
}

// extend takes the rest of a region that did not fit in the record before.
func (t *transaction) extend(data []byte) error {
	if len(t.header) < transactionHeader {
		return t.addHeader(data)
	}
	if len(t.items) == 0 {
		return corrupt("a region of the log goes on that did not begin")
	}
	last := t.items[len(t.items)-1]
	r := &last.regions[len(last.regions)-1]
	if len(*r)+len(data) > maxRegion {
		return corrupt("a region of the log of more than %d bytes", maxRegion)
	}
	if last.grown != len(last.regions) { // it is a part of the record so far
		*r, last.grown = append(make([]byte, 0, 2*(len(*r)+len(data))), *r...), len(last.regions)
	}
	*r = append(*r, data...)
	return nil
}

// whole says whether all regions of all items are there.
func (t *transaction) whole() error {
	for _, i := range t.items {
		if len(i.regions) != i.want {
			return corrupt("log item %#x has %d regions of %d", i.kind(), len(i.regions), i.want)
		}
	}
	return nil
}
