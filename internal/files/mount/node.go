package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// idBits of an inode number are the file system's own; those above say which volume in which view
// it is. Two views of a volume have nodes of their own: in the machine's tree other things are
// mounted below.
const idBits = 48

// view is a tree in the mount.
type view struct {
	s    *shared
	tree *volume.Tree
	base map[*volume.Volume]uint64
}

type inoKey struct {
	base uint64
	id   filesystem.ID
}

// ino returns the inode number of a file. IDs that do not fit get numbers of the upper half, in the
// order they are asked for.
func (v *view) ino(n volume.Node) uint64 {
	base := v.base[n.Volume]
	const half = 1 << (idBits - 1)
	if uint64(n.ID) < half {
		return base | uint64(n.ID)
	}
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	key := inoKey{base, n.ID}
	no, ok := v.s.inos[key]
	if !ok {
		no = base | half | uint64(len(v.s.inos))
		v.s.inos[key] = no
	}
	return no
}

// add makes the root of the view a child of at.
func (v *view) add(ctx context.Context, at *dir, name string) {
	root := v.tree.Root()
	n := &node{v: v, n: root}
	v.s.places.root(n)
	at.AddChild(name, at.NewPersistentInode(ctx, n, fs.StableAttr{Mode: syscall.S_IFDIR, Ino: v.ino(root)}), true)
}

// node is a file of a volume.
type node struct {
	fs.Inode
	v     *view
	n     volume.Node
	depth int // directories above
}

var (
	_ = (fs.NodeLookuper)((*node)(nil))
	_ = (fs.NodeGetattrer)((*node)(nil))
	_ = (fs.NodeOpendirHandler)((*node)(nil))
	_ = (fs.NodeReadlinker)((*node)(nil))
	_ = (fs.NodeOpener)((*node)(nil))
	_ = (fs.NodeGetxattrer)((*node)(nil))
	_ = (fs.NodeListxattrer)((*node)(nil))
	_ = (fs.NodeStatfser)((*node)(nil))
)

// errno tells of an error as far as the kernel understands, and of the rest to who mounted.
func (n *node) errno(err error) syscall.Errno {
	if errors.Is(err, filesystem.ErrNotExist) {
		return syscall.ENOENT
	}
	n.v.s.trouble(fmt.Sprintf("%s, inode %d", n.n.Volume.Name, n.n.ID), err)
	if errors.Is(err, filesystem.ErrUnsupported) {
		return syscall.EOPNOTSUPP
	}
	return syscall.EIO
}

// refuse tells of what is not shown.
func (n *node) refuse(err error) syscall.Errno {
	n.v.s.trouble(fmt.Sprintf("%s, inode %d", n.n.Volume.Name, n.n.ID), err)
	return syscall.ELOOP
}

// Lookup finds a name in a directory, or a stream of a file by NAME:STREAM.
func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	id, known := n.v.s.names.find(n, name)
	if !known {
		var err error
		if id, err = n.n.FS.Lookup(n.n.ID, name); errors.Is(err, filesystem.ErrNotExist) {
			return n.lookupStream(ctx, name, out)
		} else if err != nil {
			return nil, n.errno(err)
		}
	}
	child, err := n.v.tree.Enter(volume.Node{Volume: n.n.Volume, FS: n.n.FS, ID: id})
	if err != nil {
		return nil, n.errno(fmt.Errorf("%q: %w", name, err))
	}
	attr, err := child.Stat()
	if err != nil {
		return nil, n.errno(err)
	}
	next := &node{v: n.v, n: child}
	if attr.Mode.IsDir() {
		if next, err = n.below(name, child, id); err != nil {
			return nil, n.refuse(err)
		}
	}
	fill(&out.Attr, attr, child)
	return n.NewInode(ctx, next, fs.StableAttr{Mode: out.Mode & syscall.S_IFMT, Ino: n.v.ino(child)}), 0
}

