package disks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/durable"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// sector is what the size of a disk is a multiple of, in bytes.
const sector = 512

// CreateRequest says what disk to make.
type CreateRequest struct {
	Name     string
	Format   string  // raw or qcow2; "" means qcow2
	Size     int64   // bytes; 0 means that of Content. A disk larger than its content ends in zeros
	Content  Content // nil is an empty disk
	Source   Source
	Tags     map[string]string
	Progress func(bytes int64) // of the content that is copied; nil discards
}

func (r *CreateRequest) complete() error {
	if err := CheckName(r.Name); err != nil {
		return err
	}
	if r.Format == "" {
		r.Format = "qcow2"
	}
	if r.Progress == nil {
		r.Progress = func(int64) {}
	}
	if r.Content != nil && r.Size == 0 {
		r.Size = (r.Content.Size() + sector - 1) / sector * sector
	}
	switch {
	case r.Format != "raw" && r.Format != "qcow2":
		return fmt.Errorf("a managed disk is raw or qcow2, not %q", r.Format)
	case r.Size <= 0:
		return errors.New("its size is missing")
	case r.Size%sector != 0:
		return fmt.Errorf("its size of %d bytes is no multiple of %d", r.Size, sector)
	case r.Content != nil && r.Size < r.Content.Size():
		return fmt.Errorf("%w: %d bytes for a content of %d", ErrShrink, r.Size, r.Content.Size())
	}
	return nil
}

// Create makes a disk and returns once it is complete and durable. On error there is none.
//
// Errors that callers decide by: [ErrExists], [ErrBusy], diskimage.ErrNoSpace.
func (p *Pool) Create(ctx context.Context, req CreateRequest) (*Disk, error) {
	if err := req.complete(); err != nil {
		return nil, fmt.Errorf("create disk %q: %w", req.Name, err)
	}
	d, unlock, err := p.begin(req)
	if err != nil {
		return nil, fmt.Errorf("create disk %s: %w", req.Name, err)
	}
	defer unlock()
	err = p.step("create: recorded")
	if err == nil {
		err = p.fill(ctx, d, req)
	}
	if err == nil {
		err = p.step("create: written")
	}
	if err == nil {
		d.Doing = nil
		err = p.save(d)
	}
	if err != nil {
		if !errors.Is(err, errCrash) {
			err = errors.Join(err, p.undoCreate(d))
		}
		return nil, fmt.Errorf("create disk %s: %w", req.Name, err)
	}
	return d, p.opts.Changed(ctx)
}

// errCrash is what a test's crash is.
var errCrash = errors.New("crash")

// begin reserves the name of a disk and records that it is being made.
func (p *Pool) begin(req CreateRequest) (*Disk, func(), error) {
	if err := durable.MkdirAll(p.fs, filepath.Join(p.dir, recordDir)); err != nil {
		return nil, nil, err
	}
	unlock, err := p.lock(req.Name, workLock)
	if err != nil {
		return nil, nil, err
	}
	now := p.opts.Now().UTC()
	d := &Disk{ID: string(point.NewID()), Name: req.Name, File: req.Name + "." + req.Format, Format: req.Format,
		Size: req.Size, Created: now,
		Tags: req.Tags, Source: req.Source, Doing: &Doing{What: "create", Since: now}}
	if d.Source.Kind == "" {
		d.Source.Kind = "empty"
	}
	if _, err = os.Lstat(p.Path(d)); err == nil {
		err = fmt.Errorf("%s: %w", p.Path(d), ErrExists)
	} else if errors.Is(err, os.ErrNotExist) {
		err = p.saveNew(d)
	}
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return d, unlock, nil
}

// fill writes the image.
func (p *Pool) fill(ctx context.Context, d *Disk, req CreateRequest) error {
	var data extent.Set
	if req.Content != nil {
		var err error
		if data, err = req.Content.Extents(ctx); err != nil {
			return err
		}
	}
	t, err := diskimage.Create(p.Path(d), d.Size, d.Format, data, false)
	if err != nil {
		return err
	}
	if req.Content != nil {
		if err := req.Content.Restore(ctx, t, req.Progress); err != nil {
			return errors.Join(err, t.Abort())
		}
	}
	if err := p.step("create: filled"); err != nil {
		return err
	}
	return t.Commit()
}

// undoCreate removes what there is of a disk that was never complete.
func (p *Pool) undoCreate(d *Disk) error {
	files := []string{d.File}
	if d.Hydration != nil {
		files = append(files, d.Hydration.Final)
	}
	return p.forget(d, files)
}

// forget removes images, then the record, then the locks.
func (p *Pool) forget(d *Disk, files []string) error {
	for _, f := range files {
		if err := removeFile(filepath.Join(p.dir, f)); err != nil {
			return err
		}
		if err := p.dropUnfinished(f); err != nil {
			return err
		}
		if err := p.step("forget: image removed"); err != nil {
			return err
		}
	}
	if err := p.fs.SyncDir(p.dir); err != nil {
		return err
	}
	if err := removeFile(p.recordPath(d.Name)); err != nil {
		return err
	}
	if err := p.fs.SyncDir(filepath.Join(p.dir, recordDir)); err != nil {
		return err
	}
	return p.dropLocks(d.Name)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// dropUnfinished removes what a killed process left of an image under the temporary name that
// package diskimage gives it.
func (p *Pool) dropUnfinished(file string) error {
	left, err := filepath.Glob(filepath.Join(p.dir, "."+file+".*.hf"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := removeFile(path); err != nil {
			return err
		}
	}
	return nil
}

// imageContent is the content of a disk image.
type imageContent struct{ *diskimage.Image }

// ImageContent returns what a disk image holds.
func ImageContent(m *diskimage.Image) Content { return imageContent{m} }

// copyUnit is how much is read at once, in bytes.
const copyUnit = 1 << 20

// Restore implements [Content]. What reads as zeros is not written.
func (c imageContent) Restore(ctx context.Context, w io.WriterAt, progress func(int64)) error {
	data, err := c.Extents(ctx)
	if err != nil {
		return err
	}
	buf := make([]byte, copyUnit)
	for _, e := range data {
		for off := e.Off; off < e.End(); {
			if err := ctx.Err(); err != nil {
				return err
			}
			part := buf[:min(copyUnit, e.End()-off)]
			if _, err := c.ReadAt(part, off); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("read %s: %w", c.Path(), err)
			}
			if len(strings.TrimLeft(string(part), "\x00")) > 0 {
				if _, err := w.WriteAt(part, off); err != nil {
					return err
				}
			}
			progress(int64(len(part)))
			off += int64(len(part))
		}
	}
	return nil
}
