package nfstest

import (
	"context"
	"fmt"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// node is a file or directory in a mount.
type node struct {
	fs.Inode
	c *client
	h *handle
}

var (
	_ fs.NodeLookuper  = (*node)(nil)
	_ fs.NodeGetattrer = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeOpendirer = (*node)(nil)
	_ fs.NodeReaddirer = (*node)(nil)
	_ fs.NodeMkdirer   = (*node)(nil)
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeLinker    = (*node)(nil)
	_ fs.NodeRenamer   = (*node)(nil)
	_ fs.NodeUnlinker  = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
)

// lock takes the server for one call.
func (n *node) lock() (unlock func()) {
	n.c.s.mu.Lock()
	return n.c.s.mu.Unlock
}

// inode returns the node of a handle.
func (n *node) inode(ctx context.Context, h *handle, out *fuse.Attr) (*fs.Inode, syscall.Errno) {
	st, errno := n.c.stat(h)
	if errno != 0 {
		return nil, errno
	}
	fill(out, st)
	return n.NewInode(ctx, &node{c: n.c, h: h}, fs.StableAttr{Mode: h.mode, Ino: h.ino}), 0
}

func fill(out *fuse.Attr, st *unix.Stat_t) {
	out.Ino, out.Size, out.Blocks, out.Mode, out.Nlink = st.Ino, uint64(st.Size), uint64(st.Blocks), st.Mode,
		uint32(st.Nlink)
	out.Uid, out.Gid, out.Blksize = st.Uid, st.Gid, uint32(st.Blksize)
	out.Mtime, out.Mtimensec = uint64(st.Mtim.Sec), uint32(st.Mtim.Nsec)
	out.Ctime, out.Ctimensec = uint64(st.Ctim.Sec), uint32(st.Ctim.Nsec)
}

// Lookup implements [fs.NodeLookuper].
func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	defer n.lock()()
	h, errno := n.c.lookUp(n.h, name)
	if errno != 0 {
		return nil, errno
	}
	return n.inode(ctx, h, &out.Attr)
}

// Getattr implements [fs.NodeGetattrer].
func (n *node) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	defer n.lock()()
	st, errno := n.c.stat(n.h)
	if errno == 0 {
		fill(&out.Attr, st)
	}
	return errno
}

// Setattr implements [fs.NodeSetattrer].
func (n *node) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if mode, ok := in.GetMode(); ok {
		if err := unix.Chmod(n.h.path(), mode&0o7777); err != nil {
			return errnoOf(err)
		}
	}
	if size, ok := in.GetSize(); ok {
		if err := unix.Truncate(n.h.path(), int64(size)); err != nil {
			return errnoOf(err)
		}
	}
	n.forgetAttr()
	return n.Getattr(ctx, f, out)
}

func (n *node) forgetAttr() {
	defer n.lock()()
	n.h.attr = nil
}

// Opendir implements [fs.NodeOpendirer].
func (n *node) Opendir(context.Context) syscall.Errno {
	defer n.lock()()
	return n.c.revalidate(n.h)
}

// Readdir implements [fs.NodeReaddirer].
func (n *node) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	defer n.lock()()
	if n.h.list == nil {
		stream, errno := fs.NewLoopbackDirStream(n.h.path())
		if errno != 0 {
			return nil, errno
		}
		defer stream.Close()
		n.h.list = []fuse.DirEntry{}
		for stream.HasNext() {
			e, errno := stream.Next()
			if errno != 0 {
				return nil, errno
			}
			n.h.list = append(n.h.list, e)
		}
	}
	return fs.NewListDirStream(n.h.list), 0
}

// Mkdir implements [fs.NodeMkdirer].
func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	defer n.lock()()
	delete(n.h.names, name)
	err := n.c.repeated(func() error { return unix.Mkdirat(n.h.fd, name, mode) }, n.h)
	if err != nil {
		return nil, errnoOf(err)
	}
	n.c.changed(n.h)
	h, errno := n.c.lookUp(n.h, name)
	if errno != 0 {
		return nil, errno
	}
	return n.inode(ctx, h, &out.Attr)
}

