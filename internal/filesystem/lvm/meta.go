package lvm

import (
	"fmt"
	"math"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const maxVolumes = 1 << 16

// meta is what a text says of a group. Sizes are bytes, extents are counted.
type meta struct {
	name, uuid string
	seqno      int64
	extent     int64 // bytes
	pvs        map[string]pvEntry
	lvs        map[string]*lvEntry
	order      []string // names of lvs
}

// pvEntry is a physical volume as the group knows it.
type pvEntry struct {
	uuid, device string
	start        int64 // bytes: where its extents begin
	count        int64 // extents
	missing      bool  // it was when this was written: what it holds may be old
}

type lvEntry struct {
	name, uuid string
	visible    bool
	segments   []segment
}

type segment struct {
	start, count int64 // extents
	kind         string
	raw          *section
}

func parseMeta(text []byte) (*meta, error) {
	top, err := parseText(text)
	if err != nil {
		return nil, err
	}
	var out *meta
	err = top.each(func(name string, s *section) error {
		if out != nil {
			return fmt.Errorf("%w: metadata of two groups in one text", filesystem.ErrCorrupt)
		}
		out, err = parseGroup(name, s)
		return err
	})
	if err == nil && out == nil {
		err = fmt.Errorf("%w: metadata without a group", filesystem.ErrCorrupt)
	}
	return out, err
}

func parseGroup(name string, s *section) (*meta, error) {
	if !validName(name) {
		return nil, fmt.Errorf("%w: %q is no name of a group", filesystem.ErrCorrupt, name)
	}
	m := &meta{name: name, uuid: s.str("id"), seqno: s.number("seqno"), pvs: map[string]pvEntry{},
		lvs: map[string]*lvEntry{}}
	sectors := s.number("extent_size")
	if m.uuid == "" || m.seqno < 0 || sectors < 1 || sectors > math.MaxUint32 {
		return nil, fmt.Errorf("%w: metadata of group %q lacks what it must have", filesystem.ErrCorrupt, name)
	}
	m.extent = sectors * sectorSize
	err := s.sub("physical_volumes").each(func(name string, s *section) error {
		p := pvEntry{uuid: s.str("id"), device: s.str("device"), start: s.number("pe_start") * sectorSize,
			count:   s.number("pe_count"),
			missing: s.has("flags", "MISSING") || s.has("status", "MISSING")}
		if p.start < 0 || p.count < 0 || p.count > math.MaxInt64/2/m.extent {
			return fmt.Errorf("%w: physical volume %q of group %q", filesystem.ErrCorrupt, name, m.name)
		}
		m.pvs[name] = p
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, s.sub("logical_volumes").each(m.parseVolume)
}

func (m *meta) parseVolume(name string, s *section) error {
	if !validName(name) {
		return fmt.Errorf("%w: %q is no name of a volume", filesystem.ErrCorrupt, name)
	}
	v := &lvEntry{name: name, uuid: s.str("id"), visible: s.has("status", "VISIBLE")}
	if len(m.lvs) == maxVolumes {
		return fmt.Errorf("%w: group %q has too many volumes", filesystem.ErrCorrupt, m.name)
	}
	n := s.number("segment_count")
	if n < 0 || n > int64(len(s.keys)) {
		return fmt.Errorf("%w: volume %q of group %q has %d segments", filesystem.ErrCorrupt, name, m.name, n)
	}
	end := int64(0)
	for i := range n {
		raw := s.sub(fmt.Sprintf("segment%d", i+1))
		seg := segment{start: raw.number("start_extent"), count: raw.number("extent_count"), kind: raw.str("type"),
			raw: raw}
		if seg.start != end || seg.count < 1 || seg.count > math.MaxInt64/2/m.extent-end {
			return fmt.Errorf("%w: segment %d of volume %q of group %q", filesystem.ErrCorrupt, i+1, name, m.name)
		}
		end += seg.count
		v.segments = append(v.segments, seg)
	}
	m.lvs[name] = v
	m.order = append(m.order, name)
	return nil
}

// validName tells whether LVM gives such names. Package mount, which shows volumes as files, relies
// on it.
func validName(name string) bool {
	const most = 127
	if name == "" || name == "." || name == ".." || name[0] == '-' || len(name) > most {
		return false
	}
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-") == ""
}

// extents returns the size of v in extents.
func (v *lvEntry) extents() int64 {
	if len(v.segments) == 0 {
		return 0
	}
	last := v.segments[len(v.segments)-1]
	return last.start + last.count
}
