package index

import (
	"context"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// Numbers and sizes of blocks, as in docs/formats/index.md.
const (
	perBlock      = 64 // rows
	perPage       = 1024
	pageRows      = perBlock * perPage
	perOrigins    = 48 // origins in a block
	blockStored   = perBlock*rowSize + tagSize
	originsStored = perOrigins*originSize + tagSize
	groupStored   = perPage*blockStored + perPage*8 + pageRows*lineBits/8 + lineSize + tagSize
)

// segment is a sorted, immutable run of rows: all of the good packs that the entries of its span
// added. What it is made of stands in the root; of the object itself only what is asked for is
// read.
type segment struct {
	name    string
	span    span
	rows    int64
	origins int
	fences  []uint64 // of the first row of each page

	store blob.Store
	aead  cipher.AEAD
	pages []page
	sizes // of its parts
}

// page is a stretch of a segment, read when it is first needed, and kept.
type page struct {
	mu   sync.Mutex
	data atomic.Pointer[pageData]
}

type pageData struct {
	fences []byte // of the first row of each block, 8 bytes each
	filter []byte
}

func (p *pageData) blocks() int        { return len(p.fences) / 8 }
func (p *pageData) fence(n int) uint64 { return binary.LittleEndian.Uint64(p.fences[8*n:]) }

// sizes are what follows from the number of rows.
type sizes struct {
	blocks, pageCount int
	originsAt         int64 // offset
}

func sizesOf(rows int64) sizes {
	s := sizes{blocks: int((rows + perBlock - 1) / perBlock), pageCount: int((rows + pageRows - 1) / pageRows)}
	s.originsAt = rows / pageRows * groupStored
	if rest := rows % pageRows; rest > 0 {
		s.originsAt += blocksSize(rest) + pageSize(rest)
	}
	return s
}

// blocksSize returns the bytes of the blocks of rows rows.
func blocksSize(rows int64) int64 { return rows*rowSize + (rows+perBlock-1)/perBlock*tagSize }

// pageSize returns the bytes of a page of rows rows.
func pageSize(rows int64) int64 { return (rows+perBlock-1)/perBlock*8 + filterSize(rows) + tagSize }

func newSegment(src *Source, info segmentInfo) (*segment, error) {
	aead, err := src.sealer(info.name)
	if err != nil {
		return nil, err
	}
	s := &segment{name: info.name, span: info.span, rows: info.rows, origins: info.origins, fences: info.fences,
		store: src.Store, aead: aead, sizes: sizesOf(info.rows)}
	s.pages = make([]page, s.pageCount)
	return s, nil
}

// at returns where block n of a section lies and how many bytes it has as stored.
func (s *segment) at(c section, n int) (off, size int64) {
	switch c {
	case rowBlocks:
		rows := min(s.rows-int64(n)*perBlock, perBlock)
		return int64(n/perPage)*groupStored + int64(n%perPage)*blockStored, rows*rowSize + tagSize
	case pages:
		rows := min(s.rows-int64(n)*pageRows, pageRows)
		return int64(n)*groupStored + blocksSize(rows), pageSize(rows)
	}
	items := min(s.origins-n*perOrigins, perOrigins)
	return s.originsAt + int64(n)*originsStored, int64(items*originSize + tagSize)
}

// read returns the plain bytes of blocks from to before to of a section, which are neighbours, one
// after the other. It uses buf if that is large enough.
func (s *segment) read(ctx context.Context, c section, from, to int, buf []byte) ([]byte, error) {
	off, _ := s.at(c, from)
	last, size := s.at(c, to-1)
	if n := last + size - off; int64(cap(buf)) < n {
		buf = make([]byte, n)
	} else {
		buf = buf[:n]
	}
	if useless, err := readFull(ctx, s.store, s.name, buf, off); useless {
		return nil, &lostError{s, errors.Is(err, blob.ErrNotExist), err}
	} else if err != nil {
		return nil, err
	}
	plain := buf[:0]
	for n := from; n < to; n++ {
		at, size := s.at(c, n)
		sealed := buf[at-off : at-off+size]
		if _, err := s.aead.Open(sealed[:0], c.nonce(int64(n)), sealed, nil); err != nil {
			return nil, &lostError{seg: s, why: errDamaged}
		}
		plain = append(plain, sealed[:size-tagSize]...)
	}
	return plain, nil
}

// page returns page n.
func (s *segment) page(ctx context.Context, n int) (*pageData, error) {
	p := &s.pages[n]
	if d := p.data.Load(); d != nil {
		return d, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.data.Load(); d != nil {
		return d, nil
	}
	b, err := s.read(ctx, pages, n, n+1, nil)
	if err != nil {
		return nil, err
	}
	fences := 8 * min(s.blocks-n*perPage, perPage)
	d := &pageData{fences: b[:fences], filter: b[fences:]}
	p.data.Store(d)
	return d, nil
}

// firstPage returns the first page that may have a row of fence f.
func (s *segment) firstPage(f uint64) int {
	n := sort.Search(len(s.fences), func(i int) bool { return s.fences[i] >= f })
	return max(n-1, 0)
}

// find calls yield with each row of id and its number in the segment, until that is false.
func (s *segment) find(ctx context.Context, c *cache, id *chunk.ID,
	yield func(r row, number int64) (bool, error)) error {
	f := fenceOf(id)
	for n := s.firstPage(f); n < len(s.fences) && s.fences[n] <= f; n++ {
		p, err := s.page(ctx, n)
		if err != nil {
			return err
		}
		if !filterHas(p.filter, id) {
			continue
		}
		if more, err := s.findInPage(ctx, c, n, p, id, yield); err != nil || !more {
			return err
		}
	}
	return nil
}

func (s *segment) findInPage(ctx context.Context, c *cache, n int, p *pageData, id *chunk.ID,
	yield func(row, int64) (bool, error)) (more bool, err error) {
	f := fenceOf(id)
	b := sort.Search(p.blocks(), func(i int) bool { return p.fence(i) >= f })
	for b = max(b-1, 0); b < p.blocks() && p.fence(b) <= f; b++ {
		block := n*perPage + b
		rows, err := c.get(ctx, s, rowBlocks, block)
		if err != nil {
			return false, err
		}
		for i := searchRows(rows, id); i < len(rows)/rowSize; i++ {
			r := parseRow(rows[i*rowSize:])
			if r.entry.ID != *id {
				break
			}
			if more, err := yield(r, int64(block)*perBlock+int64(i)); err != nil || !more {
				return false, err
			}
		}
	}
	return true, nil
}

// origin returns origin n.
func (s *segment) origin(ctx context.Context, c *cache, n uint32) (originOf, error) {
	if int64(n) >= int64(s.origins) {
		return originOf{}, &lostError{seg: s, why: errDamaged}
	}
	b, err := c.get(ctx, s, originBlocks, int(n/perOrigins))
	if err != nil {
		return originOf{}, err
	}
	return parseOrigin(b[n%perOrigins*originSize:]), nil
}

// eachOrigin calls do with every origin, in order.
func (s *segment) eachOrigin(ctx context.Context, do func(o originOf) error) error {
	const at = 64
	var buf []byte
	blocks := (s.origins + perOrigins - 1) / perOrigins
	for b := 0; b < blocks; b += at {
		plain, err := s.read(ctx, originBlocks, b, min(b+at, blocks), buf)
		if err != nil {
			return err
		}
		for i := 0; i < len(plain); i += originSize {
			if err := do(parseOrigin(plain[i:])); err != nil {
				return err
			}
		}
		buf = plain
	}
	return nil
}

// info returns what a root tells of s.
func (s *segment) info() segmentInfo {
	return segmentInfo{name: s.name, span: s.span, rows: s.rows, origins: s.origins, fences: s.fences}
}

// cursor walks over the rows of a segment in order.
type cursor struct {
	seg  *segment
	next int    // block
	rows []byte // of the blocks read last, not yet passed
	buf  []byte
}

const readAhead = 128 // blocks; a divisor of perPage

// head returns the bytes of the row at which the cursor stands, nil at the end.
func (c *cursor) head(ctx context.Context) ([]byte, error) {
	if len(c.rows) == 0 && c.next < c.seg.blocks {
		to := min(c.next+readAhead, c.seg.blocks)
		plain, err := c.seg.read(ctx, rowBlocks, c.next, to, c.buf)
		if err != nil {
			return nil, err
		}
		c.next, c.rows, c.buf = to, plain, plain
	}
	if len(c.rows) == 0 {
		return nil, nil
	}
	return c.rows[:rowSize], nil
}

func (c *cursor) pass() { c.rows = c.rows[rowSize:] }

func (c *cursor) eachOrigin(ctx context.Context, do func(originOf) error) error {
	return c.seg.eachOrigin(ctx, do)
}
