package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/beevik/etree"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/nbd"
)

const (
	allocation   = "base:allocation"
	flagZero     = 2 // of base:allocation: reads as zeros
	exportBitmap = "hf-changes"
	dirty        = "qemu:dirty-bitmap:" + exportBitmap
)

// pull reads the disks over a unix socket from an NBD server in QEMU, which keeps them as they were
// by moving what the guest overwrites into scratch images. Each reader stays connected until the
// job has ended: on some QEMUs one that leaves takes the machine with it.
type pull struct {
	why     string
	limit   int64  // bytes that all scratch images together may take
	need    int64  // bytes that push would have needed
	dir     string // of the socket
	clients []*nbd.Client
}

// pullRung returns the pull rung if it is safe with this machine's QEMU. An error says why not.
func (c *Capturer) pullRung(ctx context.Context, s *capturing, short *capture.NeedScratch) (*pull, error) {
	for _, d := range s.disks {
		if !d.IOThread {
			continue
		}
		if err := c.disconnectsSafely(ctx, s.emulator); err != nil {
			return nil, fmt.Errorf("pull is no way out, as disk %s is on an iothread: %w", d.Name, err)
		}
		break
	}
	for _, d := range s.disks {
		d.bound = min(d.bound, short.Have/int64(len(s.disks)))
	}
	return &pull{why: short.Error(), limit: short.Have, need: short.Need}, nil
}

func (p *pull) socket() string { return filepath.Join(p.dir, "nbd") }

func (p *pull) prepare(ctx context.Context, s *capturing) error {
	p.dir = filepath.Join(os.TempDir(), fmt.Sprintf("hf%x%s", s.dom.UUID[:4], s.plan.Epoch)) // socket paths are short
	if err := s.makeScratch(ctx, p.socket(), p.dir); err != nil {
		return err
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return fmt.Errorf("make a directory for the socket: %w", err)
	}
	if err := giveTo(p.dir, s.disks[0].File); err != nil {
		return fmt.Errorf("make a directory for the socket: %w", err)
	}
	return nil
}

// giveTo makes QEMU the owner of dir: libvirt has made it the owner of its images.
func giveTo(dir, image string) error {
	info, err := os.Stat(image)
	if err != nil || os.Geteuid() != 0 {
		return nil // QEMU runs as this user, or its own error will say that it cannot make the socket
	}
	st := info.Sys().(*syscall.Stat_t)
	return os.Chown(dir, int(st.Uid), int(st.Gid))
}

func (p *pull) backupXML(s *capturing) string {
	doc := jobXML(s, "pull", func(el *etree.Element, d *disk) {
		el.CreateAttr("exportname", d.Name)
		if d.since != "" {
			el.CreateAttr("exportbitmap", exportBitmap)
		}
		el.CreateElement("driver").CreateAttr("type", "qcow2")
		scratch := el.CreateElement("scratch")
		scratch.CreateAttr("file", d.scratch)
		d.describeKey(scratch)
	})
	server := etree.NewElement("server")
	server.CreateAttr("transport", "unix")
	server.CreateAttr("socket", p.socket())
	doc.Root().InsertChildAt(0, server)
	if inc := doc.Root().SelectElement("incremental"); inc != nil { // comes first
		doc.Root().InsertChildAt(0, inc)
	}
	return render(doc)
}

func (p *pull) read(ctx context.Context, s *capturing, sink capture.Sink) error {
	g, gctx := errgroup.WithContext(ctx)
	finished := make(chan struct{})
	g.Go(func() error { return p.guard(gctx, s, finished) })
	g.Go(func() error {
		defer close(finished)
		readers, rctx := errgroup.WithContext(gctx)
		for _, d := range s.disks {
			c, err := nbd.Dial(gctx, nbd.Options{Network: "unix", Address: p.socket(), Export: d.Name,
				MetaContexts: []string{allocation, dirty}})
			if err != nil {
				return errors.Join(fmt.Errorf("connect to the export of disk %s: %w", d.Name, err), readers.Wait())
			}
			p.clients = append(p.clients, c)
			readers.Go(func() error { return p.readDisk(rctx, s, d, c, sink) })
		}
		return readers.Wait()
	})
	err := g.Wait()
	if errEnd := s.endJob(); errEnd != nil {
		return errors.Join(err, errEnd) // the readers stay connected as long as this process lives
	}
	p.disconnect()
	return err
}

// guard ends the capture early when scratch fills up: once it is full, writes of the guest fail.
func (p *pull) guard(ctx context.Context, s *capturing, finished <-chan struct{}) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-finished:
			return nil
		case <-ctx.Done():
			return nil
		case <-tick.C:
			used, err := s.scratchUsed()
			if err != nil {
				return err
			}
			if used > p.limit/10*8 {
				return &capture.NeedScratch{Dir: s.plan.Scratch.Dir, Need: p.need, Have: p.limit}
			}
		}
	}
}

func (p *pull) readDisk(ctx context.Context, s *capturing, d *disk, c *nbd.Client, sink capture.Sink) error {
	if c.Size() != d.Size {
		return fmt.Errorf("disk %s changed its size from %d bytes to %d while it was captured", d.Name, d.Size,
			c.Size())
	}
	all := extent.Set{{Len: d.Size}}
	changed, err := all, error(nil)
	if d.since != "" {
		if changed, err = ranges(ctx, c, dirty, func(flags uint64) bool { return flags&1 != 0 }); err != nil {
			return fmt.Errorf("read what changed of disk %s: %w", d.Name, err)
		}
	}
	filled, err := ranges(ctx, c, allocation, func(flags uint64) bool { return flags&flagZero == 0 })
	if err != nil {
		return fmt.Errorf("read the map of disk %s: %w", d.Name, err)
	}
	changed = changed.Align(s.plan.Granule, d.Size)
	data := filled.Align(s.plan.Granule, d.Size).Intersect(changed)
	d.read = data.Bytes()
	return sink(ctx, capture.Read{Disk: d.Name, Size: d.Size, Data: data, Zero: changed.Subtract(data),
		Whole: d.since == "", Source: c})
}

// ranges returns where a meta context has flags that are wanted.
func ranges(ctx context.Context, c *nbd.Client, metaContext string, want func(uint64) bool) (extent.Set, error) {
	var out extent.Set
	for r, err := range c.Extents(ctx, metaContext) {
		if err != nil {
			return nil, err
		}
		if want(r.Flags) {
			out = out.Append(extent.Extent{Off: r.Off, Len: r.Len})
		}
	}
	return out, nil
}

func (p *pull) disconnect() {
	for _, c := range p.clients {
		c.Close()
	}
	p.clients = nil
}

func (p *pull) close() {}
