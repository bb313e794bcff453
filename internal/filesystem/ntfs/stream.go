package ntfs

import (
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/holdfast-vm/holdfast/internal/extent"
)

const (
	flagCompressed = 0x00ff
	flagEncrypted  = 0x4000

	maxRuns    = 1 << 20 // of a stream
	maxBytes   = 1 << 62 // of a stream, stored or not
	maxUnitLog = 8       // clusters in a unit of compression, as a power of two; Windows and ntfs-3g use 4
	maxUnit    = 4 << 20 // bytes
	sparse     = -1      // as the place of a run
)

// run is a run of clusters of a stream: where they are in the volume, or sparse.
type run struct {
	vcn, lcn, n int64
}

// stream is the bytes of an attribute. It is safe for concurrent use.
type stream struct {
	fs         *FS
	resident   []byte // nil if it has runs
	size, init int64  // bytes; what is between init and size reads as zeros
	runs       []run  // ascending, without gaps
	stored     int64  // clusters of them that are not sparse
	unit       int64  // bytes of a unit of compression; 0 if not compressed
	encrypted  bool
}

// assemble joins the parts of an attribute.
func (ino *inode) assemble(parts []attribute) (*stream, error) {
	slices.SortStableFunc(parts, func(a, b attribute) int { return int(min(max(a.firstVCN-b.firstVCN, -1), 1)) })
	first := parts[0]
	s := &stream{fs: ino.fs, size: first.size, init: first.init, encrypted: first.flags&flagEncrypted != 0}
	if !first.nonResident {
		if len(parts) > 1 {
			return nil, corrupt("two attributes %#x %q", first.kind, first.name)
		}
		s.resident = first.value
		return s, nil
	}
	if first.flags&flagCompressed != 0 && first.unitLog > 0 {
		s.unit = ino.fs.cluster << min(first.unitLog, maxUnitLog+1)
		if first.unitLog > maxUnitLog || s.unit > maxUnit {
			return nil, corrupt("attribute %#x is compressed in units of 2^%d clusters", first.kind, first.unitLog)
		}
	}
	next := int64(0)
	for _, p := range parts {
		if !p.nonResident || p.firstVCN != next {
			return nil, corrupt("a part of attribute %#x begins at cluster %d, not %d", p.kind, p.firstVCN, next)
		}
		var err error
		if next, err = s.addRuns(p.runs, next); err != nil {
			return nil, fmt.Errorf("attribute %#x: %w", p.kind, err)
		}
		if next != p.lastVCN+1 {
			return nil, corrupt("the runs of attribute %#x end at cluster %d, not %d", p.kind, next, p.lastVCN+1)
		}
	}
	if known := next * ino.fs.cluster; s.size > known && !s.partOfMFT(ino) {
		return nil, corrupt("attribute %#x has %d bytes and room for %d", first.kind, s.size, known)
	}
	return s, nil
}

// partOfMFT reports whether this is as much of the table itself as is known so far; then it ends
// there.
func (s *stream) partOfMFT(ino *inode) bool {
	if ino.ref&refMask != recMFT || len(s.runs) == 0 {
		return false
	}
	last := s.runs[len(s.runs)-1]
	s.size = min(s.size, (last.vcn+last.n)*s.fs.cluster)
	s.init = min(s.init, s.size)
	return true
}

// addRuns decodes mapping pairs that begin at cluster vcn of the stream, and returns where they
// end.
func (s *stream) addRuns(p []byte, vcn int64) (int64, error) {
	lcn := int64(0)
	for len(p) > 0 && p[0] != 0 {
		nLen, nOff := int(p[0]&15), int(p[0]>>4)
		if nLen == 0 || nLen > 8 || nOff > 8 || 1+nLen+nOff > len(p) {
			return 0, corrupt("a run is coded as %#x", p[0])
		}
		n := signed(p[1 : 1+nLen])
		r := run{vcn: vcn, lcn: sparse, n: n}
		if nOff > 0 {
			lcn += signed(p[1+nLen : 1+nLen+nOff])
			r.lcn = lcn
		}
		p = p[1+nLen+nOff:]
		if n <= 0 || n > maxBytes/s.fs.cluster-vcn || len(s.runs) >= maxRuns {
			return 0, corrupt("a run of %d clusters at %d", n, vcn)
		}
		if r.lcn != sparse && (r.lcn < 0 || r.lcn > s.fs.clusters-n) {
			return 0, corrupt("clusters %d to %d are not in the volume", r.lcn, r.lcn+n)
		}
		if r.lcn != sparse {
			s.stored += n
		}
		if s.stored > s.fs.clusters { // no two are one
			return 0, corrupt("it has more clusters than the volume")
		}
		s.runs = append(s.runs, r)
		vcn += n
	}
	return vcn, nil
}

