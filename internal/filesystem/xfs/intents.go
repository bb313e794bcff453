package xfs

import (
	"maps"
	"slices"
)

const (
	intentHeader    = 16
	maxIntents      = 1 << 20
	maxRemapWork    = 1 << 28 // pieces of a file times what the log changes of them
	bmapIntentSize  = 32
	bmapMap         = 1
	bmapUnmap       = 2
	bmapKind        = 0xff
	bmapAttr        = 1 << 31
	bmapUnwritten   = 1 << 30
	bmapRealtime    = 1 << 29
	attrIntentSize  = 40
	attrSet         = 1
	attrRemove      = 2
	attrReplace     = 3
	exchangeSize    = 40 // of which more follows that is not looked at
	maxIntentBlocks = 1 << 21
)

// intents are changes that the log says were begun, and those that it says were finished.
type intents struct {
	begun  []intent // in order; those that were finished are empty
	at     map[intentID]int
	owners map[uint64]bool
}

type intentID struct {
	kind uint16
	id   uint64
}

type intent struct {
	remap []remapping
	attr  *attrChange
	swap  []uint64 // inodes
}

// remapping puts a mapping into a fork, or takes it out.
type remapping struct {
	num         uint64
	attr, unmap bool
	to          mapping
}

// attrChange sets an attribute of an inode, or removes it.
type attrChange struct {
	num    uint64
	what   attribute
	remove bool
	value  []byte
}

func (n *intents) owner(num uint64) {
	if n.owners == nil {
		n.owners = map[uint64]bool{}
	}
	n.owners[num] = true
}

// note takes an intent, or that one is done.
func (n *intents) note(i *logItem) error {
	b := i.regions[0]
	if len(b) < intentHeader {
		return corrupt("intent of %d bytes", len(b))
	}
	in, id := intent{}, intentID{i.kind(), le.Uint64(b[8:])}
	var err error
	switch id.kind {
	case itemBUI:
		in.remap, err = parseRemap(b)
	case itemAttrI:
		in.attr, err = parseAttrIntent(i)
	case itemExchange:
		if len(b) < exchangeSize {
			return corrupt("exchange of %d bytes", len(b))
		}
		in.swap = []uint64{le.Uint64(b[16:]), le.Uint64(b[24:])}
	default:
		n.done(intentID{id.kind - 1, id.id})
		return nil
	}
	if err != nil {
		return err
	}
	if len(n.at) == maxIntents {
		return unsupported("a log with more than %d changes that are not finished", maxIntents)
	}
	if n.at == nil {
		n.at = map[intentID]int{}
	}
	n.compact()
	n.at[id] = len(n.begun)
	n.begun = append(n.begun, in)
	return nil
}

// compact forgets those that are finished, once they are most.
func (n *intents) compact() {
	const few = 1024
	if len(n.begun) < 2*len(n.at)+few {
		return
	}
	at := make(map[int]intentID, len(n.at))
	for id, i := range n.at {
		at[i] = id
	}
	var left []intent
	for _, i := range slices.Sorted(maps.Keys(at)) {
		n.at[at[i]] = len(left)
		left = append(left, n.begun[i])
	}
	n.begun = left
}

func (n *intents) done(id intentID) {
	if i, ok := n.at[id]; ok {
		n.begun[i] = intent{}
		delete(n.at, id)
	}
}

func parseRemap(b []byte) ([]remapping, error) {
	count := int64(le.Uint32(b[4:]))
	if count*bmapIntentSize > int64(len(b)-intentHeader) {
		return nil, corrupt("%d mappings in an intent of %d bytes", count, len(b))
	}
	var list []remapping
	for b = b[intentHeader:]; count > 0; b, count = b[bmapIntentSize:], count-1 {
		flags, blocks := le.Uint32(b[28:]), le.Uint32(b[24:])
		kind := flags & bmapKind
		r := remapping{
			num: le.Uint64(b), attr: flags&bmapAttr != 0, unmap: kind == bmapUnmap,
			to: mapping{off: le.Uint64(b[16:]), block: le.Uint64(b[8:]), count: uint64(blocks),
				unwritten: flags&bmapUnwritten != 0},
		}
		if kind != bmapMap && kind != bmapUnmap || flags&bmapRealtime != 0 || r.to.off > maxFileBlock || blocks == 0 ||
			blocks > maxIntentBlocks {
			return nil, corrupt("intent to map %d blocks with flags %#x", blocks, flags)
		}
		list = append(list, r)
	}
	return list, nil
}

