package xfs

import (
	"context"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// recorder is a disk that remembers what was written to it, and when it was told that all of it has
// to stay. The kernel sees it as a file of a FUSE file system.
type recorder struct {
	fs.Inode
	file *os.File // what it was made with, and the writes
	size uint64

	mu     sync.Mutex
	events []diskEvent
}

// diskEvent is a write, or a flush: where there is no data.
type diskEvent struct {
	off  int64
	data []byte
}

// record serves the image in file as a disk, and returns its path.
func record(t testing.TB, file *os.File, size int64) (*recorder, string) {
	t.Helper()
	r := &recorder{file: file, size: uint64(size)}
	dir := t.TempDir()
	_, err := fs.Mount(dir, &recorderDir{disk: r}, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true, MaxWrite: 1 << 20, Logger: log.New(io.Discard, "", 0)},
		Logger:       log.New(io.Discard, "", 0),
	})
	if err != nil {
		t.Fatalf("serve a disk by FUSE: %v", err)
	}
	// That the server ends cannot be waited for: another program may have a copy of the mount.
	t.Cleanup(func() { poll(t, func() error { return unmountAll(dir) }) })
	return r, filepath.Join(dir, "disk")
}

type recorderDir struct {
	fs.Inode
	disk *recorder
}

var (
	_ fs.NodeOnAdder   = (*recorderDir)(nil)
	_ fs.NodeOpener    = (*recorder)(nil)
	_ fs.NodeGetattrer = (*recorder)(nil)
	_ fs.NodeReader    = (*recorder)(nil)
	_ fs.NodeWriter    = (*recorder)(nil)
	_ fs.NodeFsyncer   = (*recorder)(nil)
)

func (d *recorderDir) OnAdd(ctx context.Context) {
	d.AddChild("disk", d.NewPersistentInode(ctx, d.disk, fs.StableAttr{Mode: syscall.S_IFREG}), false)
}

func (r *recorder) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (r *recorder) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = syscall.S_IFREG|0o600, r.size
	return 0
}

func (r *recorder) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := r.file.ReadAt(dest, off)
	if err != nil && err != io.EOF {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (r *recorder) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.file.WriteAt(data, off); err != nil {
		return 0, syscall.EIO
	}
	r.events = append(r.events, diskEvent{off, append([]byte(nil), data...)})
	return uint32(len(data)), 0
}

func (r *recorder) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, diskEvent{})
	return 0
}

// written returns how many bytes were written where it counts.
func (r *recorder) written(counts func(off int64) bool) (sum int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.data != nil && counts(e.off) {
			sum += int64(len(e.data))
		}
	}
	return sum
}

// Ways in which a disk that loses power treats what it was not told to keep.
const (
	losesNothing = iota
	losesAll
	losesWrites  // some of them
	tearsLog     // sectors of the log, and other writes as a whole
	tearsSectors // any
	waysToLose
)

// powerFails writes to image, which is as the disk was at first, what is on it if power fails after
// the first n events.
func powerFails(t testing.TB, rng *rand.Rand, image *os.File, events []diskEvent, way int, isLog func(off int64) bool) {
	t.Helper()
	flushed := 0
	for i, e := range events {
		if e.data == nil {
			flushed = i
		}
	}
	coin := func() bool { return rng.IntN(2) == 0 }
	for i, e := range events {
		torn := way == tearsSectors || way == tearsLog && isLog(e.off)
		switch {
		case i < flushed || way == losesNothing:
		case way == losesAll, !torn && coin():
			continue
		case torn:
			for ; len(e.data) > 0; e.data, e.off = e.data[basicBlock:], e.off+basicBlock {
				if coin() {
					writeAt(t, image, e.data[:basicBlock], e.off)
				}
			}
			continue
		}
		writeAt(t, image, e.data, e.off)
	}
}

func writeAt(t testing.TB, file *os.File, b []byte, off int64) {
	t.Helper()
	if _, err := file.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}
