package disks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// nobodyListens reports whether err says that a monitor's socket leads to no process.
func nobodyListens(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// Resize makes a disk larger, while a machine runs with it too: the guest is told.
func (p *Pool) Resize(ctx context.Context, name string, size int64) (*Disk, error) {
	d, unlock, err := p.open(name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := p.beginResize(d, size); err != nil {
		return nil, fmt.Errorf("resize disk %s: %w", name, err)
	}
	if err := p.resize(ctx, d); err != nil {
		return nil, fmt.Errorf("resize disk %s: %w", name, err)
	}
	return d, nil
}

func (p *Pool) beginResize(d *Disk, size int64) error {
	switch {
	case size < d.Size:
		return fmt.Errorf("%w: it has %d bytes, %d were asked for", ErrShrink, d.Size, size)
	case size%sector != 0:
		return fmt.Errorf("%d bytes are no multiple of %d", size, sector)
	case d.Hydration != nil:
		return ErrHydrating
	}
	d.Doing = &Doing{What: "resize", Since: p.opts.Now().UTC(), Size: size}
	return errors.Join(p.save(d), p.step("resize: recorded"))
}

// resize does what the record says is being done. It may be called again.
func (p *Pool) resize(ctx context.Context, d *Disk) error {
	size := d.Doing.Size
	err := p.grow(ctx, d, size)
	if err != nil && !errors.Is(err, errCrash) {
		if have, sizeErr := p.imageSize(ctx, d); sizeErr != nil || have != d.Size {
			return fmt.Errorf("%w (%w)", err, ErrUnfinished)
		}
		d.Doing = nil
		return errors.Join(err, p.save(d))
	}
	if err != nil {
		return err
	}
	if err := p.step("resize: grown"); err != nil {
		return err
	}
	d.Size, d.Doing = size, nil
	return p.save(d)
}

// grow enlarges the image: through the QEMU that has it open, else by ourselves.
func (p *Pool) grow(ctx context.Context, d *Disk, size int64) error {
	if d.Attached != nil {
		h, m, err := p.machineOf(ctx, d.Attached)
		if err != nil && !errors.Is(err, hypervisor.ErrNoMachine) {
			return err
		}
		if err == nil {
			_, running, err := h.Attached(ctx, m, p.Path(d))
			if err != nil {
				return err
			}
			if running {
				return h.Resize(ctx, m, p.Path(d), size)
			}
		}
	}
	if err := p.unused(ctx, d); err != nil {
		return err
	}
	if d.Format == "raw" {
		return growRaw(p.Path(d), size)
	}
	return runTool(ctx, "qemu-img", "resize", "-q", "-f", d.Format, p.Path(d), strconv.FormatInt(size, 10))
}

func growRaw(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() < size {
		err = errors.Join(f.Truncate(size), f.Sync())
	}
	return errors.Join(err, f.Close())
}

func runTool(ctx context.Context, name string, args ...string) error {
	out, err := child.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// imageSize returns the size of the disk that the image holds, read without asking whether somebody
// writes it: no format changes that in place by halves.
func (p *Pool) imageSize(_ context.Context, d *Disk) (int64, error) {
	if d.imageFormat() == "raw" {
		info, err := os.Stat(p.Path(d))
		if err != nil {
			return 0, err
		}
		return info.Size(), nil
	}
	img, err := qcow2.Open(p.Path(d))
	if err != nil {
		return 0, err
	}
	defer img.Close()
	return img.Size(), nil
}

// Delete removes a disk for good. It returns ErrAttached, ErrBased, ErrBusy or diskimage.ErrInUse
// where it must not.
func (p *Pool) Delete(ctx context.Context, name string) error {
	d, unlock, err := p.open(name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.deletable(ctx, d); err != nil {
		return fmt.Errorf("delete disk %s: %w", name, err)
	}
	d.Doing = &Doing{What: "delete", Since: p.opts.Now().UTC()}
	err = errors.Join(p.save(d), p.step("delete: recorded"))
	if err == nil {
		err = p.undoCreate(d)
	}
	if err != nil {
		return fmt.Errorf("delete disk %s: %w", name, err)
	}
	return p.opts.Changed(ctx)
}

func (p *Pool) deletable(ctx context.Context, d *Disk) error {
	if d.Attached != nil {
		return fmt.Errorf("%w: %s on %s has it as %s", ErrAttached, d.Attached.VM, d.Attached.Host, d.Attached.As)
	}
	if p.held(d.Name, hydrateLock) {
		return fmt.Errorf("%w: it is being filled", ErrBusy)
	}
	if err := p.unused(ctx, d); err != nil && !errors.Is(err, os.ErrNotExist) && errors.Is(err, diskimage.ErrInUse) {
		return err
	}
	return p.unbased(d)
}

// unbased returns ErrBased if a qcow2 image in the pool has d's image as its backing file.
func (p *Pool) unbased(d *Disk) error {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || e.Name() == d.File {
			continue
		}
		img, err := qcow2.Open(filepath.Join(p.dir, e.Name()))
		if err != nil {
			continue // no qcow2, and so based on nothing
		}
		backing := img.Info().BackingFile
		img.Close()
		if backing == "" {
			continue
		}
		if !filepath.IsAbs(backing) {
			backing = filepath.Join(p.dir, backing)
		}
		if sameFile(backing, p.Path(d)) {
			return fmt.Errorf("%w: %s", ErrBased, e.Name())
		}
	}
	return nil
}

func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}
