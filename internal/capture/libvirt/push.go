package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/beevik/etree"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// push has QEMU write the disks into scratch images, and reads those.
type push struct {
	limit  int64 // bytes that all scratch images together may take
	events <-chan rpc.Event
	stop   func()
}

// prepare makes the scratch images and reserves their space, so that QEMU can not run out of it: a
// guest's write would fail.
func (p *push) prepare(ctx context.Context, s *session) error {
	if err := s.makeScratch(ctx); err != nil {
		return err
	}
	if p.stop != nil {
		return nil
	}
	events, stop, err := s.client.Subscribe(ctx, s.dom, rpc.JobCompleted)
	if err != nil {
		return err
	}
	p.events, p.stop = events, stop
	return nil
}

func (p *push) backupXML(s *session) string {
	return render(jobXML(s, "push", func(el *etree.Element, d *disk) {
		el.CreateElement("driver").CreateAttr("type", "qcow2")
		target := el.CreateElement("target")
		target.CreateAttr("file", d.scratch)
		d.describeKey(target)
	}))
}

func (p *push) read(ctx context.Context, s *session, sink capture.Sink) error {
	err := s.awaitJob(ctx, p.events, func() error { return p.watch(s) })
	if err != nil {
		return errors.Join(err, s.endJob())
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, d := range s.disks {
		g.Go(func() error { return p.readDisk(gctx, s, d, sink) })
	}
	return g.Wait()
}

func (p *push) close() {
	if p.stop != nil {
		p.stop()
		p.stop = nil
	}
}

// watch ends the job before scratch images take more than was granted. An image can outgrow its
// bound only if the disk was written to in a way that nobody foresaw.
func (p *push) watch(s *session) error {
	used, err := s.scratchUsed()
	if err != nil {
		return err
	}
	if used > max(s.need(), p.limit) {
		return &capture.NeedScratch{Dir: s.plan.Scratch.Dir, Need: used, Have: p.limit}
	}
	return nil
}

// scratchUsed returns the bytes that QEMU has written into the scratch images. A qcow2 image grows
// at its end; what was reserved does not make it longer.
func (s *session) scratchUsed() (n int64, err error) {
	for _, d := range s.disks {
		info, err := os.Stat(d.scratch)
		if err != nil {
			return 0, fmt.Errorf("watch the scratch image of disk %s: %w", d.Name, err)
		}
		n += info.Size()
	}
	return n, nil
}

func (p *push) readDisk(ctx context.Context, s *session, d *disk, sink capture.Sink) error {
	img, err := qcow2.Open(d.scratch)
	if err != nil {
		return fmt.Errorf("read what QEMU wrote of disk %s: %w", d.Name, err)
	}
	defer img.Close()
	if d.key != nil {
		img.Unlock(d.key.volume.Cipher)
	}
	if img.Size() != d.Size {
		return fmt.Errorf("disk %s changed its size from %d bytes while it was captured", d.Name, d.Size)
	}
	data, zero, err := img.Map()
	if err != nil {
		return fmt.Errorf("read what QEMU wrote of disk %s: %w", d.Name, err)
	}
	all := extent.Set{{Len: d.Size}}
	r := capture.Read{Disk: d.Name, Size: d.Size, Data: data, Zero: zero, Whole: d.since == "", Source: img}
	if r.Whole {
		r.Data = data.Align(s.plan.Granule, d.Size)
		r.Zero = all.Subtract(r.Data)
	}
	d.read = r.Data.Bytes()
	return sink(ctx, r)
}

// endJob aborts the session's job, if it still runs.
func (s *session) endJob() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	if err := s.reconnect(ctx); err != nil {
		return err
	}
	if _, err := abortJob(ctx, s.client, s.dom, s.state.record.Scratch); err != nil {
		return err
	}
	_, err := closeScratch(ctx, s.client, s.dom, s.state.record.Scratch)
	return err
}

// makeScratch makes an empty image per disk, of the disk's size. The cluster size is what QEMU
// copies at a time, so a scratch image holds whole granules. What is made besides is noted to be
// removed with them.
func (s *session) makeScratch(ctx context.Context, besides ...string) error {
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

func (s *session) removeScratch() error {
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
