package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/luks"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

const (
	leastFree   = 32 << 20 // bytes that are left free in the scratch's file system
	backupBlock = 64 << 10 // QEMU copies no less at a time
)

// measureScratch returns how many bytes may be used: the limit, but never the last tenth of what is
// free.
func measureScratch(sc capture.Scratch) (int64, error) {
	if err := os.MkdirAll(sc.Dir, 0o700); err != nil {
		return 0, fmt.Errorf("make scratch directory: %w", err)
	}
	free, err := freeBytes(sc.Dir)
	if err != nil {
		return 0, err
	}
	have := free - free/10
	if sc.Limit > 0 {
		have = min(have, sc.Limit)
	}
	return have, nil
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("measure scratch directory %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// need returns how much scratch a push of d takes at most. For a whole disk it is an estimate:
// compressed images hold more than they occupy, and sparse ones are copied in larger blocks; the
// copy is watched.
func (s *capturing) need(d *disk) int64 {
	if d.tracked() {
		return s.needFor(d, d.dirty)
	}
	data := d.Size
	if d.Allocated > 0 {
		data = min(d.Size, d.Allocated+d.Allocated/4)
	}
	mapped := d.Size
	if d.alone {
		mapped = data
	}
	return data + s.overhead(d.Size, mapped) + s.keyBytes(d)
}

// needFor returns the scratch that dirty marked bytes of d take at most.
func (s *capturing) needFor(d *disk, dirty int64) int64 {
	data := min(d.Size, dirty*max(1, backupBlock/s.plan.Granule))
	return data + s.overhead(d.Size, data) + s.keyBytes(d)
}

// overhead returns what a qcow2 image of a disk of size bytes occupies beside data bytes, wherever
// on the disk they are.
func (s *capturing) overhead(size, data int64) int64 {
	g := s.plan.Granule
	perTable := g / 8 * g // bytes of disk that one table maps
	tables := min(size/perTable+1, data/g+1)
	l1 := (size/perTable + 1) * 8
	refcounts := (data/g + tables) * 2
	return tables*g + roundUp(l1, g) + 2*roundUp(refcounts, g) + 8*g
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// image is a file that is, was or will be a node of QEMU.
type image struct {
	file     *os.File
	name     string // path, until it is unlinked
	set      int    // QEMU's descriptor set
	key      *key   // that it is encrypted with; nil if it is plain
	node     string
	reserved int64
}

// empty gives the space back even if QEMU still has the file open, as it has descriptors of sets
// while its machine is stopped. No job may write to it any more: a scratch image that breaks under
// a job costs the guest its write.
func (m *image) empty() error {
	err := m.file.Truncate(0)
	if err == nil || errors.Is(err, syscall.EINVAL) { // a descriptor for reading cannot
		return nil
	}
	return fmt.Errorf("empty scratch image: %w", err)
}

// path leads to the file in spite of its having no name.
func (m *image) path() string { return fmt.Sprintf("/proc/self/fd/%d", m.file.Fd()) }

// size returns how far the file reaches. QEMU writes from the front, so that this is the space it
// took.
func (m *image) size() (int64, error) {
	st, err := m.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("measure scratch image: %w", err)
	}
	return st.Size(), nil
}

// key is what the scratch image of an encrypted disk is encrypted with, for as long as the capture
// lasts. It is in this process and in QEMU, and nowhere else.
type key struct {
	volume *luks.Volume
	secret []byte
}

// newKey returns a key for a copy of d, nil if d is not encrypted where it lies.
func newKey(d *disk) (*key, error) {
	if d.Encrypted == "" {
		return nil, nil
	}
	v, secret, err := luks.NewEphemeral()
	return &key{v, secret}, err
}

// keyBytes is what the header of an encrypted scratch image takes.
func (s *capturing) keyBytes(d *disk) int64 {
	if d.Encrypted == "" {
		return 0
	}
	return luks.HeaderSize + 2*s.plan.Granule
}

// addScratch makes the scratch image of c, reserves its space and gives it to QEMU.
func (s *capturing) addScratch(ctx context.Context, c *diskCopy) (*image, error) {
	k, err := newKey(c.disk)
	if err != nil {
		return nil, err
	}
	o := qcow2.CreateOptions{ClusterSize: int(s.plan.Granule)}
	if k != nil {
		o.Encryption = k.volume
	}
	img, err := s.newImage(c.disk, fmt.Sprint(ours, "s", c.index), os.O_RDWR, o)
	if err != nil {
		return nil, err
	}
	img.key = k
	if err := s.reserve(img, c.need); err != nil {
		return nil, err
	}
	return img, s.addImage(ctx, img, false)
}

// newImage makes an image of the disk's size. It is open until emptyImages or closeImages, and has
// no name but where QEMU is to open it by its name.
func (s *capturing) newImage(d *disk, node string, flag int, o qcow2.CreateOptions) (*image, error) {
	path := filepath.Join(s.plan.Scratch.Dir, scratchPrefix(s.plan)+d.Name+node+".qcow2")
	if err := qcow2.Create(path, d.Size, o); err != nil {
		return nil, fmt.Errorf("make scratch image: %w", err)
	}
	f, err := os.OpenFile(path, flag, 0)
	if err == nil && !s.byName {
		err = os.Remove(path)
	} else if err == nil && os.Geteuid() == 0 {
		err = f.Chown(s.owner, -1)
	}
	if err != nil {
		f.Close()
		return nil, errors.Join(fmt.Errorf("open scratch image: %w", err), os.RemoveAll(path))
	}
	img := &image{file: f, node: node, name: path}
	s.images = append(s.images, img)
	return img, nil
}

// reserve takes n bytes from the file system ahead, where it can.
func (s *capturing) reserve(img *image, n int64) error {
	err := unix.Fallocate(int(img.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n)
	switch {
	case err == nil:
		img.reserved = n
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EFBIG), errors.Is(err, syscall.EDQUOT):
		return s.short(n)
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
		return nil
	}
	return fmt.Errorf("reserve %d bytes of scratch: %w", n, err)
}

// emptyImages empties and closes all images, none of which is a node of QEMU any more.
func (s *capturing) emptyImages() error {
	var errs []error
	for _, img := range s.images {
		errs = append(errs, img.empty())
	}
	return errors.Join(append(errs, s.closeImages())...)
}

// closeImages closes all images.
func (s *capturing) closeImages() error {
	var errs []error
	for _, img := range s.images {
		errs = append(errs, img.file.Close())
	}
	s.images = nil
	return errors.Join(errs...)
}

// addImage makes the image a node of QEMU. From then on it has no name.
func (s *capturing) addImage(ctx context.Context, img *image, readOnly bool) error {
	name := img.name
	if !s.byName {
		cmdCtx, cancel := context.WithTimeout(ctx, commandTime)
		defer cancel()
		var err error
		if img.set, err = s.mon.AddFD(cmdCtx, img.file, ours); err != nil {
			return fmt.Errorf("hand scratch image to QEMU: %w", err)
		}
		name = fmt.Sprintf("/dev/fdset/%d", img.set)
	}
	file := args{"driver": "file", "filename": name, "cache": args{"no-flush": true}}
	a := args{"driver": "qcow2", "node-name": img.node, "file": file, "read-only": readOnly}
	if err := s.addNode(ctx, img, a); err != nil {
		return fmt.Errorf("add scratch image to QEMU: %w", err)
	}
	if s.byName {
		return os.Remove(img.name)
	}
	return nil
}

// addNode makes the node. QEMU needs the secret of an encrypted image only while it opens it.
func (s *capturing) addNode(ctx context.Context, img *image, a args) error {
	if img.key == nil {
		return run(ctx, s.mon, "blockdev-add", a, nil)
	}
	id := keyPrefix + img.node
	secret := args{"qom-type": "secret", "id": id, "data": string(img.key.secret)}
	if err := run(ctx, s.mon, "object-add", secret, nil); err != nil {
		return err
	}
	a["encrypt"] = args{"format": "luks", "key-secret": id}
	err := run(ctx, s.mon, "blockdev-add", a, nil)
	return errors.Join(err, run(ctx, s.mon, "object-del", args{"id": id}, nil))
}

// removeImage takes the image away from QEMU; the file stays open here.
func (s *capturing) removeImage(ctx context.Context, img *image) error {
	if err := run(ctx, s.mon, "blockdev-del", args{"node-name": img.node}, nil); err != nil {
		return fmt.Errorf("take scratch image from QEMU: %w", err)
	}
	if s.byName {
		return nil
	}
	return run(ctx, s.mon, "remove-fd", args{"fdset-id": img.set}, nil)
}
