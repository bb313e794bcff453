package export

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync/atomic"
)

const (
	mapPage  = 4096                         // bytes of a map that are written at once
	pageBits = mapPage * 8                  // blocks of a page
	pageSpan = int64(pageBits) * layerBlock // bytes of the disk of a page
)

// blockMap says which blocks of a disk a layer holds. Bits are set and never cleared: of a page
// that power loss tore any mixture of the old and the new bytes is true, since the blocks are
// durable before their bits are written. It is safe for concurrent use, and takes memory only where
// blocks are.
type blockMap struct {
	size  int64 // of the disk, bytes
	pages []atomic.Pointer[mapPageBits]
}

type mapPageBits struct {
	words [mapPage / 8]atomic.Uint64
	dirty atomic.Bool // has bits that were not written
}

func newBlockMap(size int64) *blockMap {
	return &blockMap{size: size, pages: make([]atomic.Pointer[mapPageBits], mapPages(size))}
}

// mapPages returns how many pages the map of a disk has.
func mapPages(size int64) int64 { return (size + pageSpan - 1) / pageSpan }

func (m *blockMap) has(off int64) bool {
	page := m.pages[off/pageSpan].Load()
	if page == nil {
		return false
	}
	bit := off % pageSpan / layerBlock
	return page.words[bit/64].Load()&(1<<(bit%64)) != 0
}

// run reports whether the block at off is held, and how many bytes from off up to end are alike.
func (m *blockMap) run(off, end int64) (here bool, n int64) {
	here = m.has(off)
	at := off
	for at < end {
		p := at / pageSpan
		page := m.pages[p].Load()
		if page == nil {
			if here {
				break
			}
			at = (p + 1) * pageSpan
			continue
		}
		bit := at % pageSpan / layerBlock
		word := page.words[bit/64].Load()
		if here {
			word = ^word
		}
		rest := word >> (bit % 64)
		if rest != 0 {
			at = at/layerBlock*layerBlock + int64(bits.TrailingZeros64(rest))*layerBlock
			break
		}
		at = p*pageSpan + (bit/64+1)*64*layerBlock
	}
	// A block that came in between has at least the bytes that has looked at.
	n = max(min(at, end)-off, min((off/layerBlock+1)*layerBlock, end)-off)
	return here, n
}

// set adds the blocks of [off, end).
func (m *blockMap) set(off, end int64) {
	for first, last := off/layerBlock, (end+layerBlock-1)/layerBlock; first < last; {
		n := min(64-first%64, last-first)
		mask := ^uint64(0) >> (64 - n) << (first % 64)
		page := m.page(first / pageBits)
		word := &page.words[first%pageBits/64]
		if word.Load()&mask != mask {
			word.Or(mask)
			page.dirty.Store(true) // after the bits: who clears it looks at them afterwards
		}
		first += n
	}
}

func (m *blockMap) page(i int64) *mapPageBits {
	if p := m.pages[i].Load(); p != nil {
		return p
	}
	m.pages[i].CompareAndSwap(nil, new(mapPageBits))
	return m.pages[i].Load()
}

// savedPage is a page as it was at one moment.
type savedPage struct {
	index int64
	bits  []byte
}

// takeDirty returns the pages that have bits which were not written.
func (m *blockMap) takeDirty() (out []savedPage) {
	for i := range m.pages {
		p := m.pages[i].Load()
		if p == nil || !p.dirty.Swap(false) {
			continue
		}
		b := make([]byte, 0, mapPage)
		for w := range p.words {
			b = binary.LittleEndian.AppendUint64(b, p.words[w].Load())
		}
		out = append(out, savedPage{int64(i), b})
	}
	return out
}

// dirtyAll has every page that has bits written by the next flush.
func (m *blockMap) dirtyAll() {
	for i := range m.pages {
		if p := m.pages[i].Load(); p != nil {
			p.dirty.Store(true)
		}
	}
}

// giveBackDirty says that pages could not be written.
func (m *blockMap) giveBackDirty(pages []savedPage) {
	for _, p := range pages {
		m.pages[p.index].Load().dirty.Store(true)
	}
}

// load reads the map from behind the header of f.
func (m *blockMap) load(f layerFile) error {
	end := int64(layerHeader) + int64(len(m.pages))*mapPage
	buf := make([]byte, mapPage)
	for off := int64(layerHeader); off < end; {
		n, hole, err := f.Run(off, end-off)
		if err != nil {
			return err
		}
		if hole && n >= mapPage-off%mapPage {
			off = (off + n) &^ (mapPage - 1)
			continue
		}
		off &^= mapPage - 1
		if _, err := f.ReadAt(buf, off); errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: its map ends early", ErrLayerDamaged)
		} else if err != nil {
			return err
		}
		if err := m.loadPage((off-layerHeader)/mapPage, buf); err != nil {
			return err
		}
		off += mapPage
	}
	return nil
}

func (m *blockMap) loadPage(i int64, b []byte) error {
	var page *mapPageBits
	blocks := (m.size + layerBlock - 1) / layerBlock
	for w := range mapPage / 8 {
		v := binary.LittleEndian.Uint64(b[w*8:])
		if v == 0 {
			continue
		}
		if last := i*pageBits + int64(w)*64 + int64(bits.Len64(v)); last > blocks {
			return fmt.Errorf("%w: its map has block %d, the disk has %d", ErrLayerDamaged, last-1, blocks)
		}
		if page == nil {
			page = m.page(i)
		}
		page.words[w].Store(v)
	}
	return nil
}
