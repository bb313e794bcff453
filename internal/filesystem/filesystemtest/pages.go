package filesystemtest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"testing"
)

// PageSize is the bytes of a page of [Pages].
const PageSize = 4 << 10

// Pages is an image in memory of which only pages that are not zero are kept, by their numbers.
type Pages struct {
	Size int64
	All  map[int64][]byte
}

// ReadAt reads as [io.ReaderAt] says.
func (p *Pages) ReadAt(b []byte, off int64) (int, error) {
	if off >= p.Size {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.Size-off))
	clear(b[:n])
	for at := off; at < off+int64(n); at = (at/PageSize + 1) * PageSize {
		if page := p.All[at/PageSize]; page != nil {
			copy(b[at-off:n], page[at%PageSize:])
		}
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// Clone returns one that may be changed on its own.
func (p *Pages) Clone() *Pages { return &Pages{p.Size, maps.Clone(p.All)} }

// Put writes within one page.
func (p *Pages) Put(data []byte, off int64) {
	page := make([]byte, PageSize)
	copy(page, p.All[off/PageSize])
	copy(page[off%PageSize:], data)
	p.All[off/PageSize] = page
}

// Used returns the numbers of the pages that are not zero.
func (p *Pages) Used() []int64 { return slices.Sorted(maps.Keys(p.All)) }

// PagesOf returns the pages of an image.
func PagesOf(image []byte) *Pages {
	p := &Pages{int64(len(image)), map[int64][]byte{}}
	for at := 0; at < len(image); at += PageSize {
		page := make([]byte, PageSize)
		copy(page, image[at:])
		if !bytes.Equal(page, make([]byte, PageSize)) {
			p.All[int64(at/PageSize)] = page
		}
	}
	return p
}

// LoadPages reads a packed file of pages: the size, then number and content of each.
func LoadPages(t testing.TB, path string) *Pages {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	z, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	p := &Pages{All: map[int64][]byte{}}
	if err := binary.Read(z, binary.LittleEndian, &p.Size); err != nil {
		t.Fatal(err)
	}
	for {
		var num int64
		if err := binary.Read(z, binary.LittleEndian, &num); errors.Is(err, io.EOF) {
			return p
		} else if err != nil {
			t.Fatal(err)
		}
		p.All[num] = make([]byte, PageSize)
		if _, err := io.ReadFull(z, p.All[num]); err != nil {
			t.Fatal(err)
		}
	}
}
