package ntfs

import (
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// Types of attributes.
const (
	attrStandard   = 0x10
	attrList       = 0x20
	attrFileName   = 0x30
	attrSecurity   = 0x50
	attrVolumeName = 0x60
	attrVolumeInfo = 0x70
	attrData       = 0x80
	attrIndexRoot  = 0x90
	attrIndexAlloc = 0xa0
	attrBitmap     = 0xb0
	attrReparse    = 0xc0
	attrEA         = 0xe0
	attrEnd        = 0xffffffff
)

const (
	flagInUse = 1
	flagDir   = 2

	maxListBytes = 1 << 20  // of an attribute list; Windows stops at 256 KiB
	maxInodes    = 4096     // kept in memory
	maxKept      = 32 << 20 // bytes of memory that these may take, and
	maxKeptOne   = 1 << 20  // one of them
	attrCost     = 176      // bytes that an attribute takes beside what it holds
	refMask      = 1<<48 - 1
)

// attribute is one attribute, or the part of one that a record holds.
type attribute struct {
	kind        uint32
	id          uint16
	name        string
	flags       uint16
	nonResident bool
	value       []byte // resident

	firstVCN, lastVCN int64
	runs              []byte // as stored
	unitLog           uint8  // clusters in a unit of compression, as a power of two; 0 if not compressed
	size, init        int64  // bytes; of the first part
}

// inode is a file: its base record and what the others of it add.
type inode struct {
	fs    *FS
	ref   uint64 // record number and sequence
	links uint32
	dir   bool
	attrs []attribute // all parts, in the order of the attribute list where there is one
}

// applyFixups puts the last two bytes of every sector of a multi-sector structure back, and finds
// torn writes.
func applyFixups(p []byte) error {
	const stride = 512
	at, n := int(le.Uint16(p[4:])), int(le.Uint16(p[6:]))
	if n != len(p)/stride+1 || at < 8 || at+2*n > len(p) {
		return corrupt("update sequence of %d at %d", n, at)
	}
	want := le.Uint16(p[at:])
	for i := 1; i < n; i++ {
		end := i*stride - 2
		if le.Uint16(p[end:]) != want {
			return corrupt("a write was torn: sector %d is of another update", i-1)
		}
		copy(p[end:end+2], p[at+2*i:])
	}
	return nil
}

// inode reads a file by its reference. With checked its sequence number must fit: else the file
// that was meant is gone.
func (f *FS) inode(ref uint64, checked bool) (*inode, error) {
	f.mu.Lock()
	ino := f.inodes[ref]
	f.mu.Unlock()
	if ino != nil {
		return ino, nil
	}
	ino, err := f.load(ref, checked)
	if err != nil {
		return nil, fmt.Errorf("file record %d: %w", ref&refMask, err)
	}
	f.keep(ref, ino)
	return ino, nil
}

// keep keeps an inode in memory in the place of others, unless it is one of those that take a lot.
func (f *FS) keep(ref uint64, ino *inode) {
	cost := ino.cost()
	if cost > maxKeptOne {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.inodes[ref] != nil {
		return
	}
	for k, other := range f.inodes {
		if len(f.inodes) < maxInodes && f.kept+cost <= maxKept {
			break
		}
		f.kept -= other.cost()
		delete(f.inodes, k)
	}
	f.inodes[ref] = ino
	f.kept += cost
}

// forget forgets all of them.
func (f *FS) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inodes, f.kept = map[uint64]*inode{}, 0
}

// cost returns about how much memory an inode takes.
func (ino *inode) cost() int {
	n := 0
	for _, a := range ino.attrs {
		n += attrCost + len(a.name) + len(a.value) + len(a.runs)
	}
	return n
}

func (f *FS) load(ref uint64, checked bool) (*inode, error) {
	p, err := f.record(ref & refMask)
	if err != nil {
		return nil, err
	}
	switch {
	case le.Uint16(p[22:])&flagInUse == 0:
		return nil, corrupt("it is not in use")
	case le.Uint64(p[32:]) != 0:
		return nil, corrupt("it is an extension of record %d", le.Uint64(p[32:])&refMask)
	case checked && le.Uint16(p[16:]) != uint16(ref>>48):
		return nil, corrupt("it is of another file now: sequence %d, not %d", le.Uint16(p[16:]), ref>>48)
	}
	ino := &inode{fs: f, ref: ref&refMask | uint64(le.Uint16(p[16:]))<<48, links: uint32(le.Uint16(p[18:])),
		dir: le.Uint16(p[22:])&flagDir != 0}
	if ino.attrs, err = parseAttributes(p); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(ino.attrs, func(a attribute) bool { return a.kind == attrList }); i >= 0 {
		err = ino.follow(ino.attrs[i])
	}
	return ino, err
}

// record reads a file record and checks it.
func (f *FS) record(n uint64) ([]byte, error) {
	if f.opening > 0 {
		if f.opening--; f.opening == 0 {
			return nil, unsupported("a master file table in so many parts")
		}
	}
	p := make([]byte, f.recordSize)
	off := int64(n) * f.recordSize
	if off < 0 || off+f.recordSize > f.mft.size {
		return nil, corrupt("the table has only %d records", f.mft.size/f.recordSize)
	}
	if _, err := f.mft.ReadAt(p, off); err != nil {
		return nil, err
	}
	if string(p[:4]) != "FILE" {
		return nil, corrupt("magic %q", p[:4])
	}
	return p, applyFixups(p)
}

// parseAttributes takes a record apart.
func parseAttributes(p []byte) ([]attribute, error) {
	used := int(min(le.Uint32(p[24:]), uint32(len(p))))
	var out []attribute
	for at := int(le.Uint16(p[20:])); ; {
		if at+4 <= used && le.Uint32(p[at:]) == attrEnd {
			return out, nil
		}
		if at+16 > used {
			return nil, corrupt("its attributes have no end")
		}
		n := int(le.Uint32(p[at+4:]))
		if n < 24 || n > used-at || n%8 != 0 {
			return nil, corrupt("an attribute of %d bytes at %d", n, at)
		}
		a, err := parseAttribute(p[at : at+n])
		if err != nil {
			return nil, err
		}
		out = append(out, a)
		at += n
	}
}

func parseAttribute(p []byte) (attribute, error) {
	a := attribute{kind: le.Uint32(p), nonResident: p[8] != 0, flags: le.Uint16(p[12:]), id: le.Uint16(p[14:])}
	nameAt, nameLen := int(le.Uint16(p[10:])), 2*int(p[9])
	if nameAt+nameLen > len(p) {
		return a, corrupt("the name of attribute %#x leaves it", a.kind)
	}
	a.name = decodeName(p[nameAt : nameAt+nameLen])
	if !a.nonResident {
		n, at := int64(le.Uint32(p[16:])), int64(le.Uint16(p[20:]))
		if at+n > int64(len(p)) {
			return a, corrupt("the value of attribute %#x leaves it", a.kind)
		}
		a.value = slices.Clone(p[at : at+n])
		a.size, a.init = n, n
		return a, nil
	}
	runs := 0
	if len(p) >= 64 {
		runs = int(le.Uint16(p[32:]))
	}
	if runs < 64 || runs > len(p) {
		return a, corrupt("the runs of attribute %#x leave it", a.kind)
	}
	a.firstVCN, a.lastVCN, a.unitLog = int64(le.Uint64(p[16:])), int64(le.Uint64(p[24:])), p[34]
	a.size, a.init = int64(le.Uint64(p[48:])), int64(le.Uint64(p[56:]))
	a.runs = slices.Clone(p[runs:])
	if a.firstVCN < 0 || a.lastVCN < a.firstVCN-1 || a.firstVCN == 0 && (a.size < 0 || a.init < 0 || a.init > a.size) {
		return a, corrupt("attribute %#x: clusters %d to %d, %d bytes, %d of them valid", a.kind, a.firstVCN, a.lastVCN,
			a.size, a.init)
	}
	return a, nil
}

// follow replaces the attributes by those that the attribute list names, in the list's order.
func (ino *inode) follow(list attribute) error {
	s, err := ino.assemble([]attribute{list})
	if err != nil {
		return fmt.Errorf("attribute list: %w", err)
	}
	if s.size > maxListBytes {
		return corrupt("an attribute list of %d bytes", s.size)
	}
	raw := make([]byte, s.size)
	if _, err := s.ReadAt(raw, 0); err != nil {
		return fmt.Errorf("attribute list: %w", err)
	}
	records := map[uint64][]attribute{ino.ref & refMask: ino.attrs}
	var all []attribute
	type instance struct {
		record uint64
		kind   uint32
		id     uint16
	}
	listed := map[instance]bool{}
	for len(raw) >= 26 {
		n := int(le.Uint16(raw[4:]))
		if n < 26 || n > len(raw) {
			return corrupt("an attribute list entry of %d bytes", n)
		}
		kind, ref, id := le.Uint32(raw), le.Uint64(raw[16:]), le.Uint16(raw[24:])
		raw = raw[n:]
		if one := (instance{ref & refMask, kind, id}); listed[one] {
			return corrupt("the attribute list names attribute %#x of record %d twice", kind, ref&refMask)
		} else {
			listed[one] = true
		}
		attrs, err := ino.extension(records, ref)
		if err != nil {
			// that part of the table is not known yet
			if ino.ref&refMask == recMFT && errors.Is(err, filesystem.ErrCorrupt) {
				continue
			}
			return err
		}
		i := slices.IndexFunc(attrs, func(a attribute) bool { return a.kind == kind && a.id == id })
		if i < 0 {
			return corrupt("record %d lacks the attribute %#x that the list names", ref&refMask, kind)
		}
		all = append(all, attrs[i])
	}
	ino.attrs = all
	return nil
}

// extension returns the attributes of a record that belongs to ino.
func (ino *inode) extension(known map[uint64][]attribute, ref uint64) ([]attribute, error) {
	n := ref & refMask
	if attrs, ok := known[n]; ok {
		return attrs, nil
	}
	p, err := ino.fs.record(n)
	if err != nil {
		return nil, fmt.Errorf("extension record %d: %w", n, err)
	}
	if le.Uint16(p[22:])&flagInUse == 0 || le.Uint16(p[16:]) != uint16(ref>>48) ||
		le.Uint64(p[32:]) == 0 || le.Uint64(p[32:])&refMask != ino.ref&refMask {
		return nil, corrupt("extension record %d belongs to another file", n)
	}
	attrs, err := parseAttributes(p)
	if err != nil {
		return nil, fmt.Errorf("extension record %d: %w", n, err)
	}
	known[n] = attrs
	return attrs, nil
}

// find returns an attribute, or the first part of it; nil if there is none.
func (ino *inode) find(kind uint32, name string) *attribute {
	for i := range ino.attrs {
		if a := &ino.attrs[i]; a.kind == kind && a.name == name && a.firstVCN == 0 {
			return a
		}
	}
	return nil
}

// stream returns the bytes of an attribute.
func (ino *inode) stream(kind uint32, name string) (*stream, error) {
	var parts []attribute
	for _, a := range ino.attrs {
		if a.kind == kind && a.name == name {
			parts = append(parts, a)
		}
	}
	if len(parts) == 0 {
		return nil, corrupt("record %d has no attribute %#x %q", ino.ref&refMask, kind, name)
	}
	return ino.assemble(parts)
}

// value returns the bytes of a small attribute whole; nil if there is none.
func (ino *inode) value(kind uint32, most int64) ([]byte, error) {
	a := ino.find(kind, "")
	if a == nil {
		return nil, nil
	}
	if !a.nonResident {
		return a.value, nil
	}
	s, err := ino.stream(kind, "")
	if err != nil {
		return nil, err
	}
	if s.size > most {
		return nil, corrupt("attribute %#x of %d bytes", kind, s.size)
	}
	p := make([]byte, s.size)
	_, err = s.ReadAt(p, 0)
	return p, err
}
