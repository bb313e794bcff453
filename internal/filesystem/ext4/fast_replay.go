package ext4

import (
	"encoding/binary"
	"fmt"
	"strings"
)

const (
	maxFastTags    = 1 << 16  // that are replayed; the default area has room for some thousands
	maxFastEntries = 64 << 20 // of directories, that are gone through for the names that tags speak of
)

// fastCommits is what fast commits changed, over what the journal left. It is not changed once Open
// has returned.
//
// The kernel replays into its usual functions, which allocate blocks and move entries. Here the
// changes are kept as what they mean: fields and ranges of inodes, names in directories. All reads
// the same except for what only the kernel's own work on directories makes: their times are those
// of the mount there, and their size may differ.
type fastCommits struct {
	inodes map[uint64]*fastState
	dirs   map[uint64]*fastDir
	wanted map[uint32]map[string]bool // names in directories that tags speak of
	looked int                        // entries that were gone through for them
}

// fastState is what fast commits changed in one inode.
type fastState struct {
	raw     []byte     // its newest fields; nil if they did not change
	links   int        // names, counted since raw; -1 if they did not change
	emptied bool       // its last name was removed in between: what it mapped before is gone
	edits   []fastEdit // ascending, apart
}

// replayFast shows what fast commits changed since the last transaction.
func (j *journal) replayFast(sequence uint32) error {
	tags, err := j.scanFast(sequence)
	if err != nil || len(tags) == 0 {
		return err
	}
	if len(tags) > maxFastTags {
		return unsupported("replaying %d fast commit tags", len(tags))
	}
	c := &fastCommits{inodes: map[uint64]*fastState{}, dirs: map[uint64]*fastDir{},
		wanted: map[uint32]map[string]bool{}}
	j.fs.fast = c
	for _, t := range tags {
		if err := c.want(t); err != nil {
			return err
		}
	}
	for _, t := range tags {
		if err := c.replay(j.fs, t); err != nil {
			return fmt.Errorf("fast commit: %w", err)
		}
	}
	j.fs.note("fast commits were replayed (changes: %d)", len(tags))
	return nil
}

// want remembers the name that a tag speaks of, so that each directory is read once and only these
// are kept.
func (c *fastCommits) want(t fastTag) error {
	if !t.isName() {
		return nil
	}
	dir, name := le32(t.data, 0), string(t.data[8:])
	if strings.ContainsAny(name, "/\x00") {
		return damaged("a fast commit of the name %q", name)
	}
	if c.wanted[dir] == nil {
		c.wanted[dir] = map[string]bool{}
	}
	c.wanted[dir][name] = true
	return nil
}

func (t fastTag) isName() bool {
	return t.kind == fastCreate || t.kind == fastLink || t.kind == fastUnlink
}

func (c *fastCommits) replay(f *FS, t fastTag) error {
	if t.isName() {
		return c.rename(f, t.kind, le32(t.data, 0), le32(t.data, 4), string(t.data[8:]))
	}
	s := c.state(le32(t.data, 0))
	switch t.kind {
	case fastInode:
		s.raw, s.links = t.data[4:], -1
	case fastAddRange:
		r := run{start: uint64(le32(t.data, 4)), count: uint64(le16(t.data, 8)), phys: uint64(le32(t.data, 12)) |
			uint64(le16(t.data, 10))<<32}
		if r.count > maxExtentBlocks {
			r.count, r.hole = r.count-maxExtentBlocks, true
		}
		if err := f.checkBlocks(r.phys, r.count); err != nil {
			return err
		}
		s.replace(fastEdit{run: r})
	case fastDelRange:
		s.replace(fastEdit{run: run{start: uint64(le32(t.data, 4)), count: uint64(le32(t.data, 8)), hole: true},
			removed: true})
	}
	return nil
}

// state returns what is known of an inode, to be changed.
func (c *fastCommits) state(n uint32) *fastState {
	s := c.inodes[uint64(n)]
	if s == nil {
		s = &fastState{links: -1}
		c.inodes[uint64(n)] = s
	}
	return s
}

// inode returns what changed in an inode, or nil.
func (c *fastCommits) inode(n uint64) *fastState {
	if c == nil {
		return nil
	}
	return c.inodes[n]
}

// setLinks counts the names of an inode. With the last one goes what it holds.
func (s *fastState) setLinks(n int) {
	if s.links = n; n == 0 {
		s.emptied, s.edits = true, nil
	}
}

// apply changes an inode as it is in its table. Its mapping stays, unless it holds data; ranges are
// in tags of their own.
func (s *fastState) apply(raw []byte) {
	const behindMapping = inodeBlockOffset + inodeBlockSize
	mapping := raw[inodeBlockOffset:behindMapping]
	if s.raw != nil {
		copy(raw[:inodeBlockOffset], s.raw)
		copy(raw[behindMapping:], s.raw[behindMapping:])
	}
	if s.emptied {
		clear(mapping)
	}
	switch flags := le32(raw, 0x20); {
	case flags&flagExtents != 0 && le16(mapping, 0) != extentMagic:
		copy(mapping, []byte{extentMagic & 0xFF, extentMagic >> 8, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0})
	case flags&flagExtents == 0 && flags&flagInlineData != 0 && s.raw != nil:
		copy(mapping, s.raw[inodeBlockOffset:])
	}
	if s.links >= 0 {
		binary.LittleEndian.PutUint16(raw[0x1A:], uint16(s.links))
	}
}
