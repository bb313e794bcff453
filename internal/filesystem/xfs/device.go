package xfs

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	pageSize    = 4 << 10
	lineSize    = 16 << 10
	cachedLines = 1024      // 16 MiB of metadata
	maxOverlay  = 256 << 10 // pages that a log may change: 1 GiB
	pageSectors = pageSize / basicBlock
)

// device reads the disk with what the log changed laid over it. It keeps what was read as metadata
// in a bounded cache.
type device struct {
	r    io.ReaderAt
	size int64
	over map[int64]*page // by number; changed only while the log is replayed, when nobody else reads

	mu    sync.Mutex
	lines map[int64]*list.Element
	used  list.List // of line, the last used first
}

// page is a part of the disk that the log changed.
type page struct {
	data *[pageSize]byte
	from [pageSectors]bool // sectors that came from the log: their checksums are out of date
}

// zeroPage is shared by all pages of new inodes that were not used since.
var zeroPage [pageSize]byte

type line struct {
	num  int64
	data []byte
}

func newDevice(r io.ReaderAt, size int64) *device {
	return &device{r: r, size: size, over: map[int64]*page{}, lines: map[int64]*list.Element{}}
}

// read fills p from off, or fails.
func (d *device) read(p []byte, off int64) error {
	if off < 0 || off > d.size-int64(len(p)) {
		return corrupt("%d bytes at %d are outside the %d there are", len(p), off, d.size)
	}
	if err := d.readDisk(p, off); err != nil {
		return err
	}
	d.lay(p, off)
	return nil
}

// lay puts what the log changed over p, which was read from off.
func (d *device) lay(p []byte, off int64) {
	if len(d.over) == 0 {
		return
	}
	for at := off; at < off+int64(len(p)); at = (at/pageSize + 1) * pageSize {
		if pg := d.over[at/pageSize]; pg != nil {
			copy(p[at-off:], pg.data[at%pageSize:])
		}
	}
}

func (d *device) readDisk(p []byte, off int64) error {
	n, err := d.r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("read %d bytes at %d: %w: the disk ends early", len(p), off, filesystem.ErrCorrupt)
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

// meta returns n bytes from off, which belong to the caller.
func (d *device) meta(off int64, n int) ([]byte, error) {
	if off < 0 || off > d.size-int64(n) {
		return nil, corrupt("%d bytes of metadata at %d are outside the %d there are", n, off, d.size)
	}
	out := make([]byte, 0, n)
	for len(out) < n {
		at := off + int64(len(out))
		data, err := d.line(at / lineSize)
		if err != nil {
			return nil, err
		}
		from := data[at%lineSize:]
		out = append(out, from[:min(len(from), n-len(out))]...)
	}
	return out, nil
}

func (d *device) line(num int64) ([]byte, error) {
	d.mu.Lock()
	if e := d.lines[num]; e != nil {
		d.used.MoveToFront(e)
		d.mu.Unlock()
		return e.Value.(line).data, nil
	}
	d.mu.Unlock()
	data := make([]byte, min(lineSize, d.size-num*lineSize))
	if err := d.read(data, num*lineSize); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lines[num] == nil {
		d.lines[num] = d.used.PushFront(line{num, data})
	}
	if d.used.Len() > cachedLines {
		delete(d.lines, d.used.Remove(d.used.Back()).(line).num)
	}
	return data, nil
}

// forget empties the cache.
func (d *device) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = map[int64]*list.Element{}
	d.used.Init()
}

// replayed says whether the log changed any of n bytes from off.
func (d *device) replayed(off, n int64) bool {
	if len(d.over) == 0 {
		return false
	}
	for at := off &^ (basicBlock - 1); at < off+n; at += basicBlock {
		if pg := d.over[at/pageSize]; pg != nil && pg.from[at%pageSize/basicBlock] {
			return true
		}
	}
	return false
}

// write lays data over the disk at off.
func (d *device) write(data []byte, off int64) error {
	for len(data) > 0 {
		pg, err := d.page(off / pageSize)
		if err != nil {
			return err
		}
		if pg.data == &zeroPage {
			pg.data = new([pageSize]byte)
		}
		n := copy(pg.data[off%pageSize:], data)
		pg.mark(off%pageSize, int64(n))
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// zero lays n bytes of zeros over the disk at off. Whole pages take almost no memory.
func (d *device) zero(off, n int64) error {
	for n > 0 {
		part := min(n, pageSize-off%pageSize)
		if part < pageSize {
			if err := d.write(zeroPage[:part], off); err != nil {
				return err
			}
		} else {
			if err := d.room(off / pageSize); err != nil {
				return err
			}
			pg := &page{data: &zeroPage}
			pg.mark(0, pageSize)
			d.over[off/pageSize] = pg
		}
		off, n = off+part, n-part
	}
	return nil
}

func (pg *page) mark(at, n int64) {
	for s := at / basicBlock; s <= (at+n-1)/basicBlock; s++ {
		pg.from[s] = true
	}
}

// page returns the page that may be written, taken from the disk if the log did not touch it
// before.
func (d *device) page(num int64) (*page, error) {
	if pg := d.over[num]; pg != nil {
		return pg, nil
	}
	if err := d.room(num); err != nil {
		return nil, err
	}
	old, err := d.now(num*pageSize, int(min(pageSize, d.size-num*pageSize)))
	if err != nil {
		return nil, err
	}
	pg := &page{data: new([pageSize]byte)}
	copy(pg.data[:], old)
	d.over[num] = pg
	return pg, nil
}

// now returns n bytes from off as they are while the log is replayed. What it reads from the disk
// stays in the cache as it was there, so that forget must be called before anything else is read.
func (d *device) now(off int64, n int) ([]byte, error) {
	out, err := d.meta(off, n)
	if err != nil {
		return nil, err
	}
	d.lay(out, off)
	return out, nil
}

func (d *device) room(num int64) error {
	if num < 0 || num*pageSize >= d.size {
		return corrupt("the log changes page %d, which is outside the disk", num)
	}
	if d.over[num] == nil && len(d.over) >= maxOverlay {
		return unsupported("a log that changes more than %d MiB", maxOverlay*pageSize>>20)
	}
	return nil
}
