package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

const (
	pieceSize  = 1 << 20 // bytes read and written at once
	pieceAtOne = 4       // pieces of one file that are read at the same time
)

// regular writes a regular file with its holes, checks its size, and puts it in its place.
func (g *getter) regular(ctx context.Context, dir *target, name, path string, f filesystem.File, n volume.Node,
	attr filesystem.Attr) error {
	set, err := checked(f, attr.Size)
	if err != nil {
		return err
	}
	if err := g.room(dir, set.Bytes()); err != nil {
		return err
	}
	return dir.place(name, g.Force, func(temp string) error {
		fd, err := unix.Openat(dir.fd, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC,
			0o600)
		if err != nil {
			return fmt.Errorf("make a file: %w", err)
		}
		out := os.NewFile(uintptr(fd), name)
		err = g.copy(ctx, out, f, attr.Size, set)
		if err == nil {
			err = g.keep(dir, temp, fd, path, n, attr)
		}
		return errors.Join(err, out.Close())
	})
}

// checked returns where a file has data. Its size must be what its inode says.
func checked(f filesystem.File, size int64) (extent.Set, error) {
	if f.Size() != size {
		return nil, fmt.Errorf("%w: the inode says %d bytes, the data is %d", filesystem.ErrCorrupt, size, f.Size())
	}
	set, err := f.Extents()
	if err != nil {
		return nil, err
	}
	if n := len(set); n > 0 && (set[0].Off < 0 || set[n-1].End() > size) {
		return nil, fmt.Errorf("%w: there is data beyond the end at %d", filesystem.ErrCorrupt, size)
	}
	return set, nil
}

func (g *getter) copy(ctx context.Context, out *os.File, f filesystem.File, size int64, set extent.Set) error {
	if err := out.Truncate(size); err != nil {
		return fmt.Errorf("make room for %d bytes: %w", size, err)
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(pieceAtOne)
	for piece := range pieces(set) {
		if gctx.Err() != nil {
			break
		}
		if err := g.spend(piece.Len); err != nil {
			return errors.Join(err, group.Wait())
		}
		group.Go(func() error {
			buf := make([]byte, piece.Len)
			if err := readFull(f, buf, piece.Off); err != nil {
				return err
			}
			if _, err := out.WriteAt(buf, piece.Off); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			g.advance(piece.Len, 0)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := ended(ctx); err != nil {
		return err
	}
	g.advance(size-set.Bytes(), 0) // the holes
	return nil
}

// room refuses a file before anything of it is written: one that is behind the limit, and one that
// cannot fit where it is to go.
func (g *getter) room(dir *target, n int64) error {
	g.mu.Lock()
	over := plus(g.report.Stored, n) > g.trail.limits.Bytes
	g.mu.Unlock()
	if over {
		return g.overBytes()
	}
	free, known := dir.free()
	if known && n > free {
		return fmt.Errorf("%w: its data is %d bytes, and %d are free", ErrNoRoom, n, free)
	}
	return nil
}

// spend takes note of n bytes that are written.
func (g *getter) spend(n int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if plus(g.report.Stored, n) > g.trail.limits.Bytes {
		return g.overBytes()
	}
	g.report.Stored += n
	return nil
}

func (g *getter) overBytes() error {
	return Over(LimitBytes, "the files have more than %d bytes of data", g.trail.limits.Bytes)
}

// pieces cuts a set where pieces begin that are aligned: what is stored together is read once.
func pieces(set extent.Set) func(yield func(extent.Extent) bool) {
	return func(yield func(extent.Extent) bool) {
		for _, e := range set {
			for off := e.Off; off < e.End(); {
				n := min(pieceSize-off%pieceSize, e.End()-off)
				if !yield(extent.Extent{Off: off, Len: n}) {
					return
				}
				off += n
			}
		}
	}
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: it ends at %d", filesystem.ErrCorrupt, off+int64(n))
	}
	return fmt.Errorf("read %d bytes at offset %d: %w", len(p), off, err)
}

// streams fetches the named streams of an NTFS file as files beside it.
func (g *getter) streams(ctx context.Context, dir *target, name, path string, n volume.Node,
	attr filesystem.Attr) error {
	list, err := n.FS.Streams(n.ID)
	if err != nil {
		return fmt.Errorf("streams: %w", err)
	}
	for _, s := range list {
		if err := g.stream(ctx, dir, name+":"+s.Name, path+":"+s.Name, n, s, attr); err != nil {
			if ctx.Err() != nil || fatal(err) {
				return err
			}
			g.fail(path+":"+s.Name, err)
		}
	}
	return nil
}

func (g *getter) stream(ctx context.Context, dir *target, name, path string, n volume.Node, s filesystem.Stream,
	attr filesystem.Attr) error {
	if err := CheckName(name); err != nil {
		return err
	}
	f, err := n.FS.OpenStream(n.ID, s.Name)
	if err != nil {
		return err
	}
	attr.Size, attr.Mode = s.Size, attr.Mode.Perm()&^0o111
	g.advance(0, s.Size)
	if err := g.regular(ctx, dir, name, path, f, volume.Node{}, attr); err != nil {
		return err
	}
	g.count(&g.report.Streams, 1)
	return nil
}

// StreamRequest says which file to write where.
type StreamRequest struct {
	Name     string // a place
	To       io.Writer
	Limits   Limits // of them Bytes counts, holes and all
	Progress func(done, total int64)
}

// Stream writes the bytes of one regular file, holes as zeros, and returns how many.
func (p *Point) Stream(ctx context.Context, req StreamRequest) (int64, error) {
	at, err := p.Locate(req.Name, true)
	if err != nil {
		return 0, err
	}
	attr, err := at.Node.Stat()
	if err != nil {
		return 0, fmt.Errorf("look at %s: %w", req.Name, err)
	}
	if !attr.Mode.IsRegular() {
		return 0, fmt.Errorf("%s is a %s, and only a file goes to standard output: %w", req.Name, typeName(attr.Mode),
			fs.ErrInvalid)
	}
	if most := req.Limits.WithDefaults(p.size).Bytes; attr.Size > most {
		return 0, fmt.Errorf("%s: %w", req.Name, Over(LimitBytes, "it has %d bytes, holes and all, of at most %d",
			attr.Size, most))
	}
	f, err := at.Node.FS.Open(at.Node.ID)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", req.Name, err)
	}
	if _, err := checked(f, attr.Size); err != nil {
		return 0, fmt.Errorf("open %s: %w", req.Name, err)
	}
	return req.write(ctx, f, attr.Size)
}

func (req *StreamRequest) write(ctx context.Context, f filesystem.File, size int64) (done int64, err error) {
	buf := make([]byte, min(pieceSize, size))
	for done < size {
		if err := ended(ctx); err != nil {
			return done, err
		}
		part := buf[:min(int64(len(buf)), size-done)]
		if err := readFull(f, part, done); err != nil {
			return done, fmt.Errorf("%s: %w", req.Name, err)
		}
		if _, err := req.To.Write(part); err != nil {
			return done, fmt.Errorf("write %s: %w", req.Name, err)
		}
		done += int64(len(part))
		if req.Progress != nil {
			req.Progress(done, size)
		}
	}
	return done, nil
}