func signed(p []byte) int64 {
	v := int64(int8(p[len(p)-1]))
	for i := len(p) - 2; i >= 0; i-- {
		v = v<<8 | int64(p[i])
	}
	return v
}

// Size implements [filesystem.File].
func (s *stream) Size() int64 { return s.size }

// ReadAt implements [filesystem.File].
func (s *stream) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at offset %d", off)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-off))
	valid := int(max(min(int64(n), s.init-off), 0))
	var err error
	switch {
	case s.resident != nil:
		copy(p[:n], s.resident[off:])
		valid = n
	case s.unit > 0:
		err = s.readUnits(p[:valid], off)
	default:
		err = s.readRuns(p[:valid], off)
	}
	if err != nil {
		return 0, err
	}
	clear(p[valid:n])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// at returns the index of the run that has cluster vcn.
func (s *stream) at(vcn int64) int {
	return sort.Search(len(s.runs), func(i int) bool { return s.runs[i].vcn+s.runs[i].n > vcn })
}

// readRuns reads what is stored as it is.
func (s *stream) readRuns(p []byte, off int64) error {
	cs := s.fs.cluster
	for i := s.at(off / cs); len(p) > 0; i++ {
		if i >= len(s.runs) {
			return corrupt("no cluster holds byte %d", off)
		}
		r := s.runs[i]
		from := off - r.vcn*cs
		n := min(int64(len(p)), r.n*cs-from)
		if r.lcn == sparse {
			clear(p[:n])
		} else if err := readFull(s.fs.r, p[:n], r.lcn*cs+from); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readUnits reads what is stored in units of compression.
func (s *stream) readUnits(p []byte, off int64) error {
	var whole []byte
	for len(p) > 0 {
		first := off / s.unit * s.unit
		n := min(int64(len(p)), first+s.unit-off)
		stored := s.storedOf(first)
		switch {
		case stored == 0:
			clear(p[:n])
		case stored == s.unit:
			if err := s.readRuns(p[:n], off); err != nil {
				return err
			}
		default:
			if whole == nil {
				whole = make([]byte, 2*s.unit)
			}
			if err := s.expand(whole[:s.unit], whole[s.unit:s.unit+stored], first); err != nil {
				return fmt.Errorf("compressed unit at byte %d: %w", first, err)
			}
			copy(p[:n], whole[off-first:])
		}
		p, off = p[n:], off+n
	}
	return nil
}

// storedOf returns how many bytes of clusters the unit at byte first has, at its beginning. The
// last unit may be cut at the end of the stream's clusters.
func (s *stream) storedOf(first int64) int64 {
	cs := s.fs.cluster
	end := (first + s.unit) / cs
	stored := int64(0)
	for i := s.at(first / cs); i < len(s.runs) && s.runs[i].vcn < end; i++ {
		r := s.runs[i]
		if r.lcn == sparse {
			break
		}
		stored += min(r.vcn+r.n, end) - max(r.vcn, first/cs)
	}
	return stored * cs
}

func (s *stream) expand(out, in []byte, first int64) error {
	if err := s.readRuns(in, first); err != nil {
		return err
	}
	need := min(s.unit, s.init-first)
	n, err := lznt1(out, in)
	if err != nil {
		return err
	}
	if int64(n) < need {
		return corrupt("%d bytes come out, %d are needed", n, need)
	}
	return nil
}

// Extents implements [filesystem.File].
func (s *stream) Extents() (extent.Set, error) {
	if s.resident != nil {
		if s.size == 0 {
			return nil, nil
		}
		return extent.Set{{Off: 0, Len: s.size}}, nil
	}
	var out extent.Set
	cs := s.fs.cluster
	for _, r := range s.runs {
		if r.lcn == sparse {
			continue
		}
		e := extent.Extent{Off: r.vcn * cs, Len: r.n * cs}
		if s.unit > 0 { // a part stands for the whole unit
			end := (e.End() + s.unit - 1) / s.unit * s.unit
			e.Off = e.Off / s.unit * s.unit
			e.Len = end - e.Off
		}
		out = append(out, e)
	}
	return extent.Of(out...).Clip(extent.Extent{Off: 0, Len: s.init}), nil
}