// parseAttrIntent returns nil for a change of parent pointers, which are not shown.
func parseAttrIntent(i *logItem) (*attrChange, error) {
	b := i.regions[0]
	if len(b) < attrIntentSize {
		return nil, corrupt("attribute intent of %d bytes", len(b))
	}
	op := le.Uint32(b[24:]) & 0xff
	if op != attrSet && op != attrRemove && op != attrReplace {
		return nil, nil
	}
	name, value := int64(le.Uint32(b[28:])), int64(le.Uint32(b[32:]))
	c := &attrChange{num: le.Uint64(b[16:]), remove: op == attrRemove}
	if len(i.regions) < 2 || name == 0 || name > int64(len(i.regions[1])) {
		return nil, corrupt("attribute intent without a name")
	}
	c.what = attribute{byte(le.Uint32(b[36:])), string(i.regions[1][:name])}.key()
	if !c.remove && value > 0 {
		if len(i.regions) < 3 || value > int64(len(i.regions[2])) {
			return nil, corrupt("attribute intent without a value")
		}
		c.value = i.regions[2][:value]
	}
	return c, nil
}

// unfinished returns how many intents a mount would have to finish, of those that change what is
// seen.
func (n *intents) unfinished() int {
	count := 0
	for _, i := range n.begun {
		if i.remap != nil || i.attr != nil {
			count++
		}
	}
	return count
}

// fixes returns what finishing them changes.
func (n *intents) fixes() fixes {
	f := fixes{owners: n.owners, swaps: map[uint64]bool{}, maps: map[uint64][]remapping{},
		attrs: map[uint64][]attrChange{}}
	for _, i := range n.begun {
		for _, r := range i.remap {
			f.maps[r.num] = append(f.maps[r.num], r)
		}
		if i.attr != nil {
			f.attrs[i.attr.num] = append(f.attrs[i.attr.num], *i.attr)
		}
		for _, num := range i.swap {
			f.swaps[num] = true
		}
	}
	return f
}

// fixes are what the log began and a mount would finish, kept beside the metadata as it is in the
// overlay.
type fixes struct {
	owners map[uint64]bool // inodes whose btree blocks may name another owner, because extents were swapped
	swaps  map[uint64]bool // inodes of which only a part was exchanged
	maps   map[uint64][]remapping
	attrs  map[uint64][]attrChange
}

// remap returns the mappings of a fork as they are once what was begun is finished.
func (x *fixes) remap(f *FS, num uint64, attr bool, list []mapping) ([]mapping, error) {
	if x.swaps[num] {
		return nil, unsupported("a file whose contents were being exchanged")
	}
	if len(x.maps[num])*len(list) > maxRemapWork {
		return nil, unsupported("%d changes of a file in %d pieces that the log did not finish", len(x.maps[num]),
			len(list))
	}
	for _, r := range x.maps[num] {
		if r.attr != attr {
			continue
		}
		if !r.unmap && !f.sb.validBlocks(r.to.block, r.to.count) {
			return nil, corrupt("the log maps %d blocks at block %d", r.to.count, r.to.block)
		}
		list = r.change(list)
	}
	return list, nil
}

func (r *remapping) change(list []mapping) []mapping {
	out := make([]mapping, 0, len(list)+2)
	put := r.unmap
	for _, m := range list {
		if m.off < r.to.off {
			left := m
			left.count = min(m.count, r.to.off-m.off)
			out = append(out, left)
		}
		if !put && m.end() > r.to.off {
			out, put = append(out, r.to), true
		}
		if m.end() > r.to.end() {
			skip := max(m.off, r.to.end()) - m.off
			out = append(out, mapping{m.off + skip, m.block + skip, m.count - skip, m.unwritten})
		}
	}
	if !put {
		out = append(out, r.to)
	}
	return out
}

// reattr changes what was found of an inode's attributes to what is there once what was begun is
// finished.
func (x *fixes) reattr(num uint64, found map[attribute][]byte) {
	for _, c := range x.attrs[num] {
		if c.remove {
			delete(found, c.what)
		} else if c.what.flags&attrParent == 0 {
			found[c.what] = c.value
		}
	}
}
