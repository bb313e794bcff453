package diskimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// raw is a file or device whose bytes are the disk's.
type raw struct {
	f      *os.File
	length int64
	device bool
	seek   sync.Mutex // the file offset, which only extents uses
}

func newRaw(f *os.File, length int64, device bool) *raw {
	return &raw{f: f, length: length, device: device}
}

func (r *raw) size() int64  { return r.length }
func (r *raw) Close() error { return nil }

func (r *raw) ReadAt(p []byte, off int64) (int, error) {
	var end error
	if off >= r.length {
		return 0, io.EOF
	}
	if off >= 0 && int64(len(p)) > r.length-off {
		p, end = p[:r.length-off], io.EOF
	}
	n, err := r.f.ReadAt(p, off)
	if err == io.EOF && n < len(p) {
		return n, fmt.Errorf("%w: it became shorter than %d while it was read", ErrDamaged, r.length)
	}
	if err == nil || err == io.EOF {
		err = end
	}
	return n, err
}

func (r *raw) extents(ctx context.Context) (extent.Set, error) {
	whole := extent.Set{{Off: 0, Len: r.length}}
	if r.device {
		return whole, nil
	}
	r.seek.Lock()
	defer r.seek.Unlock()
	var set extent.Set
	for at := int64(0); at < r.length; {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		from, err := unix.Seek(int(r.f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if errors.Is(err, unix.EINVAL) {
			return whole, nil
		}
		if err != nil {
			return nil, fmt.Errorf("seek data from %d: %w", at, err)
		}
		to, err := unix.Seek(int(r.f.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("seek hole from %d: %w", from, err)
		}
		set = set.Append(extent.Extent{Off: from, Len: min(to, r.length) - from})
		at = to
	}
	return set, nil
}

func (r *raw) dirty(context.Context) (extent.Set, error) { return nil, ErrNoBitmap }

// plainQcow2 is an image that package qcow2 can read.
type plainQcow2 struct {
	*qcow2.Image
	data extent.Set
	bits func() (extent.Set, error)
}

func newQcow2(img *qcow2.Image, data extent.Set, bitmap string) (source, error) {
	q := &plainQcow2{Image: img, data: data, bits: func() (extent.Set, error) { return nil, ErrNoBitmap }}
	if bitmap != "" {
		if err := requireRecording(img, bitmap); err != nil {
			return nil, err
		}
		set, err := img.ReadBitmap(bitmap)
		if err != nil {
			return nil, damaged(err)
		}
		q.bits = func() (extent.Set, error) { return set, nil }
	}
	return q, nil
}

func (q *plainQcow2) size() int64 { return q.Size() }

func (q *plainQcow2) extents(context.Context) (extent.Set, error) { return q.data, nil }

func (q *plainQcow2) dirty(context.Context) (extent.Set, error) { return q.bits() }

// requireRecording refuses a bitmap into which QEMU did not record while the image was open for
// writing: it may have missed changes.
func requireRecording(img *qcow2.Image, bitmap string) error {
	list, err := img.Bitmaps()
	if err != nil {
		return err
	}
	for _, b := range list {
		if b.Name == bitmap && !b.Auto {
			return fmt.Errorf("%w: %s was not recording", ErrBitmapInconsistent, bitmap)
		}
	}
	return nil
}
