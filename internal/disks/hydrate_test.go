package disks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"golang.org/x/sys/unix"
)

const pieceSize = 256 << 10

// pieces is a content that is written in pieces, in any order, as that of a vault is.
type pieces struct {
	memory
	written *atomic.Int64
	fail    func() error // asked before each piece
}

// sparse returns size bytes of which every other half MiB is not zeros.
func sparse(size int) pieces {
	rng := rand.New(rand.NewPCG(1, 1))
	data := make([]byte, size)
	var set extent.Set
	for at := 0; at < size; at += mib {
		for i := range min(mib/2, size-at) {
			data[at+i] = byte(rng.Uint32()) | 1
		}
		set = set.Append(extent.Extent{Off: int64(at), Len: int64(min(mib/2, size-at))})
	}
	return pieces{memory{bytes.NewReader(data), set}, new(atomic.Int64), func() error { return nil }}
}

func (c pieces) bytes(t *testing.T) []byte {
	t.Helper()
	all, err := io.ReadAll(io.NewSectionReader(c.memory, 0, c.Size()))
	ok(t, err)
	return all
}

func (c pieces) RestorePart(ctx context.Context, part extent.Set, w io.WriterAt, _ func(int64)) error {
	var list []extent.Extent
	for _, e := range c.data {
		for off := e.Off; off < e.End(); off += pieceSize {
			if p := (extent.Extent{Off: off, Len: min(pieceSize, e.End()-off)}); len(extent.Of(p).Intersect(part)) > 0 {
				list = append(list, p)
			}
		}
	}
	rand.Shuffle(len(list), func(i, k int) { list[i], list[k] = list[k], list[i] })
	for _, e := range list {
		buf := make([]byte, e.Len)
		if _, err := c.ReadAt(buf, e.Off); err != nil {
			return err
		}
		if err := errors.Join(ctx.Err(), c.fail()); err != nil {
			return err
		}
		c.written.Add(e.Len)
		if _, err := w.WriteAt(buf, e.Off); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

// shortDir returns a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	ok(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// unserved is for disks whose overlays nobody reads.
func unserved(context.Context, *Hydration) (func() error, error) {
	return func() error { return nil }, nil
}

// guestWrites writes to an overlay as a machine would that has the disk: data where there was some,
// data where there was none, and zeros. It returns what the disk reads as then.
func guestWrites(t *testing.T, p *Pool, d *Disk, content []byte) []byte {
	t.Helper()
	stop, err := serveFile(t, p.dir, d.Hydration, content)
	ok(t, err)
	defer func() { ok(t, stop()) }()
	want := slices.Clone(content)
	fill := func(value byte, off, n int) string {
		copy(want[off:], bytes.Repeat([]byte{value}, n))
		if value == 0 {
			return fmt.Sprintf("write -z %d %d", off, n)
		}
		return fmt.Sprintf("write -P %d %d %d", value, off, n)
	}
	tool(t, "qemu-io", "-f", "qcow2", "-c", fill(7, 100<<10, 64<<10), "-c", fill(8, mib-(200<<10), 300<<10), "-c",
		fill(0, mib+(256<<10), 128<<10), p.Path(d))
	return want
}

// Wherever the command that fills a disk is killed, and whenever in between a machine writes to it,
// the disk is what the guest made of it in the end, and nothing is copied twice that was recorded
// as copied.
func TestFillIsKilledAnywhere(t *testing.T) {
	ctx := context.Background()
	const size = 2*mib + 512
	for _, format := range []string{"raw", "qcow2"} {
		for _, guest := range []string{"never", "before", "between"} {
			t.Run(format+" "+guest, func(t *testing.T) {
				for at := 0; ; at++ {
					p, c := newPool(t, shortDir(t), newModel()), sparse(size)
					p.checkpoint = 0
					d, err := p.CreateOverlay(ctx, CreateRequest{Name: "data", Format: format, Content: c})
					ok(t, err)
					want := c.bytes(t)
					if guest == "before" {
						want = guestWrites(t, p, d, want)
					}
					killed := kill(t, p, at, HydrateRequest{Content: c, Serve: unserved})
					d, err = p.Disk("data")
					ok(t, err)
					if killed && d.Hydration != nil && guest == "between" {
						want = guestWrites(t, p, d, c.bytes(t))
					}
					left := requireTrue(t, p, d, c)
					before := c.written.Load()
					d, err = newPool(t, p.dir, newModel()).Hydrate(ctx, "data",
						HydrateRequest{Content: c, Serve: unserved})
					ok(t, err)
					requireBytes(t, p.Path(d), format, want)
					requireWhole(t, p)
					if copied := c.written.Load() - before; copied != left {
						t.Errorf("killed at step %d: %d bytes were copied where %d were left", at, copied, left)
					}
					if !killed {
						return
					}
				}
			})
		}
	}
}

// kill has a command that fills a disk end at one of its steps, and reports whether it has as many.
func kill(t *testing.T, p *Pool, at int, req HydrateRequest) bool {
	t.Helper()
	steps := 0
	p.step = func(string) error {
		if steps++; steps > at {
			return errCrash
		}
		return nil
	}
	defer func() { p.step = func(string) error { return nil } }()
	_, err := p.Hydrate(context.Background(), "data", req)
	if err != nil && !errors.Is(err, errCrash) {
		t.Fatalf("killed at step %d: %v", at, err)
	}
	return err != nil
}

// requireTrue fails unless what the record says was copied is there, and returns how many bytes are
// left to copy.
func requireTrue(t *testing.T, p *Pool, d *Disk, c pieces) int64 {
	t.Helper()
	if d.Hydration == nil {
		return 0
	}
	if d.Hydration.Partial == nil {
		return c.data.Bytes()
	}
	q := d.Hydration.Partial
	missing := q.missing(c.data).Bytes()
	if have := c.data.Bytes() - missing; d.Hydration.Done != have || have > c.written.Load() {
		t.Errorf("the record says %d bytes were copied and names units with %d; %d were written", d.Hydration.Done,
			have, c.written.Load())
	}
	if d.Format != "raw" {
		return missing
	}
	path := filepath.Join(p.dir, q.File)
	if _, err := os.Stat(path); err != nil {
		path = filepath.Join(p.dir, d.Hydration.Final) // it was complete
	}
	got, err := os.ReadFile(path)
	ok(t, err)
	for _, e := range c.data.Subtract(q.missing(c.data)) {
		if !bytes.Equal(got[e.Off:e.End()], c.bytes(t)[e.Off:e.End()]) && filepath.Base(path) == q.File {
			t.Errorf("bytes %d to %d were recorded and are not there", e.Off, e.End())
		}
	}
	return missing
}

func requireBytes(t *testing.T, path, format string, want []byte) {
	t.Helper()
	img, err := diskimage.Open(context.Background(), path, diskimage.Options{Format: format})
	ok(t, err)
	defer img.Close()
	got := make([]byte, img.Size())
	if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s is not what was written: %d bytes of %d, %v", path, len(got), len(want), err)
	}
}

// A copy of something else is not gone on with.
func TestFillOfAnotherContent(t *testing.T) {
	ctx := context.Background()
	p, c := newPool(t, shortDir(t), newModel()), sparse(4*mib)
	p.checkpoint = 0
	_, err := p.CreateOverlay(ctx, CreateRequest{Name: "data", Format: "raw", Content: c})
	ok(t, err)
	kill(t, p, 6, HydrateRequest{Content: c, Serve: unserved})
	ok(t, p.change("data", func(d *Disk) error { d.Hydration.Partial.Of = "another"; return nil }))
	d, err := p.Hydrate(ctx, "data", HydrateRequest{Content: c, Serve: unserved})
	ok(t, err)
	requireBytes(t, p.Path(d), "raw", c.bytes(t))
	requireWhole(t, p)
}

// A disk can be attached and detached whenever it is filled: that its record is written all the
// time is in nobody's way.
func TestAttachWhileItIsFilled(t *testing.T) {
	ctx := context.Background()
	m := newModel()
	p, c := newPool(t, shortDir(t), m), sparse(8*mib)
	p.checkpoint = 0
	_, err := p.CreateOverlay(ctx, CreateRequest{Name: "data", Format: "raw", Content: c})
	ok(t, err)
	copying, more, stop := make(chan struct{}), make(chan struct{}), func() error { return nil }
	first := true
	c.fail = func() error {
		if first {
			first = false
			close(copying)
			<-more
		}
		return nil
	}
	ended := make(chan error, 1)
	go func() {
		_, err := p.Hydrate(ctx, "data",
			HydrateRequest{Content: c, Serve: func(_ context.Context, h *Hydration) (func() error, error) {
				return stop, os.WriteFile(h.Socket, nil, 0o600)
			}})
		ended <- err
	}()
	<-copying
	unlock, err := p.lock("data", workLock)
	ok(t, err)
	attached := make(chan error, 1)
	go func() {
		_, err := p.Attach(ctx, "data", AttachRequest{Host: m, Machine: m.machine()})
		attached <- err
	}()
	unlock()
	ok(t, <-attached)
	_, err = p.Detach(ctx, "data")
	ok(t, err)
	close(more)
	ok(t, <-ended)
	d, err := p.Disk("data")
	ok(t, err)
	ok(t, os.Remove(filepath.Join(p.dir, "."+d.ID[:8]+".sock")))
	requireBytes(t, p.Path(d), "raw", c.bytes(t))
	requireWhole(t, p)
}

// small returns a directory on a file system of size bytes.
func small(t *testing.T, size int) string {
	t.Helper()
	dir := shortDir(t)
	if err := unix.Mount("holdfast", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() { ok(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// A pool that is too full for a disk is left as it was, and the error says how much is missing.
func TestCreateInAFullPool(t *testing.T) {
	ctx := context.Background()
	p, c := newPool(t, small(t, 8*mib), newModel()), sparse(20*mib)
	_, err := p.CreateOverlay(ctx, CreateRequest{Name: "data", Content: c})
	if !errors.Is(err, diskimage.ErrNoSpace) || !strings.Contains(err.Error(), fmt.Sprint(c.data.Bytes())) {
		t.Errorf("created in a pool without room: %v", err)
	}
	if left, _ := os.ReadDir(p.dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	c = sparse(10 * mib)
	_, err = p.CreateOverlay(ctx, CreateRequest{Name: "first", Content: c})
	ok(t, err)
	_, err = p.CreateOverlay(ctx, CreateRequest{Name: "second", Content: c})
	if !errors.Is(err, diskimage.ErrNoSpace) || !strings.Contains(err.Error(), "being filled") {
		t.Errorf("created where the room was promised: %v", err)
	}
}

// Where others take the room, a disk waits for it, says so, and is filled as soon as there is some.
func TestFillWaitsForRoom(t *testing.T) {
	for name, before := range map[string]bool{"before it began": true, "meanwhile": false} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			p, c := newPool(t, small(t, 8*mib), newModel()), sparse(10*mib)
			p.checkpoint, p.roomPause = 0, time.Millisecond
			_, err := p.CreateOverlay(ctx, CreateRequest{Name: "data", Format: "raw", Content: c})
			ok(t, err)
			taken := filepath.Join(p.dir, "theirs")
			take := func() {
				ok(t, os.WriteFile(taken, make([]byte, 6*mib), 0o600))
			}
			if before {
				take()
			}
			full := before
			c.fail = func() error {
				if !full && c.written.Load() > 2*mib { // as where the file system cannot reserve
					full = true
					return fmt.Errorf("write: %w", diskimage.ErrNoSpace)
				}
				return nil
			}
			waited, left := 0, int64(0)
			d, err := p.Hydrate(ctx, "data", HydrateRequest{Content: c, Serve: unserved, Waits: func(why error) {
				waited++
				ok(t, p.change("data", func(d *Disk) error { d.Hydration.Waits = why.Error(); return nil }))
				d, err := p.Disk("data")
				ok(t, err)
				if s := p.Inspect(ctx, d); !strings.Contains(s.State, "waits for room") ||
					!strings.Contains(s.Problem, "not enough space") {
					t.Errorf("while it waits the list says %+v", s)
				}
				left = c.written.Load() + requireTrue(t, p, d, c)
				os.Remove(taken)
			}})
			ok(t, err)
			if waited == 0 {
				t.Error("it did not wait")
			}
			requireBytes(t, p.Path(d), "raw", c.bytes(t))
			requireWhole(t, p)
			if c.written.Load() != left {
				t.Errorf("%d bytes were copied where it would have taken %d", c.written.Load(), left)
			}
		})
	}
}
