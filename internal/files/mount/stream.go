package mount

import (
	"context"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// stream is a named stream of an NTFS file.
type stream struct {
	fs.Inode
	of *node // the file; it is in no directory
	f  filesystem.File
}

var _ = (fs.NodeGetattrer)((*stream)(nil))
var _ = (fs.NodeOpener)((*stream)(nil))

// lookupStream finds what NAME:STREAM means.
func (n *node) lookupStream(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	file, streamName, ok := strings.Cut(name, ":")
	if !ok || n.n.Volume.Type != "ntfs" {
		return nil, syscall.ENOENT
	}
	id, err := n.n.FS.Lookup(n.n.ID, file)
	if err != nil {
		return nil, n.errno(err)
	}
	f, err := n.n.FS.OpenStream(id, streamName)
	if err != nil {
		return nil, n.errno(err)
	}
	of := &node{v: n.v, n: n.n}
	of.n.ID = id
	s := &stream{of: of, f: f}
	if errno := s.attr(&out.Attr); errno != 0 {
		return nil, errno
	}
	return n.NewInode(ctx, s, fs.StableAttr{Mode: syscall.S_IFREG}), 0
}

func (s *stream) attr(out *fuse.Attr) syscall.Errno {
	attr, err := s.of.n.Stat()
	if err != nil {
		return s.of.errno(err)
	}
	attr.Size, attr.Mode, attr.Links = s.f.Size(), attr.Mode.Perm(), 1
	fill(out, attr, s.of.n)
	out.Blocks = (out.Size + 511) / 512
	return 0
}

// Getattr returns what is known of the file, with the size of the stream.
func (s *stream) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	return s.attr(&out.Attr)
}

// Open opens the stream.
func (s *stream) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return &handle{n: s.of, f: s.f}, fuse.FOPEN_KEEP_CACHE, writes(flags)
}
