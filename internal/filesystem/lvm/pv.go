package lvm

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	sectorSize   = 512
	labelSectors = 4
	mdaHeader    = 512
	mdaMagic     = "\x20LVM2\x20x[5A%r0N*>"
	maxText      = 16 << 20 // bytes of metadata text; a group of a thousand volumes needs about one
	maxTexts     = 64 << 20 // bytes of all texts that differ
	maxAreas     = 16       // data and metadata areas of a physical volume; there are at most a few
	maxCopies    = 2        // of the metadata on a physical volume; pvcreate makes no more
)

// PV is a physical volume.
type PV struct {
	UUID  string
	Size  int64
	Group string   // name of the group that it belongs to; "" where its own metadata does not say
	Notes []string // in words: copies of metadata that are damaged

	r     io.ReaderAt
	metas []*meta // what its metadata areas hold
}

// Reader reads the physical volumes of one machine. What several of them say alike is kept once,
// and all of it is bounded. The zero value is ready for use; it is not safe for concurrent use.
type Reader struct {
	texts map[textID]parsed
	size  int64 // bytes of them
	most  int64 // that they may have; 0 means maxTexts
}

// textID tells texts apart that nobody made to be mistaken for each other.
type textID [sha256.Size]byte

type parsed struct {
	meta *meta
	err  error
}

// IsPV tells whether r has the label of a physical volume.
func IsPV(r io.ReaderAt, size int64) bool {
	_, err := findLabel(r, size)
	return err == nil
}

// PV reads the physical volume in src, size bytes long. It returns filesystem.ErrNotThis where
// there is none. Damaged metadata is a note: another physical volume of the group may have it
// whole.
func (r *Reader) PV(src io.ReaderAt, size int64) (*PV, error) {
	label, err := findLabel(src, size)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	at := int(le.Uint32(label[20:]))
	if at < 32 || at > sectorSize-40 {
		return nil, fmt.Errorf("LVM2 label: %w: the header is at %d", filesystem.ErrCorrupt, at)
	}
	pv := &PV{UUID: formatUUID(label[at : at+32]), Size: int64(le.Uint64(label[at+32:])), r: src}
	lists := label[at+40:]
	_, lists = areas(lists) // of data
	metadata, _ := areas(lists)
	for _, a := range metadata[:min(len(metadata), maxCopies)] {
		m, err := r.area(src, size, a)
		if err != nil {
			if !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, filesystem.ErrUnsupported) {
				return nil, fmt.Errorf("metadata of physical volume %s: %w", pv.UUID, err)
			}
			pv.Notes = append(pv.Notes, fmt.Sprintf("a copy of the metadata on physical volume %s was passed over: %v",
				pv.UUID, err))
			continue
		}
		if m != nil {
			pv.metas = append(pv.metas, m)
			pv.Group = m.name
		}
	}
	return pv, nil
}

// parse parses a text, once.
func (r *Reader) parse(text []byte) (*meta, error) {
	id := sha256.Sum256(text)
	if p, known := r.texts[id]; known {
		return p.meta, p.err
	}
	if r.size += int64(len(text)); r.size > cmp.Or(r.most, maxTexts) {
		return nil, fmt.Errorf("%w: the metadata of all groups has more than %d bytes", filesystem.ErrUnsupported,
			cmp.Or(r.most, maxTexts))
	}
	m, err := parseMeta(text)
	if r.texts == nil {
		r.texts = map[textID]parsed{}
	}
	r.texts[id] = parsed{m, err}
	return m, err
}

// findLabel returns the sector with the label, whose checksum is right.
func findLabel(r io.ReaderAt, size int64) ([]byte, error) {
	n := min(size, labelSectors*sectorSize)
	if n < sectorSize {
		return nil, filesystem.ErrNotThis
	}
	buf, err := readAt(r, size, 0, n)
	if err != nil {
		return nil, err
	}
	for i := int64(0); (i+1)*sectorSize <= n; i++ {
		s := buf[i*sectorSize:][:sectorSize]
		if string(s[:8]) != "LABELONE" || string(s[24:32]) != "LVM2 001" {
			continue
		}
		if binary.LittleEndian.Uint64(s[8:]) == uint64(i) && checksum(s[20:]) == binary.LittleEndian.Uint32(s[16:]) {
			return s, nil
		}
	}
	return nil, filesystem.ErrNotThis
}

type area struct{ off, size int64 }

// areas parses a list that ends with zeros, and returns what is behind it.
func areas(b []byte) (list []area, rest []byte) {
	for len(b) >= 16 && len(list) < maxAreas {
		a := area{int64(binary.LittleEndian.Uint64(b)), int64(binary.LittleEndian.Uint64(b[8:]))}
		b = b[16:]
		if a.off == 0 {
			break
		}
		list = append(list, a)
	}
	return list, b
}

// area returns the metadata of an area, nil where it holds none.
func (r *Reader) area(src io.ReaderAt, size int64, a area) (*meta, error) {
	head, err := readAt(src, size, a.off, mdaHeader)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if checksum(head[4:]) != le.Uint32(head) || string(head[4:20]) != mdaMagic || le.Uint32(head[20:]) != 1 {
		return nil, fmt.Errorf("%w: the header of the area is not valid", filesystem.ErrCorrupt)
	}
	total := int64(le.Uint64(head[32:]))
	off, length, sum, flags := int64(le.Uint64(head[40:])), int64(le.Uint64(head[48:])), le.Uint32(head[56:]),
		le.Uint32(head[60:])
	if flags&1 != 0 || off == 0 { // ignored, or of a physical volume without a group
		return nil, nil
	}
	if total <= mdaHeader || total > size || off < mdaHeader || off >= total || length <= 0 ||
		length > total-mdaHeader || length > maxText {
		return nil, fmt.Errorf("%w: %d bytes of text at %d of %d", filesystem.ErrCorrupt, length, off, total)
	}
	first := min(length, total-off) // the text goes round in its area
	text, err := readAt(src, size, a.off+off, first)
	if err != nil {
		return nil, err
	}
	if first < length {
		more, err := readAt(src, size, a.off+mdaHeader, length-first)
		if err != nil {
			return nil, err
		}
		text = append(text, more...)
	}
	if checksum(text) != sum {
		return nil, fmt.Errorf("%w: the checksum of the text is wrong", filesystem.ErrCorrupt)
	}
	return r.parse(bytes.TrimRight(text, "\x00"))
}

func readAt(r io.ReaderAt, size, off, n int64) ([]byte, error) {
	if off < 0 || off > size || n > size-off {
		return nil, fmt.Errorf("%w: %d bytes at offset %d are beyond the end", filesystem.ErrCorrupt, n, off)
	}
	p := make([]byte, n)
	if got, err := r.ReadAt(p, off); int64(got) < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %d bytes at offset %d: %w", n, off, err)
	}
	return p, nil
}

// checksum is LVM's: a CRC-32 that begins with a number of its own and is not inverted.
func checksum(p []byte) uint32 {
	const initial = 0xf597a6cf
	return ^crc32.Update(^uint32(initial), crc32.IEEETable, p)
}

// formatUUID puts the dashes into the 32 characters of an ID.
func formatUUID(raw []byte) string {
	out := make([]byte, 0, 38)
	for i, c := range raw {
		if i == 6 || (i > 6 && i < 30 && (i-6)%4 == 0) {
			out = append(out, '-')
		}
		if c < 0x21 || c > 0x7e {
			c = '?'
		}
		out = append(out, c)
	}
	return string(out)
}
