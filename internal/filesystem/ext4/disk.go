package ext4

import (
	"cmp"
	"container/list"
	"errors"
	"io"
	"slices"
	"sync"
)

const (
	chunkSize = 64 << 10 // what metadata is read and kept in; no block is larger
	maxChunks = 256      // kept at once
)

// moved is a block whose newest content is in the journal.
type moved struct {
	block   uint64 // where it belongs
	from    uint64 // where it is
	escaped bool   // its first four bytes are the journal's magic, which the journal does not hold
}

// disk reads the device as it would be after the journal was written back.
type disk struct {
	r         io.ReaderAt
	size      int64 // bytes
	blockSize int64
	overlay   []moved // ascending by block; fixed before anything is read through it

	mu     sync.Mutex
	chunks map[int64]*list.Element // of *chunk, by number
	recent *list.List              // front is the latest used
}

type chunk struct {
	number int64
	load   sync.Once
	data   []byte
	err    error
}

func newDisk(r io.ReaderAt, size int64) *disk {
	return &disk{r: r, size: size, chunks: map[int64]*list.Element{}, recent: list.New()}
}

// setOverlay makes the blocks of list come from the journal from now on.
func (d *disk) setOverlay(list []moved) {
	slices.SortFunc(list, func(a, b moved) int { return cmp.Compare(a.block, b.block) })
	d.overlay = list
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.chunks)
	d.recent.Init()
}

// readAt fills p from byte off on.
func (d *disk) readAt(p []byte, off int64) error {
	if err := d.readRaw(p, off); err != nil {
		return err
	}
	if len(d.overlay) == 0 {
		return nil
	}
	first, end := off/d.blockSize, (off+int64(len(p))+d.blockSize-1)/d.blockSize
	at, _ := slices.BinarySearchFunc(d.overlay, uint64(first), func(m moved, b uint64) int {
		return cmp.Compare(m.block, b)
	})
	for ; at < len(d.overlay) && d.overlay[at].block < uint64(end); at++ {
		if err := d.patch(p, off, d.overlay[at]); err != nil {
			return err
		}
	}
	return nil
}

// patch puts into p, which was read from byte off on, what the journal holds of one block.
func (d *disk) patch(p []byte, off int64, m moved) error {
	buf := make([]byte, d.blockSize)
	if err := d.readRaw(buf, int64(m.from)*d.blockSize); err != nil {
		return err
	}
	if m.escaped {
		copy(buf, journalMagicBytes)
	}
	if at := int64(m.block)*d.blockSize - off; at >= 0 {
		copy(p[at:], buf)
	} else {
		copy(p, buf[-at:])
	}
	return nil
}

func (d *disk) readRaw(p []byte, off int64) error {
	if off < 0 || off > d.size-int64(len(p)) {
		return damaged("bytes %d to %d are behind the end of the device", off, off+int64(len(p)))
	}
	n, err := d.r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// block returns the content of one block of metadata, which must not be changed.
func (d *disk) block(n uint64) ([]byte, error) {
	if n >= uint64(d.size/d.blockSize) {
		return nil, damaged("block %d is behind the end of the device", n)
	}
	off := int64(n) * d.blockSize
	data, err := d.chunk(off / chunkSize)
	if err != nil {
		return nil, err
	}
	at := off % chunkSize
	return data[at : at+d.blockSize : at+d.blockSize], nil
}

// chunk returns a chunk by its number, read once however many ask at a time.
func (d *disk) chunk(number int64) ([]byte, error) {
	c := d.entry(number)
	c.load.Do(func() {
		c.data = make([]byte, min(chunkSize, d.size-number*chunkSize))
		c.err = d.readAt(c.data, number*chunkSize)
	})
	if c.err != nil {
		d.forget(c)
		return nil, c.err
	}
	return c.data, nil
}

func (d *disk) entry(number int64) *chunk {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.chunks[number]; e != nil {
		d.recent.MoveToFront(e)
		return e.Value.(*chunk)
	}
	c := &chunk{number: number}
	d.chunks[number] = d.recent.PushFront(c)
	if d.recent.Len() > maxChunks {
		last := d.recent.Back()
		d.recent.Remove(last)
		delete(d.chunks, last.Value.(*chunk).number)
	}
	return c
}

// forget drops a chunk that could not be read, so that the next caller tries again.
func (d *disk) forget(c *chunk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.chunks[c.number]; e != nil && e.Value.(*chunk) == c {
		d.recent.Remove(e)
		delete(d.chunks, c.number)
	}
}
