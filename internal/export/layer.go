package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/holdfast-vm/holdfast/internal/nbd"
)

// Errors of layers that callers decide by.
var (
	ErrOtherDisk    = errors.New("the layer belongs to another disk")
	ErrLayerInUse   = errors.New("the layer is in use by another process")
	ErrLayerDamaged = errors.New("the layer is damaged")
)

// layerBlock is the unit in which a layer holds a disk, in bytes: small, so that a small write does
// not copy much.
const layerBlock = 4096

// Layer is a disk that can be written, private to its directory: what was written lies in a sparse
// file there, all else is the disk below. It is an [nbd.WritableBackend] and safe for concurrent
// use.
//
// What was written before Flush was called is there when the layer is opened again, whatever
// happened since. Of what was written later each block of 512 bytes is there or not, as on a disk.
// It never shows anything that was neither written nor below.
type Layer struct {
	below nbd.Backend
	data  layerFile // as large as the disk; blocks that the map does not have mean nothing
	meta  layerFile // header and map
	have  *blockMap
	size  int64

	// fill is held by whatever gives a block that is not here yet its first bytes in part, and for
	// reading by all other writers: neither may undo the other.
	fill sync.RWMutex

	flush  sync.Mutex
	broken error // guarded by flush: a flush failed, and nobody knows what it lost
}

// layerFile is a file of a layer.
type layerFile interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes every write that has returned survive power loss.
	Sync() error
	// Zero makes a range zeros, which with punch take no space.
	Zero(off, n int64, punch bool) error
	// Run returns how many bytes from off on, at most n, are alike: data, or a hole.
	Run(off, n int64) (length int64, hole bool, err error)
	// Reread is Sync for what other processes wrote, too, after which ReadAt shows what the disk
	// holds: not what lay in a cache and could not be written.
	Reread() error
	// TryReadAt is ReadAt if that does not wait for a disk.
	TryReadAt(p []byte, off int64) bool
	io.Closer
}

var (
	_ nbd.WritableBackend = (*Layer)(nil)
	_ nbd.TryReader       = (*Layer)(nil)
)

// newLayer returns the layer in data and meta over below. What was read is durable when it returns:
// the process that wrote it may have been killed before it had come to that, or have failed.
func newLayer(below nbd.Backend, data, meta layerFile) (*Layer, error) {
	l := &Layer{below: below, data: data, meta: meta, size: below.Size(), have: newBlockMap(below.Size())}
	if err := errors.Join(data.Reread(), meta.Reread()); err != nil {
		return nil, fmt.Errorf("make what is in the layer durable: %w", err)
	}
	if err := l.have.load(meta); err != nil {
		return nil, fmt.Errorf("read the map of the layer: %w", err)
	}
	l.have.dirtyAll() // a sync alone would not write again what an earlier one has failed to write
	if err := l.Flush(context.Background()); err != nil {
		return nil, err
	}
	return l, nil
}

// Size implements nbd.Backend.
func (l *Layer) Size() int64 { return l.size }

// each calls visit with the runs of [off, off+n) that are here or below, in order.
func (l *Layer) each(off, n int64, visit func(off, n int64, here bool) error) error {
	for end := off + n; off < end; {
		here, run := l.have.run(off, end)
		if err := visit(off, run, here); err != nil {
			return err
		}
		off += run
	}
	return nil
}

// ReadAt implements nbd.Backend.
func (l *Layer) ReadAt(ctx context.Context, p []byte, off int64) error {
	return l.each(off, int64(len(p)), func(at, n int64, here bool) error {
		part := p[at-off : at-off+n]
		if !here {
			return l.below.ReadAt(ctx, part, at)
		}
		if _, err := l.data.ReadAt(part, at); err != nil {
			return fmt.Errorf("read %d bytes of the layer at offset %d: %w", n, at, err)
		}
		return nil
	})
}

// errWait says that a read would wait.
var errWait = errors.New("would wait")

// TryReadAt implements nbd.TryReader.
func (l *Layer) TryReadAt(p []byte, off int64) bool {
	below, _ := l.below.(nbd.TryReader)
	return l.each(off, int64(len(p)), func(at, n int64, here bool) error {
		part := p[at-off : at-off+n]
		if here && l.data.TryReadAt(part, at) || !here && below != nil && below.TryReadAt(part, at) {
			return nil
		}
		return errWait
	}) == nil
}

// Status implements nbd.Backend.
func (l *Layer) Status(ctx context.Context, off, n int64) ([]nbd.StatusExtent, error) {
	var out []nbd.StatusExtent
	end := off + n
	for off < end && len(out) < maxStatusRuns {
		here, run := l.have.run(off, end)
		if !here {
			below, err := l.below.Status(ctx, off, run)
			if err != nil {
				return nil, err
			}
			for _, e := range below {
				e.Length = min(e.Length, run)
				off, run = off+e.Length, run-e.Length
				out = appendStatus(out, e)
			}
			continue
		}
		length, hole, err := l.data.Run(off, run)
		if err != nil {
			return nil, fmt.Errorf("look for holes of the layer at offset %d: %w", off, err)
		}
		e := nbd.StatusExtent{Length: length}
		if hole {
			e.Flags = nbd.AllocationHole | nbd.AllocationZero
		}
		out = appendStatus(out, e)
		off += length
	}
	return out, nil
}

