package protect

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

const (
	reasonNoDisks = "the machine has no disks: nothing that its guest writes is in the point"

	reasonOff   = "the machine is off; how it was shut down, and so whether its file systems are clean, is not known"
	reasonImage = "the images were read with no machine behind them; how it was shut down, and so whether the file " +
		"systems are clean, is not known"
)

// offline reads the images of a machine that is off.
func (r *run) offline(ctx context.Context) error {
	if r.req.Require && r.req.Consistency.Rank() > point.Crash.Rank() {
		return fmt.Errorf("%w: %s was asked for, crash reached: %s", ErrConsistency, r.req.Consistency, reasonOff)
	}
	p := r.result
	p.Consistency, p.ConsistencyReason = point.Crash, reasonOff
	p.Rung, p.RungReason = point.Offline, "the machine is off"
	reads, err := r.openOffline(ctx)
	defer closeReads(reads)
	if err != nil {
		return err
	}
	p.Time = r.Now().UTC()
	for i, d := range r.disks {
		disk, err := r.intake.image(ctx, reads[i], d)
		if err != nil {
			return fmt.Errorf("read disk %s: %w", d.Name, err)
		}
		p.Disks = append(p.Disks, r.asked(r.manage(disk)))
	}
	r.keepFiles()
	return r.commit(ctx)
}

// openOffline opens the images of all disks, also on error to be closed by the caller. While they
// are open the machine cannot be started, so that they show one instant. Their bitmaps go on being
// the record of changes: they have everything since the last point, and so everything since this
// one.
func (r *run) openOffline(ctx context.Context) ([]imageRead, error) {
	var reads []imageRead
	for _, d := range r.disks {
		read := imageRead{name: d.Name, granule: int64(r.Vault.ChunkSize())}
		if last := r.lineage.disk(d.Name); last != nil && !r.req.FullRead {
			read.bitmap, read.lastSize = last.Bitmap, last.Size
			read.borrowed = r.borrows(d.Name, last.Bitmap)
		}
		if err := r.unlock(ctx, &read, d); err != nil {
			return reads, fmt.Errorf("read disk %s: %w", d.Name, err)
		}
		if err := read.open(ctx, d.File, d.Format); err != nil {
			return reads, fmt.Errorf("read disk %s: %w", d.Name, err)
		}
		reads = append(reads, read)
	}
	return reads, nil
}

func closeReads(reads []imageRead) {
	for _, r := range reads {
		r.image.Close()
	}
}

// imageRead is how one image is to be read.
type imageRead struct {
	name    string
	image   *diskimage.Image
	granule int64      // bytes
	bitmap  string     // the record of changes since the last point; "" if there is none
	dirty   extent.Set // what it says
	doubt   error      // why it cannot be used

	secret []byte // opens the image, if it is encrypted
	luks   bool   // the image is a volume of LUKS, which hypervisors call raw
	bare   bool   // nobody knows whether what looks encrypted is so by the guest's own doing

	lastSize int64 // of the disk in the last point, in bytes
	borrowed bool  // the record belongs to points of another kind, which count from it and drop it
}

// open opens the image with its record of changes, or in any doubt without.
func (in *imageRead) open(ctx context.Context, path, format string) (err error) {
	if in.luks {
		format = "luks"
	}
	if in.bitmap != "" {
		in.image, err = diskimage.Open(ctx, path,
			diskimage.Options{Format: format, Bitmap: in.bitmap, Secret: in.secret})
		if err == nil {
			in.dirty, err = in.image.Dirty(ctx)
			if err == nil && in.image.Size() == in.lastSize {
				return nil
			}
			in.image.Close()
		}
		in.bitmap, in.dirty, in.doubt = "", nil, err
	}
	in.image, err = diskimage.Open(ctx, path, diskimage.Options{Format: format, Secret: in.secret})
	return err
}

// unlock finds the secret of an encrypted disk: the one that was given, else what the host keeps.
func (r *run) unlock(ctx context.Context, read *imageRead, d hypervisor.Disk) (err error) {
	read.luks = d.Encrypted != "" && d.Format == "raw"
	if read.secret = r.req.Secrets.Of(d.Name); read.secret != nil || d.Encrypted == "" {
		return nil
	}
	keys, ok := r.Host.(hypervisor.KeyHolder)
	if !ok {
		return fmt.Errorf("%w (%s)", diskimage.ErrEncrypted, d.Encrypted)
	}
	if read.secret, err = keys.DiskKey(ctx, r.req.Machine, d.Name); errors.Is(err, hypervisor.ErrNoKey) {
		return fmt.Errorf("%w (%s): %w", diskimage.ErrEncrypted, d.Encrypted, err)
	}
	return err
}

// encryptionOf says how an image that was read is encrypted, nil if it is not.
func encryptionOf(m *diskimage.Image) *point.Encryption {
	if m.Encryption() == "" {
		return nil
	}
	return &point.Encryption{Format: m.Encryption(), AsIs: m.AsIs()}
}

// image stores what an image shows of a disk.
func (s *intake) image(ctx context.Context, in imageRead, d hypervisor.Disk) (point.Disk, error) {
	size := in.image.Size()
	whole := extent.Of(extent.Extent{Len: size})
	data, err := in.image.Extents(ctx)
	if err != nil {
		return point.Disk{}, err
	}
	read := capture.Read{Disk: in.name, Size: size, Whole: in.bitmap == "", Source: in.image}
	read.Data = data.Align(in.granule, size)
	read.Zero = whole.Subtract(read.Data)
	if in.bitmap != "" {
		dirty := in.dirty.Align(in.granule, size)
		read.Data, read.Zero = read.Data.Intersect(dirty), read.Zero.Intersect(dirty)
	}
	if err := s.put(ctx, read); err != nil {
		return point.Disk{}, err
	}
	out := s.disk(d, size)
	if e := encryptionOf(in.image); e != nil && (!e.AsIs || in.bare) {
		out.Source.Encryption = e
	}
	out.Read, out.Bitmap, out.Tracked = read.Data.Bytes(), in.bitmap, in.bitmap != ""
	if in.borrowed {
		out.Bitmap = ""
	}
	if !out.Tracked {
		out.Reason = s.whyWhole(in)
	}
	return out, nil
}

func (s *intake) whyWhole(in imageRead) string {
	switch {
	case s.lineage.disk(in.name) == nil:
		return capture.WholeFirst
	case in.doubt != nil:
		return fmt.Sprintf(capture.WholeUnusable, in.doubt)
	}
	return capture.WholeImage
}
