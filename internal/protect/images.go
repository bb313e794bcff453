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

	Secrets diskimage.Secrets // of encrypted images
	AsIs    bool              // encrypted images are stored as they lie, without their secrets

	// Managed names the managed disk that each of Files is; the point is then a snapshot of that
	// Name, and no machine's.
	Managed []ManagedDisk
}

// session names what is stored, for who goes on with a session that died.
func (r ImageRequest) session() string { return "images/" + r.Name }

func (r ImageRequest) snapshot() bool { return len(r.Managed) > 0 }

// Images takes one recovery point of disk images, which become the disks vda, vdb and so on. All
// blocks that the images hold are read and compared with the last point of that name; what did not
// change is not stored again.
//
// Errors that callers decide by: [ErrNoDisks], and the sentinels of package diskimage: ErrInUse if
// somebody writes to one of them.
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
	session, err := deps.Vault.Begin(ctx, req.session())
	if err != nil {
		return nil, err
	}
	defer session.Abort()
	points, err := pointsOfImages(ctx, deps.Vault, req)
	if err != nil {
		return nil, err
	}
	l, p := req.begin(points, opened.disks)
	p.ID, p.Time, p.Tags, p.Holdfast = point.NewID(), begun.UTC(), req.Tags, deps.Version
	p.Consistency, p.ConsistencyReason = point.Crash, reasonImage
	p.Rung, p.RungReason = point.Offline, "disk images without a hypervisor"
	if l.last != nil {
		p.Parent = l.last.ID
	}
	if err := l.keep(ctx, session); err != nil {
		return nil, err
	}
	s := newIntake(session, l, d.Progress)
	for i, disk := range opened.disks {
		in := imageRead{name: disk.Name, image: opened.images[i], granule: int64(deps.Vault.ChunkSize()), bare: true}
		stored, err := s.image(ctx, in, disk)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", disk.File, err)
		}
		if req.snapshot() {
			stored.Managed, stored.ManagedID = req.Managed[i].Name, req.Managed[i].ID
		}
		p.Disks = append(p.Disks, stored)
	}
	p.Warnings = append(p.Warnings, opened.warnings()...)
	p.Took = d.Now().Sub(begun).Seconds()
	if err := session.Commit(ctx, p); err != nil {
		return nil, err
	}
	return p, nil
}

// begin returns what the vault knows of the images, and the point that is to be filled.
func (r ImageRequest) begin(points []*point.RecoveryPoint, disks []hypervisor.Disk) (lineage, *point.RecoveryPoint) {
	p := &point.RecoveryPoint{Definition: point.Definition{Kind: point.OnlyDisks}}
	if r.snapshot() {
		p.Kind, p.Name = point.Snapshot, r.Name
		return managedLineage(points, r.Managed), p
	}
	l := imageLineage(points, r.Name)
	p.VM, p.Warnings = r.Name, l.changes(disks, nil)
	return l, p
}

func (r ImageRequest) check() error {
	switch {
	case r.snapshot() && len(r.Managed) != len(r.Files):
		return fmt.Errorf("%d files of %d managed disks", len(r.Files), len(r.Managed))
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
	disks     []hypervisor.Disk
	images    []*diskimage.Image
	encrypted []*diskimage.Image // those that are
}

func (o *openedImages) close() {
	for _, img := range o.images {
		img.Close()
	}
}

// diskName returns what the i-th image is called in the point.
func (r ImageRequest) diskName(i int) string {
	if r.snapshot() {
		return r.Managed[i].Name
	}
	return "vd" + string(rune('a'+i))
}

func openImages(ctx context.Context, req ImageRequest) (*openedImages, error) {
	o := &openedImages{}
	for i, file := range req.Files {
		path, err := filepath.Abs(file)
		if err != nil {
			o.close()
			return nil, err
		}
		img, err := diskimage.Open(ctx, path, diskimage.Options{Format: req.Format,
			Secret: req.Secrets.Of(req.diskName(i)), AsIs: req.AsIs})
		if err != nil {
			o.close()
			return nil, err
		}
		if img.Encryption() != "" {
			o.encrypted = append(o.encrypted, img)
		}
		o.images = append(o.images, img)
		o.disks = append(o.disks, hypervisor.Disk{
			Name: req.diskName(i), Size: img.Size(), Format: img.Format(), File: path,
		})
	}
	if len(o.encrypted) == 0 && (len(req.Secrets) > 0 || req.AsIs) {
		o.close()
		return nil, errNotEncrypted
	}
	return o, nil
}

var errNotEncrypted = errors.New("none of the images is encrypted")

// warnings says which images are stored as they lie.
func (o *openedImages) warnings() (out []string) {
	for _, img := range o.encrypted {
		if img.AsIs() {
			out = append(out, fmt.Sprintf("%s is encrypted (%s) and stored as it lies: what is in it cannot be "+
				"listed or "+
				"compressed, and its secret is needed to use it", img.Path(), img.Encryption()))
		}
	}
	return out
}