// Create implements [fs.NodeCreater]. Repeating it is harmless: the server knows the client's mark.
func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode,
	fs.FileHandle, uint32, syscall.Errno) {
	defer n.lock()()
	delete(n.h.names, name)
	fd, err := unix.Openat(n.h.fd, name, int(flags)&^unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, nil, 0, errnoOf(err)
	}
	n.c.changed(n.h)
	h, errno := n.c.lookUp(n.h, name)
	if errno != 0 {
		unix.Close(fd)
		return nil, nil, 0, errno
	}
	inode, errno := n.inode(ctx, h, &out.Attr)
	if errno != 0 {
		unix.Close(fd)
		return nil, nil, 0, errno
	}
	h.opens++
	return inode, &file{c: n.c, h: h, fd: fd, writes: true}, fuse.FOPEN_DIRECT_IO, 0
}

// Open implements [fs.NodeOpener].
func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	defer n.lock()()
	if errno := n.c.revalidate(n.h); errno != 0 {
		return nil, 0, errno
	}
	writes := flags&unix.O_ACCMODE != unix.O_RDONLY
	if writes && n.h.attr.Mode&0o200 == 0 {
		return nil, 0, unix.EACCES // for root too: to the server root is nobody
	}
	fd, err := unix.Open(n.h.path(), int(flags)&^unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, errnoOf(err)
	}
	n.h.opens++
	return &file{c: n.c, h: n.h, fd: fd, writes: writes}, fuse.FOPEN_DIRECT_IO, 0
}

// Link implements [fs.NodeLinker]. Where it fails the client is told no attributes.
func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode,
	syscall.Errno) {
	defer n.lock()()
	if n.c.s.opts.NoLinks {
		return nil, unix.EPERM
	}
	from := target.(*node).h
	delete(n.h.names, name)
	err := n.c.repeated(func() error {
		return unix.Linkat(unix.AT_FDCWD, from.path(), n.h.fd, name, unix.AT_SYMLINK_FOLLOW)
	}, n.h)
	if err != nil {
		return nil, errnoOf(err)
	}
	from.attr = nil
	n.h.names[name] = from
	n.c.changed(n.h)
	return n.inode(ctx, from, &out.Attr)
}

// Rename implements [fs.NodeRenamer].
func (n *node) Rename(_ context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	defer n.lock()()
	if flags != 0 && !n.c.s.opts.NoLinks {
		return unix.EINVAL // NFS has no such call
	}
	d := to.EmbeddedInode().Operations().(*node).h
	delete(n.h.names, name)
	delete(d.names, newName)
	err := n.c.repeated(func() error { return unix.Renameat2(n.h.fd, name, d.fd, newName, uint(flags)) }, n.h, d)
	if err == unix.ENOENT && n.c.s.rng.IntN(2) == 0 && unix.Faccessat(d.fd, newName, unix.F_OK, 0) == nil {
		err = unix.EEXIST // a server may look at the new name first
	}
	if err == nil {
		n.c.changed(n.h)
		n.c.changed(d)
	}
	return errnoOf(err)
}

// Unlink implements [fs.NodeUnlinker].
func (n *node) Unlink(_ context.Context, name string) syscall.Errno {
	defer n.lock()()
	h := n.h.names[name]
	delete(n.h.names, name)
	if h != nil && h.opens > 0 && h.sillyDir == nil {
		return n.rename(h, name)
	}
	if err := n.c.repeated(func() error { return unix.Unlinkat(n.h.fd, name, 0) }, n.h); err != nil {
		return errnoOf(err)
	}
	if h != nil {
		h.attr = nil
	}
	n.c.changed(n.h)
	return 0
}

// rename renames a file that is open instead of removing it.
func (n *node) rename(h *handle, name string) syscall.Errno {
	n.c.s.silly++
	silly := fmt.Sprintf(".nfs%016x%08x", h.ino, n.c.s.silly)
	if err := unix.Renameat(n.h.fd, name, n.h.fd, silly); err != nil {
		return errnoOf(err)
	}
	h.sillyDir, h.sillyName = n.h, silly
	n.c.changed(n.h)
	return 0
}

// Fsync implements [fs.NodeFsyncer]. No test here takes power away, and what is in a directory a
// server keeps before it answers.
func (n *node) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }
