package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

const (
	minCluster = 64 << 10 // what QEMU's backup job copies at the least, in bytes
	maxCluster = 2 << 20  // the largest of a qcow2 image
	minBitmap  = 4 << 10  // smallest default granularity of QEMU's bitmaps, in bytes
	maxBitmap  = 64 << 10 // largest default granularity

	// slack is what a guest may write between the look at a disk and the instant, in bytes per
	// disk.
	slack = 32 << 20
)

// cluster returns the cluster size of scratch images.
func (s *capturing) cluster() int64 { return min(max(s.plan.Granule, minCluster), maxCluster) }

// need returns how much scratch the disks can take at the most.
func (s *capturing) need() (n int64) {
	for _, d := range s.disks {
		n += d.bound
	}
	return n
}

// choose picks the rung: push where scratch can hold it, else pull where that is allowed and safe.
func (s *capturing) choose(ctx context.Context, c *Capturer) error {
	if s.plan.Granule > maxCluster || s.plan.Granule <= 0 || s.plan.Granule&(s.plan.Granule-1) != 0 {
		return fmt.Errorf("granule of %d bytes is not a power of two of at most %d", s.plan.Granule, maxCluster)
	}
	for _, d := range s.disks {
		d.bound = s.bound(d)
	}
	have := s.plan.Scratch.Limit
	if space := free(s.plan.Scratch.Dir); have <= 0 || have > space {
		have = space
	}
	if s.need() <= have {
		s.rung = &push{limit: have}
		return nil
	}
	short := &capture.NeedScratch{Dir: s.plan.Scratch.Dir, Need: s.need(), Have: have}
	if !s.plan.AllowPull {
		return short
	}
	p, err := c.pullRung(ctx, s, short)
	if err != nil {
		return errors.Join(short, err)
	}
	s.rung = p
	return nil
}

// bound returns the most that a disk's scratch image can grow to.
func (s *capturing) bound(d *disk) int64 {
	data := d.Size
	if d.since != "" {
		data = min(data, d.dirty*(s.cluster()/min(bitmapGranularity(d), s.cluster()))+slack)
	} else if n, ok := s.occupied(d); ok {
		data = min(data, n+slack)
	}
	clusters := d.Size/s.cluster() + 1
	// tables, reference counts, and their own granularity
	metadata := clusters*10 + clusters/1024*s.cluster()/8 + 8*s.cluster()
	return data + metadata + s.keyBytes(d)
}

// bitmapGranularity returns the smallest granularity that libvirt's bitmaps can have on the disk.
func bitmapGranularity(d *disk) int64 {
	if n := clusterSize(d.File); n > 0 {
		return min(max(n, minBitmap), maxBitmap)
	}
	return minBitmap
}

// occupied returns the bytes of the scratch clusters that a disk's data touches, if that can be
// told from outside.
func (s *capturing) occupied(d *disk) (int64, bool) {
	switch d.Format {
	case "raw":
		data, err := allocatedExtents(d.File)
		return data.Align(s.cluster(), d.Size).Bytes(), err == nil
	case "qcow2":
		if n := clusterSize(d.File); n > 0 {
			return d.Allocated * (s.cluster() / min(n, s.cluster())), true
		}
	}
	return 0, false
}

// clusterSize returns that of a qcow2 image, 0 if it cannot be told. The header is read only, of
// an image that QEMU writes.
func clusterSize(path string) int64 {
	img, err := qcow2.Open(path)
	if err != nil {
		return 0
	}
	defer img.Close()
	return int64(img.Info().ClusterSize)
}

// allocatedExtents returns what of a regular file is not a hole.
func allocatedExtents(path string) (extent.Set, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	var out extent.Set
	for at := int64(0); at < info.Size(); {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		out = out.Append(extent.Extent{Off: from, Len: to - from})
		at = to
	}
	return out, nil
}

// free returns what a file system has left for scratch: all but a tenth.
func free(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0
	}
	n := int64(st.Bavail) * st.Bsize
	return n - n/10
}

// scratchUsed returns the bytes that QEMU has written into the scratch images. A qcow2 image grows
// at its end; what was reserved does not make it longer.
func (s *capturing) scratchUsed() (n int64, err error) {
	for _, d := range s.disks {
		info, err := os.Stat(d.scratch)
		if err != nil {
			return 0, fmt.Errorf("watch the scratch image of disk %s: %w", d.Name, err)
		}
		n += info.Size()
	}
	return n, nil
}

// makeScratch makes an empty image per disk, of the disk's size. The cluster size is what QEMU
// copies at a time, so a scratch image holds whole granules. Other files that are made are noted
// and removed with them.
func (s *capturing) makeScratch(ctx context.Context, besides ...string) error {
	dir := s.plan.Scratch.Dir
	var paths []string
	for _, d := range s.disks {
		d.scratch = filepath.Join(dir, fmt.Sprintf("%s-%x-%s.qcow2", s.checkpoint(), s.dom.UUID[:4], d.Name))
		paths = append(paths, d.scratch)
	}
	if err := s.state.note(func(r *record) { r.Scratch = append(paths, besides...) }); err != nil {
		return err
	}
	for _, d := range s.disks {
		if err := s.encryptScratch(ctx, d); err != nil {
			return err
		}
		if err := d.create(s.cluster()); err != nil {
			return fmt.Errorf("make the scratch image of disk %s: %w", d.Name, err)
		}
		if err := reserve(d.scratch, d.bound); errors.Is(err, unix.ENOSPC) {
			return &capture.NeedScratch{Dir: dir, Need: s.need(), Have: free(dir)}
		} else if err != nil {
			return fmt.Errorf("reserve %d bytes of scratch for disk %s: %w", d.bound, d.Name, err)
		}
	}
	return nil
}

// reserve allocates n bytes to a file without making it longer. Where the file system does not know
// how, nothing is reserved.
func reserve(path string, n int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

func (s *capturing) removeScratch() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	if err := dropKeys(ctx, s.client, s.keyed()); err != nil {
		return err
	}
	for _, path := range s.state.record.Scratch {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove scratch: %w", err)
		}
	}
	return s.state.note(func(r *record) { r.Scratch = nil })
}
