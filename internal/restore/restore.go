// Package restore turns recovery points back into disks and machines.
//
// [Disk] writes one disk to a file or block device. [Machine] writes all disks and files of a
// machine and has the hypervisor define it, as the lost one come back or as a new one beside it.
// Every byte is verified while it is written; what was written is durable before either returns
// nil; and when either fails, what it created is removed, and what was there before it looked is as
// it was, except for a target that was to be overwritten by force.
package restore

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// ErrSocketTaken reports that a machine listens at the socket where the new one would. It is
// [hypervisor.ErrExists], too.
var ErrSocketTaken = fmt.Errorf("another machine listens there: the socket %w", hypervisor.ErrExists)

// DiskRequest says what to write where.
type DiskRequest struct {
	Point    *point.RecoveryPoint
	Disk     string // name; "" if the point has only one
	To       string // file or block device
	Format   string // "raw" or "qcow2"; "" means by the name of a file, raw for a block device
	Force    bool   // overwrite a file or a block device that holds something
	Keys     Keys
	Progress func(stage string, done, total int64)
}

// RestoredDisk says what was written.
type RestoredDisk struct {
	Disk   string `json:"disk"`
	File   string `json:"file"`
	Format string `json:"format"`
	Size   int64  `json:"size"` // bytes the guest sees
	Used   int64  `json:"used"` // bytes written

	Encrypted bool `json:"encrypted,omitempty"` // the image is encrypted
}

// Disk writes one disk of a point to a file or block device.
//
// Errors that callers decide by: point.ErrNoDisk, diskimage.ErrExists, diskimage.ErrTooSmall,
// diskimage.ErrInUse, vault.ErrCorrupt, [ErrWasEncrypted].
func Disk(ctx context.Context, v *vault.Vault, req DiskRequest) (RestoredDisk, error) {
	d, err := req.Point.Disk(req.Disk)
	if err != nil {
		return RestoredDisk{}, err
	}
	to, err := req.target(*d)
	if err != nil {
		return RestoredDisk{}, err
	}
	out := RestoredDisk{Disk: d.Name, File: req.To, Format: to.format, Size: d.Size, Used: d.Used,
		Encrypted: to.encrypts()}
	if c := container(*d); c != "" {
		out.Format, out.Encrypted = c, true
	}
	return out, writeDisk(ctx, v, *d, to, req.Progress)
}

// target says where and how a disk is written. An image that is in the point as it lay is copied.
func (r DiskRequest) target(d point.Disk) (target, error) {
	to := target{path: r.To, force: r.Force}
	if err := r.Keys.check(d); err != nil {
		return to, err
	}
	if c := container(d); c != "" {
		if r.Format != "" && r.Format != c {
			return to, fmt.Errorf("%w: it is %s and cannot become %s", ErrAsIs, c, r.Format)
		}
		to.format = "raw"
		return to, nil
	}
	to.secret = r.Keys.of(d).Bytes
	asked := r.Format
	if to.encrypts() && asked == "" {
		asked = "qcow2"
	}
	var err error
	if to.format, err = chooseFormat(r.To, asked); err == nil {
		err = to.check()
	}
	return to, err
}

// writeDisk fills a new target with a disk and makes it durable, or removes it.
func writeDisk(ctx context.Context, v *vault.Vault, d point.Disk, to target,
	progress func(string, int64, int64)) error {
	disk, err := v.OpenDisk(d.Root, d.Size)
	if err != nil {
		return err
	}
	data, err := disk.Extents(ctx)
	if err != nil {
		return err
	}
	if err := to.guard(); err != nil {
		return err
	}
	w, err := to.create(d.Size, data)
	if err != nil {
		return err
	}
	if err := disk.Restore(ctx, w, counter("restore "+d.Name, d.Used, progress)); err != nil {
		return errors.Join(err, w.Abort())
	}
	return w.Commit()
}

// counter adds up what parts report.
func counter(stage string, total int64, progress func(string, int64, int64)) func(int64) {
	if progress == nil {
		return func(int64) {}
	}
	var sum sumOf
	progress(stage, 0, total)
	return func(more int64) { progress(stage, sum.add(more), total) }
}