// Getattr returns what is known of the file.
func (n *node) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	attr, err := n.n.Stat()
	if err != nil {
		return n.errno(err)
	}
	fill(&out.Attr, attr, n.n)
	return 0
}

// measured is the size from which on it is worth opening a file to know how much of it is stored.
const measured = 256 << 10

func fill(out *fuse.Attr, a filesystem.Attr, n volume.Node) {
	out.Mode = unixType(a.Mode) | uint32(a.Mode.Perm())
	for _, b := range []struct {
		is  iofs.FileMode
		bit uint32
	}{{iofs.ModeSetuid, syscall.S_ISUID}, {iofs.ModeSetgid, syscall.S_ISGID}, {iofs.ModeSticky, syscall.S_ISVTX}} {
		if a.Mode&b.is != 0 {
			out.Mode |= b.bit
		}
	}
	out.Size, out.Nlink, out.Uid, out.Gid = uint64(max(a.Size, 0)), a.Links, a.UID, a.GID
	major, minor := uint32(a.Rdev>>8&0xfff|a.Rdev>>32&^0xfff), uint32(a.Rdev&0xff|a.Rdev>>12&^0xff)
	out.Rdev = minor&0xff | major<<8 | minor&^0xff<<12
	out.Blksize = 4096
	out.Blocks = (out.Size + 511) / 512
	if a.Mode.IsRegular() && a.Size >= measured {
		if f, err := n.FS.Open(n.ID); err == nil { // else whoever reads it is told
			if set, err := f.Extents(); err == nil {
				out.Blocks = uint64(set.Bytes()+511) / 512
			}
		}
	}
	modified, accessed, changed := known(a.Modified), known(a.Accessed), known(a.Changed)
	if a.Changed.IsZero() {
		changed = modified
	}
	out.SetTimes(&accessed, &modified, &changed)
}

// known is 1970 for a time that is not stored.
func known(t time.Time) time.Time {
	if t.IsZero() {
		return time.Unix(0, 0)
	}
	return t
}

func unixType(m iofs.FileMode) uint32 {
	switch {
	case m.IsDir():
		return syscall.S_IFDIR
	case m&iofs.ModeSymlink != 0:
		return syscall.S_IFLNK
	case m&iofs.ModeNamedPipe != 0:
		return syscall.S_IFIFO
	case m&iofs.ModeSocket != 0:
		return syscall.S_IFSOCK
	case m&iofs.ModeCharDevice != 0:
		return syscall.S_IFCHR
	case m&iofs.ModeDevice != 0:
		return syscall.S_IFBLK
	}
	return syscall.S_IFREG
}

// Readlink returns where a symbolic link points, as stored.
func (n *node) Readlink(context.Context) ([]byte, syscall.Errno) {
	target, err := n.n.FS.ReadLink(n.n.ID)
	if err != nil {
		return nil, n.errno(err)
	}
	return []byte(target), 0
}

// Open opens a regular file.
func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if errno := writes(flags); errno != 0 {
		return nil, 0, errno
	}
	f, err := n.n.FS.Open(n.n.ID)
	if err != nil {
		return nil, 0, n.errno(err)
	}
	attr, err := n.n.Stat()
	if err == nil && attr.Size != f.Size() {
		err = fmt.Errorf("%w: the inode says %d bytes, the data is %d", filesystem.ErrCorrupt, attr.Size, f.Size())
	}
	if err != nil {
		return nil, 0, n.errno(err)
	}
	return &handle{n: n, f: f}, fuse.FOPEN_KEEP_CACHE, 0
}

// Statfs returns how large the file system is.
func (n *node) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	info := n.n.FS.Info()
	const block = 4096
	out.Bsize, out.Frsize, out.NameLen = block, block, 255
	out.Blocks = uint64(info.Size) / block
	if info.Used > 0 {
		out.Bfree = uint64(max(info.Size-info.Used, 0)) / block
	}
	return 0
}

