package protect

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// maxImages is how many disks one point of images may have: vda to vdz.
const maxImages = 26

// ImageDeps are the pieces that a backup of images works with.
type ImageDeps struct {
	Vault    *vault.Vault
	Version  string
	Progress func(stage string, done, total int64) // bytes; nil discards
	Now      func() time.Time                      // nil means time.Now
}

// ImageRequest names the images of one machine that are to become a point.
type ImageRequest struct {
	Name   string // of the machine that the point is of
	Files  []string
	Format string // of all of them; "" means by what is in them
	Tags   map[string]string
}

// Images takes one recovery point of disk images, which become the disks vda, vdb and so on. All blocks that the images hold are read
// and compared with the last point of that name; what did not change is not stored again.
//
// Errors that callers decide by: [ErrNoDisks], and the sentinels of package diskimage: ErrInUse if somebody writes to one of them.
func Images(ctx context.Context, deps ImageDeps, req ImageRequest) (*point.RecoveryPoint, error) {
	d := Deps{Progress: deps.Progress, Now: deps.Now}
	d.defaults()
	if err := req.check(); err != nil {
		return nil, err
	}
	begun := d.Now()
	opened, err := openImages(ctx, req)
	if err != nil {
		return nil, err
	}
	defer opened.close()
	// The session comes first: from here on garbage collection leaves alone what the last point is made of.
	session, err := deps.Vault.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer session.Abort()
	points, err := deps.Vault.Points(ctx)
	if err != nil {
		return nil, err
	}
	l := imageLineage(points, req.Name)
	p := &point.RecoveryPoint{
		ID: point.NewID(), VM: req.Name, Time: begun.UTC(), Tags: req.Tags, Holdfast: deps.Version,
		Consistency: point.Crash, ConsistencyReason: reasonImage, Rung: point.Offline, RungReason: "disk images without a hypervisor",
		Definition: point.Definition{Kind: kindImage}, Warnings: l.changes(opened.disks, nil),
	}
	if l.last != nil {
		p.Parent = l.last.ID
	}
	s := newStore(session, l, d.Progress)
	for i, disk := range opened.disks {
		in := imageRead{name: disk.Name, image: opened.images[i], granule: int64(deps.Vault.ChunkSize())}
		stored, err := s.image(ctx, in, disk)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", disk.File, err)
		}
		p.Disks = append(p.Disks, stored)
	}
	p.Took = d.Now().Sub(begun).Seconds()
	if err := session.Commit(ctx, p); err != nil {
		return nil, err
	}
	return p, nil
}

func (r ImageRequest) check() error {
	switch {
	case strings.TrimSpace(r.Name) == "":
		return errors.New("the machine's name is empty")
	case strings.Contains(r.Name, "@"):
		return fmt.Errorf("the name %q has an @, which stands before \"latest\" in the name of a point", r.Name)
	case len(r.Files) == 0:
		return ErrNoDisks
	case len(r.Files) > maxImages:
		return fmt.Errorf("%d images are more than the %d that one point takes", len(r.Files), maxImages)
	}
	return nil
}

// openedImages are all images of a point, open at once: none is read before all could be opened.
type openedImages struct {
	disks  []hypervisor.Disk
	images []*diskimage.Image
}

func (o *openedImages) close() {
	for _, img := range o.images {
		img.Close()
	}
}

func openImages(ctx context.Context, req ImageRequest) (*openedImages, error) {
	o := &openedImages{}
	for i, file := range req.Files {
		path, err := filepath.Abs(file)
		if err != nil {
			o.close()
			return nil, err
		}
		img, err := diskimage.Open(ctx, path, diskimage.Options{Format: req.Format})
		if err != nil {
			o.close()
			return nil, err
		}
		o.images = append(o.images, img)
		o.disks = append(o.disks, hypervisor.Disk{
			Name: "vd" + string(rune('a'+i)), Size: img.Size(), Format: img.Format(), File: path,
		})
	}
	return o, nil
}