// maxStatusRuns bounds the work of one Status.
const maxStatusRuns = 16 << 10

func appendStatus(out []nbd.StatusExtent, e nbd.StatusExtent) []nbd.StatusExtent {
	if n := len(out); n > 0 && out[n-1].Flags == e.Flags {
		out[n-1].Length += e.Length
		return out
	}
	if e.Length == 0 {
		return out
	}
	return append(out, e)
}

// WriteAt implements nbd.WritableBackend.
func (l *Layer) WriteAt(ctx context.Context, p []byte, off int64) error {
	head := min(-off&(layerBlock-1), int64(len(p)))
	if err := l.writeInBlock(ctx, p[:head], off); err != nil {
		return err
	}
	p, off = p[head:], off+head
	whole := int64(len(p)) &^ (layerBlock - 1)
	if off+int64(len(p)) == l.size {
		whole = int64(len(p)) // the disk's last block is shorter
	}
	if err := l.writeBlocks(p[:whole], off); err != nil {
		return err
	}
	return l.writeInBlock(ctx, p[whole:], off+whole)
}

// writeBlocks writes whole blocks.
func (l *Layer) writeBlocks(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	l.fill.RLock()
	defer l.fill.RUnlock()
	if _, err := l.data.WriteAt(p, off); err != nil {
		return fmt.Errorf("write %d bytes to the layer at offset %d: %w", len(p), off, err)
	}
	l.have.set(off, off+int64(len(p)))
	return nil
}

// writeInBlock writes a part of one block. If the block is not here yet, the rest of it comes from
// below.
func (l *Layer) writeInBlock(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	start := off &^ (layerBlock - 1)
	if l.have.has(start) {
		return l.writeBlocks(p, off)
	}
	block := make([]byte, min(layerBlock, l.size-start))
	if err := l.below.ReadAt(ctx, block, start); err != nil { // it never changes: no lock is needed
		return err
	}
	copy(block[off-start:], p)
	l.fill.Lock()
	defer l.fill.Unlock()
	if l.have.has(start) { // another write was faster
		block, start = p, off
	}
	if _, err := l.data.WriteAt(block, start); err != nil {
		return fmt.Errorf("write a block to the layer at offset %d: %w", start, err)
	}
	l.have.set(start, start+int64(len(block)))
	return nil
}

// WriteZeroes implements nbd.WritableBackend.
func (l *Layer) WriteZeroes(ctx context.Context, off, n int64, mayTrim bool) error {
	head := min(-off&(layerBlock-1), n)
	if err := l.writeInBlock(ctx, make([]byte, head), off); err != nil {
		return err
	}
	off, n = off+head, n-head
	whole := n &^ (layerBlock - 1)
	if off+n == l.size {
		whole = n
	}
	if err := l.zeroBlocks(off, whole, mayTrim); err != nil {
		return err
	}
	return l.writeInBlock(ctx, make([]byte, n-whole), off+whole)
}

func (l *Layer) zeroBlocks(off, n int64, punch bool) error {
	if n == 0 {
		return nil
	}
	l.fill.RLock()
	defer l.fill.RUnlock()
	if err := l.data.Zero(off, n, punch); err != nil {
		return fmt.Errorf("make %d bytes of the layer at offset %d zeros: %w", n, off, err)
	}
	l.have.set(off, off+n)
	return nil
}

// Trim implements nbd.WritableBackend: whole blocks become holes, parts of blocks stay.
func (l *Layer) Trim(_ context.Context, off, n int64) error {
	end := off + n
	if end < l.size {
		end &^= layerBlock - 1
	}
	off = (off + layerBlock - 1) &^ (layerBlock - 1)
	return l.zeroBlocks(off, max(end-off, 0), true)
}

// FastZeroes implements nbd.FastZeroer: only holes are certain to be fast, and the caller may want
// no hole.
func (l *Layer) FastZeroes() bool { return false }

// Flush implements nbd.WritableBackend. Bytes come before the map: what the map has is there. A
// flush that failed for want of room may be tried again; after any other failure all later ones
// fail too, since what was written may be lost.
func (l *Layer) Flush(context.Context) error {
	l.flush.Lock()
	defer l.flush.Unlock()
	if l.broken != nil {
		return l.broken
	}
	pages := l.have.takeDirty()
	if err := l.data.Sync(); err != nil {
		l.broken = fmt.Errorf("flush the layer: %w", err)
		return l.broken
	}
	for i := range pages {
		if _, err := l.meta.WriteAt(pages[i].bits, layerHeader+pages[i].index*mapPage); err != nil {
			l.have.giveBackDirty(pages[i:])
			return l.flushFailed(err)
		}
	}
	if len(pages) == 0 {
		return nil
	}
	if err := l.meta.Sync(); err != nil {
		l.broken = fmt.Errorf("flush the map of the layer: %w", err)
		return l.broken
	}
	return nil
}

func (l *Layer) flushFailed(err error) error {
	err = fmt.Errorf("write the map of the layer: %w", err)
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		l.broken = err
	}
	return err
}

// Close flushes and closes the layer. It must not be in use.
func (l *Layer) Close() error {
	return errors.Join(l.Flush(context.Background()), l.data.Close(), l.meta.Close())
}
