package libvirt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	hostlibvirt "github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt"
)

// disk is one disk of a capture.
type disk struct {
	hypervisor.Disk
	plan    capture.DiskPlan
	since   string // checkpoint that changes are counted from; "" if the disk is read whole
	why     string // why it is read whole
	orphan  string // bitmap that may be left without a checkpoint
	dirty   int64  // bytes changed since, as far as is known
	scratch string // path of the scratch image
	key     *key   // that it is encrypted with; nil if it is plain
	bound   int64  // bytes that the scratch image can grow to
	read    int64  // bytes read
	bitmap  string
}

func (d *disk) qcow2() bool { return d.Format == "qcow2" }

func (d *disk) whole(why string) { d.since, d.why = "", why }

func (d *disk) result() capture.DiskResult {
	return capture.DiskResult{Name: d.Name, Size: d.Size, Read: d.read, Tracked: d.since != "", Reason: d.why,
		Bitmap: d.bitmap}
}

// examine finds the disks of the plan, and decides of each whether its record of changes can be
// trusted.
func (s *capturing) examine(ctx context.Context, h *hostlibvirt.Host) error {
	m, err := h.Machine(ctx, s.dom.Name)
	if err != nil {
		return err
	}
	have := map[string]hypervisor.Disk{}
	for _, d := range m.Disks {
		have[d.Name] = d
	}
	checkpoints, err := s.checkpoints(ctx)
	if err != nil {
		return err
	}
	for _, p := range s.plan.Disks {
		known, ok := have[p.Name]
		switch {
		case !ok:
			return fmt.Errorf("it has no disk %s", p.Name)
		case known.Size <= 0:
			return fmt.Errorf("disk %s (%s): libvirt cannot tell its size", p.Name, known.File)
		}
		if _, busy, err := s.client.BlockJobInfo(ctx, s.dom, p.Name); err != nil {
			return fmt.Errorf("disk %s: look for other jobs on it: %w", p.Name, err)
		} else if busy {
			return fmt.Errorf("disk %s: %w", p.Name, capture.ErrCopied)
		}
		d := &disk{Disk: known, plan: p}
		if s.begins(d) {
			d.bitmap = s.checkpoint()
		}
		s.judge(ctx, d, checkpoints)
		s.disks = append(s.disks, d)
	}
	if err := s.findOthers(ctx); err != nil {
		return err
	}
	if len(s.disks) == 0 {
		return errors.New("no disk was chosen")
	}
	return nil
}

// findOthers notes the names of all drives that are not captured, and which QEMU runs the machine.
func (s *capturing) findOthers(ctx context.Context) error {
	text, err := s.client.DomainXML(ctx, s.dom, 0)
	if err != nil {
		return fmt.Errorf("read its definition: %w", err)
	}
	doc := etree.NewDocument()
	if err := doc.ReadFromString(text); err != nil {
		return fmt.Errorf("read its definition: %w", err)
	}
	if el := doc.FindElement("domain/devices/emulator"); el != nil {
		s.emulator = strings.TrimSpace(el.Text())
	}
	for _, el := range doc.FindElements("domain/devices/disk/target") {
		name := el.SelectAttrValue("dev", "")
		if !slices.ContainsFunc(s.disks, func(d *disk) bool { return d.Name == name }) {
			s.others = append(s.others, name)
		}
	}
	return nil
}

// checkpoints returns what libvirt knows of the machine's checkpoints of this vault.
func (s *capturing) checkpoints(ctx context.Context) (map[string]bool, error) {
	names, err := s.client.Checkpoints(ctx, s.dom)
	if err != nil {
		return nil, fmt.Errorf("list checkpoints: %w", err)
	}
	out := map[string]bool{}
	for _, name := range names {
		out[name] = true
	}
	return out, nil
}

// judge decides whether a disk's last bitmap can be trusted, and says why not. A wrong yes loses
// data, a wrong no costs a read.
func (s *capturing) judge(ctx context.Context, d *disk, checkpoints map[string]bool) {
	last := d.plan.LastBitmap
	switch {
	case !d.qcow2():
		d.whole(fmt.Sprintf(capture.WholeFormat, d.Format))
	case last == "":
		d.whole(capture.WholeFirst)
	case !ofVault(last, s.plan.Vault):
		d.whole(fmt.Sprintf(capture.WholeOtherVault, last))
	case !checkpoints[last]:
		d.whole(capture.WholeLost)
		d.orphan = last
	case d.Size != d.plan.LastSize:
		d.whole(fmt.Sprintf(capture.WholeResized, d.plan.LastSize, d.Size))
	default:
		dirty, err := s.dirtyBytes(ctx, last, d.Name)
		if err != nil {
			d.whole(fmt.Sprintf(capture.WholeUnusable, err))
			return
		}
		d.since, d.dirty = last, dirty
	}
}

// dirtyBytes asks libvirt what changed on a disk since a checkpoint. libvirt looks at the bitmap in
// QEMU for that, and refuses if it is missing or inconsistent.
func (s *capturing) dirtyBytes(ctx context.Context, checkpoint, name string) (int64, error) {
	text, err := s.client.CheckpointXML(ctx, s.dom, checkpoint, checkpointSizeFlags)
	if err != nil {
		return 0, fmt.Errorf("checkpoint %s is of no use: %w", checkpoint, err)
	}
	doc := etree.NewDocument()
	if err := doc.ReadFromString(text); err != nil {
		return 0, fmt.Errorf("checkpoint %s: %w", checkpoint, err)
	}
	for _, el := range doc.FindElements("domaincheckpoint/disks/disk") {
		if el.SelectAttrValue("name", "") != name || el.SelectAttrValue("checkpoint", "") != "bitmap" {
			continue
		}
		if got := el.SelectAttrValue("bitmap", checkpoint); got != checkpoint {
			return 0, fmt.Errorf("checkpoint %s has bitmap %s on disk %s", checkpoint, got, name)
		}
		var n int64
		if _, err := fmt.Sscan(el.SelectAttrValue("size", ""), &n); err != nil || n < 0 {
			return 0, fmt.Errorf("the bitmap of checkpoint %s on disk %s cannot be read", checkpoint, name)
		}
		return n, nil
	}
	return 0, fmt.Errorf("checkpoint %s does not cover disk %s", checkpoint, name)
}

// ofVault reports whether a checkpoint is ours and of this vault.
func ofVault(name, vault string) bool {
	return vault != "" && strings.HasPrefix(name, capture.BitmapPrefix(vault))
}
