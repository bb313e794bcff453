package snapshots

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
)

// Applied says what Apply did.
type Applied struct {
	Head
	File    string
	Written int64 // bytes that were not there yet
	Whole   bool  // base and result were checked as a whole, else in the changed ranges
}

// Apply turns the raw image or block device at path from the base of a stream into its target, in
// place. Nothing is written before the whole stream has been read and found undamaged, and the file
// been found to be its base: [ErrOtherBase] where it is not. A file that is the target already, or
// that an interrupted Apply has left in between, is accepted and completed.
func Apply(ctx context.Context, stream io.Reader, path string, progress func(done, total int64)) (Applied, error) {
	spool, err := spooled(stream, path)
	if err != nil {
		return Applied{}, err
	}
	defer spool.Close()
	f, err := openTarget(path)
	if err != nil {
		return Applied{}, err
	}
	a := &applier{ctx: ctx, stream: spool, file: f, progress: progress}
	out, err := a.run()
	out.File = path
	return out, errors.Join(err, f.Close())
}

// spooled returns the stream as a file that can be read twice.
func spooled(stream io.Reader, path string) (io.ReadSeekCloser, error) {
	if f, ok := stream.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			return f, nil
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".holdfast-stream-*")
	if err != nil {
		return nil, fmt.Errorf("make room for the stream: %w", err)
	}
	os.Remove(f.Name()) // it ends with us
	if _, err := io.Copy(f, stream); err != nil {
		return nil, errors.Join(fmt.Errorf("read the stream: %w", err), f.Close())
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

// openTarget opens a raw image for writing that nobody else uses.
func openTarget(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, diskimage.ErrInUse), f.Close())
	}
	if format, err := diskimage.Detect(f); err != nil || format != "raw" {
		return nil, errors.Join(fmt.Errorf("%s is a %s image: a stream is applied to a raw one", path, format), err,
			f.Close())
	}
	// refuses what a machine uses
	img, err := diskimage.Open(context.Background(), path, diskimage.Options{Format: "raw"})
	if errors.Is(err, diskimage.ErrEmpty) {
		return f, nil
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, img.Close()
}

type applier struct {
	ctx      context.Context
	stream   io.ReadSeeker
	file     *os.File
	progress func(done, total int64)
	out      Applied
	partly   bool // some ranges are as in the target already
	size     int64
	device   bool
}

func (a *applier) run() (Applied, error) {
	if err := a.verify(); err != nil {
		return a.out, err
	}
	if err := a.write(); err != nil {
		return a.out, err
	}
	if err := a.file.Sync(); err != nil {
		return a.out, err
	}
	if !a.out.Digests {
		return a.out, nil
	}
	a.out.Whole = true
	return a.out, a.checkDigest(a.out.ToDigest, a.out.ToSize, "after all was written")
}

// verify reads the stream whole and compares the file with what it says was there before.
func (a *applier) verify() error {
	size, err := a.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	info, err := a.file.Stat()
	if err != nil {
		return err
	}
	a.size, a.device = size, !info.Mode().IsRegular()
	buf := make([]byte, maxRange)
	changed := false
	head, err := readStream(a.ctx, a.stream, func(r record, _ []byte) error {
		now := buf[:r.len]
		if err := a.read(now, r.off); err != nil {
			return err
		}
		switch sum := sha256.Sum256(now); {
		case sum == r.was:
			changed = changed || r.was != r.is
		case sum == r.is:
			a.partly = true
		default:
			return fmt.Errorf("%w: it differs at byte %d", ErrOtherBase, r.off)
		}
		return nil
	})
	a.out.Head = head
	if err != nil {
		return err
	}
	if err := a.checkSize(head); err != nil {
		return err
	}
	partly := a.partly || !a.device && a.size != head.FromSize // left so by an Apply that was interrupted
	if head.Digests && changed && !partly {
		return a.checkDigest(head.FromDigest, head.FromSize, "before anything was written")
	}
	return nil
}

func (a *applier) checkSize(h Head) error {
	switch {
	case a.device && a.size < h.ToSize:
		return fmt.Errorf("%w: the device has %d bytes, the disk %d", diskimage.ErrTooSmall, a.size, h.ToSize)
	case !a.device && a.size != h.FromSize && a.size != h.ToSize:
		return fmt.Errorf("%w: it has %d bytes, the base %d", ErrOtherBase, a.size, h.FromSize)
	}
	return nil
}

// read reads a range of the file; what is after its end reads as zeros.
func (a *applier) read(p []byte, off int64) error {
	n, err := a.file.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}

func (a *applier) checkDigest(want [32]byte, size int64, when string) error {
	s := Side{Size: min(size, max(a.size, a.out.ToSize)), Data: a.file,
		Extents: func(context.Context) (extent.Set, error) { return dataOf(a.file, size), nil }}
	got, err := s.digest(a.ctx)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%w: as a whole, %s", ErrOtherBase, when)
	}
	return nil
}

// dataOf returns which parts of a file may differ from zeros, as its file system knows.
func dataOf(f *os.File, size int64) extent.Set {
	var out extent.Set
	for at := int64(0); at < size; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return out
		}
		if err != nil {
			return extent.Of(extent.Extent{Len: size})
		}
		to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return extent.Of(extent.Extent{Len: size})
		}
		out = out.Append(extent.Extent{Off: from, Len: min(to, size) - from})
		at = to
	}
	return out
}

// write applies the stream, which verify has found to be whole.
func (a *applier) write() error {
	if _, err := a.stream.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if !a.device && a.size != a.out.ToSize {
		if err := a.file.Truncate(a.out.ToSize); err != nil {
			return err
		}
		a.size = a.out.ToSize
	}
	zeros := make([]byte, maxRange)
	var done int64
	_, err := readStream(a.ctx, a.stream, func(r record, data []byte) error {
		if data == nil {
			data = zeros[:r.len]
		}
		if err := a.put(r, data); err != nil {
			return err
		}
		if done += r.len; a.progress != nil {
			a.progress(done, a.out.Changed)
		}
		return nil
	})
	return err
}

func (a *applier) put(r record, data []byte) error {
	if r.kind == kindZero && !a.device {
		err := unix.Fallocate(int(a.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.off, r.len)
		if err == nil {
			a.out.Written += r.len
			return nil
		}
	}
	n, err := a.file.WriteAt(data, r.off)
	a.out.Written += int64(n)
	return err
}
