package export

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	mapPage   = 4096                         // bytes of a map that are written at once
	pageBits  = mapPage * 8                  // blocks of a page
	pageSpan  = int64(pageBits) * layerBlock // bytes of the disk of a page
	shelf     = 512                          // pages that are looked up together
	shelfSpan = shelf * pageSpan
)

// blockMap says which blocks of a disk a layer holds. Bits are set and never cleared: of a page
// that power loss tore any mixture of the old and the new bytes is true, since the blocks are
// durable before their bits are written. It is safe for concurrent use, and costs memory and time
// where blocks are, not by the size of the disk.
type blockMap struct {
	size    int64 // of the disk, bytes
	shelves []atomic.Pointer[pageShelf]

	mu    sync.Mutex // held while a bit is set, so that no bit is seen whose page is not in dirty yet
	dirty []int64    // pages that have bits which were not written
}

type pageShelf [shelf]atomic.Pointer[mapPageBits]

type mapPageBits struct {
	words [mapPage / 8]atomic.Uint64
	dirty bool // it is in the list; guarded by blockMap.mu
}

func newBlockMap(size int64) *blockMap {
	return &blockMap{size: size, shelves: make([]atomic.Pointer[pageShelf], (size+shelfSpan-1)/shelfSpan)}
}

// mapPages returns how many pages the map of a disk has.
func mapPages(size int64) int64 { return (size + pageSpan - 1) / pageSpan }

// find returns the page of off, nil where it is empty, and where it or the shelf of empty ones
// ends.
func (m *blockMap) find(off int64) (page *mapPageBits, end int64) {
	s := m.shelves[off/shelfSpan].Load()
	if s == nil {
		return nil, (off/shelfSpan + 1) * shelfSpan
	}
	return s[off/pageSpan%shelf].Load(), (off/pageSpan + 1) * pageSpan
}

func (m *blockMap) has(off int64) bool {
	page, _ := m.find(off)
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
		page, next := m.find(at)
		if page == nil {
			if here {
				break
			}
			at = next
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
		at = at/pageSpan*pageSpan + (bit/64+1)*64*layerBlock
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
			m.mu.Lock()
			word.Or(mask)
			m.markDirty(first/pageBits, page)
			m.mu.Unlock()
		}
		first += n
	}
}

func (m *blockMap) markDirty(index int64, page *mapPageBits) {
	if !page.dirty {
		page.dirty = true
		m.dirty = append(m.dirty, index)
	}
}

// page returns a page, which it makes where there is none.
func (m *blockMap) page(i int64) *mapPageBits {
	at := &m.shelves[i/shelf]
	if at.Load() == nil {
		at.CompareAndSwap(nil, new(pageShelf))
	}
	page := &at.Load()[i%shelf]
	if page.Load() == nil {
		page.CompareAndSwap(nil, new(mapPageBits))
	}
	return page.Load()
}

// savedPage is a page as it was at one moment.
type savedPage struct {
	index int64
	bits  []byte
}

// takeDirty returns the pages that have bits which were not written, in ascending order. It has
// every bit that anybody can have seen before.
func (m *blockMap) takeDirty() []savedPage {
	m.mu.Lock()
	list := m.dirty
	m.dirty = nil
	for _, i := range list {
		m.page(i).dirty = false // a bit that is set from here on puts it into the list again
	}
	m.mu.Unlock()
	slices.Sort(list)
	out := make([]savedPage, 0, len(list))
	for _, i := range list {
		b := make([]byte, 0, mapPage)
		for words, w := &m.page(i).words, 0; w < len(words); w++ {
			b = binary.LittleEndian.AppendUint64(b, words[w].Load())
		}
		out = append(out, savedPage{i, b})
	}
	return out
}

// dirtyAll has every page that has bits written by the next flush.
func (m *blockMap) dirtyAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.shelves {
		s := m.shelves[i].Load()
		if s == nil {
			continue
		}
		for j := range s {
			if page := s[j].Load(); page != nil {
				m.markDirty(int64(i*shelf+j), page)
			}
		}
	}
}

// giveBackDirty says that pages could not be written.
func (m *blockMap) giveBackDirty(pages []savedPage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range pages {
		m.markDirty(p.index, m.page(p.index))
	}
}

// load reads the map from behind the header of f.
func (m *blockMap) load(f layerFile) error {
	end := int64(layerHeader) + mapPages(m.size)*mapPage
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