// attributes returns the extended attributes, and short NTFS streams among them.
func (n *node) attributes() (map[string][]byte, error) {
	all, err := n.n.FS.Xattrs(n.n.ID)
	if err != nil {
		return nil, err
	}
	streams, err := n.n.FS.Streams(n.n.ID)
	if err != nil || len(streams) == 0 {
		return all, err
	}
	out := map[string][]byte{}
	for k, v := range all {
		out[k] = v
	}
	for _, s := range streams {
		const most = 64 << 10 // of an attribute in Linux
		if s.Size > most {
			continue
		}
		f, err := n.n.FS.OpenStream(n.n.ID, s.Name)
		if err != nil {
			return nil, err
		}
		data := make([]byte, s.Size)
		if got, err := f.ReadAt(data, 0); int64(got) < s.Size {
			return nil, fmt.Errorf("read stream %q: %w", s.Name, errors.Join(filesystem.ErrCorrupt, err))
		}
		out["user."+s.Name] = data
	}
	return out, nil
}

// Getxattr returns one extended attribute.
func (n *node) Getxattr(_ context.Context, name string, dest []byte) (uint32, syscall.Errno) {
	all, err := n.attributes()
	if err != nil {
		return 0, n.errno(err)
	}
	value, ok := all[name]
	if !ok {
		return 0, syscall.ENODATA
	}
	if len(dest) == 0 {
		return uint32(len(value)), 0
	}
	if len(dest) < len(value) {
		return uint32(len(value)), syscall.ERANGE
	}
	return uint32(copy(dest, value)), 0
}

// Listxattr returns the names of the extended attributes.
func (n *node) Listxattr(_ context.Context, dest []byte) (uint32, syscall.Errno) {
	all, err := n.attributes()
	if err != nil {
		return 0, n.errno(err)
	}
	var names []string
	for name := range all {
		names = append(names, name+"\x00")
	}
	slices.Sort(names)
	list := strings.Join(names, "")
	if len(dest) == 0 {
		return uint32(len(list)), 0
	}
	if len(dest) < len(list) {
		return uint32(len(list)), syscall.ERANGE
	}
	return uint32(copy(dest, list)), 0
}

// handle is an open file.
type handle struct {
	n *node
	f filesystem.File

	once   sync.Once
	stored extent.Set
	err    error
}

var _ = (fs.FileReader)((*handle)(nil))
var _ = (fs.FileLseeker)((*handle)(nil))

// Read reads from the file.
func (h *handle) Read(_ context.Context, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return read(h.n.v.s, fmt.Sprintf("%s, inode %d", h.n.n.Volume.Name, h.n.n.ID), h.f, h.f.Size(), p, off)
}

func read(s *shared, where string, r io.ReaderAt, size int64, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= size {
		return fuse.ReadResultData(nil), 0
	}
	p = p[:min(int64(len(p)), size-off)]
	if n, err := r.ReadAt(p, off); n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		s.trouble(where, err)
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(p), 0
}

// Lseek finds the next data or the next hole.
func (h *handle) Lseek(_ context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	size := uint64(h.f.Size())
	if off >= size {
		return 0, syscall.ENXIO
	}
	h.once.Do(func() { h.stored, h.err = h.f.Extents() })
	if h.err != nil {
		return 0, h.n.errno(h.err)
	}
	next := sort.Search(len(h.stored), func(i int) bool { return uint64(h.stored[i].End()) > off })
	inside := next < len(h.stored) && uint64(h.stored[next].Off) <= off
	switch {
	case whence != unix.SEEK_DATA && inside: // what is stored does not touch
		return min(uint64(h.stored[next].End()), size), 0
	case whence != unix.SEEK_DATA || inside:
		return off, 0
	case next < len(h.stored):
		return uint64(h.stored[next].Off), 0
	}
	return 0, syscall.ENXIO
}
