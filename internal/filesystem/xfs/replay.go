package xfs

import "fmt"

// Kinds of log items.
const (
	itemEFI       = 0x1236
	itemEFD       = 0x1237
	itemIunlink   = 0x1238
	itemInode     = 0x123b
	itemBuffer    = 0x123c
	itemDquot     = 0x123d
	itemQuotaOff  = 0x123e
	itemIcreate   = 0x123f
	itemRUI       = 0x1240
	itemRUD       = 0x1241
	itemCUI       = 0x1242
	itemCUD       = 0x1243
	itemBUI       = 0x1244
	itemBUD       = 0x1245
	itemAttrI     = 0x1246
	itemAttrD     = 0x1247
	itemExchange  = 0x1248
	itemExchanged = 0x1249
	itemLastRT    = 0x124f // from 0x124a on: frees, reverse maps and counts of the real-time device

	logIncompatKnown = 1 << 0 // attributes by intents
	maxGroupsSummed  = 64 << 10
	maxCancelled     = 4 << 20
)

// replay changes the overlay as the kernel's recovery changes the disk.
type replay struct {
	fs        *FS
	cancelled map[extentOfDisk]int // buffers whose older changes must not be made
	intents   intents
}

// extentOfDisk is a range in basic blocks.
type extentOfDisk struct{ block, count int64 }

// recover replays the log, if it has to be, and returns notes for people.
func (f *FS) recover() ([]string, error) {
	var notes []string
	if f.sb.hasReadOnly != 0 {
		notes = append(notes, fmt.Sprintf("read-only compatible feature %#x is not known", f.sb.hasReadOnly))
	}
	j, err := f.journal()
	if err != nil {
		return nil, err
	}
	r := &replay{fs: f}
	d, isDirty, err := j.active(func() visitor {
		r.cancelled = map[extentOfDisk]int{}
		return newAssembler(r.collect).record
	})
	f.logEnd = j.end
	if err != nil || !isDirty {
		return notes, err
	}
	if err := r.allowed(); err != nil {
		return nil, err
	}
	a := newAssembler(r.apply)
	if _, err := j.visit(d, a.checked(j, r.fs)); err != nil {
		return nil, err
	}
	f.dev.forget()
	f.fixes = r.intents.fixes()
	if err := f.readSuper(); err != nil {
		return nil, err
	}
	if err := f.countFree(); err != nil {
		return nil, err
	}
	notes = append(notes, fmt.Sprintf("the log was replayed: %d records, %d transactions", a.records, a.committed))
	if n := r.intents.unfinished(); n > 0 {
		notes = append(notes, fmt.Sprintf("%d changes that the log began were finished", n))
	}
	return notes, nil
}

// allowed refuses logs that an older kernel than their writer's would not replay.
func (r *replay) allowed() error {
	if r.fs.sb.hasReadOnly != 0 {
		return unsupported("a log to be replayed with feature %#x", r.fs.sb.hasReadOnly)
	}
	if unknown := r.fs.sb.logIncompat &^ logIncompatKnown; unknown != 0 {
		return unsupported("log feature %#x", unknown)
	}
	return nil
}

// checked is a visitor that refuses records of other machines and other file systems.
func (a *assembler) checked(j *journal, f *FS) visitor {
	return func(r *logRecord, data []byte) error {
		if r.format != recordFormatLE {
			return unsupported("log format %d", r.format)
		}
		if r.uuid != j.uuid && !f.lax {
			return corrupt("log record at block %d is of another file system", r.at)
		}
		return a.record(r, data)
	}
}

// collect is the first pass: it only looks which buffers were cancelled.
func (r *replay) collect(t *transaction) error {
	if err := t.whole(); err != nil {
		return err
	}
	for _, i := range t.items {
		if i.kind() != itemBuffer {
			continue
		}
		b, err := parseBufferItem(i)
		if err != nil {
			return err
		}
		if b.flags&bufferCancel != 0 {
			if r.cancelled[b.where]++; len(r.cancelled) > maxCancelled {
				return unsupported("a log that cancels more than %d buffers", maxCancelled)
			}
		}
	}
	return nil
}

// apply is the second pass: it makes the changes of a transaction, in the order the kernel makes
// them.
func (r *replay) apply(t *transaction) error {
	if err := t.whole(); err != nil {
		return err
	}
	for step := range 4 {
		for _, i := range t.items {
			s, err := stepOf(i)
			if err != nil {
				return err
			}
			if s != step {
				continue
			}
			if err := r.item(i, t.lsn); err != nil {
				return fmt.Errorf("log item %#x: %w", i.kind(), err)
			}
		}
	}
	return nil
}

// stepOf orders items: buffers, inodes and the rest, buffers of inodes, cancelled buffers.
func stepOf(i *logItem) (int, error) {
	switch i.kind() {
	case itemIcreate:
		return 0, nil
	case itemBuffer:
		b, err := parseBufferItem(i)
		if err != nil {
			return 0, err
		}
		switch {
		case b.flags&bufferCancel != 0:
			return 3, nil
		case b.flags&bufferInodes != 0:
			return 2, nil
		}
		return 0, nil
	}
	return 1, nil
}

func (r *replay) item(i *logItem, lsn uint64) error {
	switch k := i.kind(); k {
	case itemBuffer:
		return r.buffer(i, lsn)
	case itemInode:
		return r.inode(i, lsn)
	case itemIcreate:
		return r.icreate(i)
	case itemBUI, itemBUD, itemAttrI, itemAttrD, itemExchange, itemExchanged:
		return r.intents.note(i)
	case itemEFI, itemEFD, itemRUI, itemRUD, itemCUI, itemCUD, itemDquot, itemQuotaOff, itemIunlink:
		return nil // who owns a block and how often changes nothing of what is seen, and quotas are not shown
	default:
		if k > itemExchanged && k <= itemLastRT {
			return nil
		}
		return unsupported("log item %#x", k)
	}
}

// countFree adds up the free blocks, which the superblock does not know before an unmount.
func (f *FS) countFree() error {
	if !f.sb.lazyCount || f.sb.agCount > maxGroupsSummed {
		return nil
	}
	free := uint64(0)
	for ag := range f.sb.agCount {
		b, err := f.dev.meta(int64(ag*f.sb.agBlocks)<<f.sb.blockLog+int64(f.sb.sectorSize), superSize)
		if err != nil {
			return err
		}
		if string(b[:4]) != "XAGF" {
			return corrupt("no header of free space in allocation group %d", ag)
		}
		free += uint64(be.Uint32(b[52:])) + uint64(be.Uint32(b[48:])) + uint64(be.Uint32(b[60:]))
	}
	f.sb.free = free
	return nil
}
