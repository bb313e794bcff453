package mount

import (
	"context"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// dir is a directory that is not of the machine: its children are known.
type dir struct {
	fs.Inode
	s    *shared
	fill func(ctx context.Context, d *dir) // adds the children, nil where others do
}

var _ = (fs.NodeOnAdder)((*dir)(nil))
var _ = (fs.NodeGetattrer)((*dir)(nil))

// OnAdd adds the children.
func (d *dir) OnAdd(ctx context.Context) {
	if d.fill != nil {
		d.fill(ctx, d)
	}
}

// Getattr returns a directory that everybody may read.
func (d *dir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Nlink = 0o555, 2
	setTimes(&out.Attr, d.s.opts.Time)
	return 0
}

func setTimes(a *fuse.Attr, t time.Time) { a.SetTimes(&t, &t, &t) }

// sub adds a directory.
func (d *dir) sub(ctx context.Context, name string) *dir {
	if have := d.GetChild(name); have != nil {
		if sub, ok := have.Operations().(*dir); ok {
			return sub
		}
	}
	sub := &dir{s: d.s}
	d.AddChild(name, d.NewPersistentInode(ctx, sub, fs.StableAttr{Mode: syscall.S_IFDIR}), true)
	return sub
}

// tree returns the root of the mount, and notes what will be in it.
func (m *Mount) tree(disks []volume.Disk, p *files.Point, s *shared) *dir {
	for _, d := range disks {
		m.Disks = append(m.Disks, d.Name)
	}
	var trees []mounted
	for i, v := range p.Volumes().List {
		if t, err := v.Tree(); err == nil {
			m.Volumes = append(m.Volumes, v.Name)
			trees = append(trees, mounted{name: v.Name, tree: t,
				view: &view{s: s, tree: t, base: map[*volume.Volume]uint64{v: uint64(i+1) << idBits}}})
		}
	}
	guest, err := p.Tree("")
	m.Root = err == nil
	return &dir{s: s, fill: func(ctx context.Context, root *dir) {
		at := root.sub(ctx, "disks")
		for _, d := range disks {
			f := &disk{s: s, disk: d}
			at.AddChild(d.Name, at.NewPersistentInode(ctx, f, fs.StableAttr{Mode: syscall.S_IFREG}), true)
		}
		volumes := root.sub(ctx, "volumes")
		for _, t := range trees {
			parts := strings.Split(t.name, "/")
			at := volumes
			for _, part := range parts[:len(parts)-1] {
				at = at.sub(ctx, part)
			}
			t.view.add(ctx, at, parts[len(parts)-1])
		}
		if m.Root {
			v := &view{s: s, tree: guest, base: map[*volume.Volume]uint64{}}
			for i, vol := range p.Volumes().List {
				v.base[vol] = uint64(len(p.Volumes().List)+i+1) << idBits
			}
			v.add(ctx, root, "root")
		}
	}}
}

type mounted struct {
	name string
	tree *volume.Tree
	view *view
}

// disk is a disk as a file.
type disk struct {
	fs.Inode
	s    *shared
	disk volume.Disk
}

var _ = (fs.NodeGetattrer)((*disk)(nil))
var _ = (fs.NodeOpener)((*disk)(nil))
var _ = (fs.NodeReader)((*disk)(nil))

// Getattr returns a file of the disk's size that only its owner may read.
func (d *disk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Nlink, out.Size, out.Blocks = 0o400, 1, uint64(d.disk.Size), uint64(d.disk.Size+511)/512
	setTimes(&out.Attr, d.s.opts.Time)
	return 0
}

// Open lets the kernel keep what it reads.
func (d *disk) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, writes(flags)
}

// writes returns EROFS for flags that would write.
func writes(flags uint32) syscall.Errno {
	if flags&(syscall.O_WRONLY|syscall.O_RDWR|syscall.O_TRUNC|syscall.O_APPEND) != 0 {
		return syscall.EROFS
	}
	return 0
}

// Read reads from the disk.
func (d *disk) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return read(d.s, "disk "+d.disk.Name, d.disk.Reader, d.disk.Size, p, off)
}
