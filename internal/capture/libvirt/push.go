package libvirt

import (
	"context"
	"errors"
	"fmt"

	"github.com/beevik/etree"
	"golang.org/x/sync/errgroup"

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

// prepare makes the scratch images and reserves their space, so that QEMU cannot run out of it: a
// guest's write would fail.
func (p *push) prepare(ctx context.Context, s *capturing) error {
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

func (p *push) backupXML(s *capturing) string {
	return render(jobXML(s, "push", func(el *etree.Element, d *disk) {
		el.CreateElement("driver").CreateAttr("type", "qcow2")
		target := el.CreateElement("target")
		target.CreateAttr("file", d.scratch)
		d.describeKey(target)
	}))
}

func (p *push) read(ctx context.Context, s *capturing, sink capture.Sink) error {
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
func (p *push) watch(s *capturing) error {
	used, err := s.scratchUsed()
	if err != nil {
		return err
	}
	if used > max(s.need(), p.limit) {
		return &capture.NeedScratch{Dir: s.plan.Scratch.Dir, Need: used, Have: p.limit}
	}
	return nil
}

func (p *push) readDisk(ctx context.Context, s *capturing, d *disk, sink capture.Sink) error {
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

// endJob aborts the capture's job, if it still runs.
func (s *capturing) endJob() error {
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
